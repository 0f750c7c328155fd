"""The illustrative MDP: the script runs, and the adversary keeps the policy in the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.example_scripts import load_example

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"illustrative-data.png", "illustrative-model.png", "illustrative-q.png"}


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "illustrative_mdp.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def cells_of(table: str, seed: int) -> list[str]:
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {seed} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_an_untrained_policy_fails_the_checks_and_is_drawn_all_the_same(tmp_path: Path) -> None:
    done = run("--iterations", "1", "--updates", "2", "--out", "o", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "* RAMBO's action in [0.2, 0.4]: 0 of 1" in done.stdout
    # the adversary's first turn would come before the second rollout: both models are the fit's
    mbpo, mbpo_q, rambo, rambo_q, error = cells_of(done.stdout, 0)[1:6]
    assert (mbpo, mbpo_q, error) == (rambo, rambo_q, "1.000")
    assert (tmp_path / "o" / "table.md").read_text() == done.stdout
    files = {path.name: path for path in (tmp_path / "o").glob("*.png")}
    assert files.keys() == FIGURES
    assert all(10_000 < path.stat().st_size < 150_000 for path in files.values())


def test_q_has_to_be_lower_from_the_edge_of_the_data_on() -> None:
    script = load_example("illustrative_mdp")
    near = np.isclose(script.GRID, 0.325)
    q = np.where(np.abs(script.GRID) <= 0.301, 1.0, 0.5)
    result = {"fit_error": 1.0, "MBPO": {"action": 0.9}, "RAMBO": {"action": 0.3, "error": 1.0}}
    for values, holds in ((q, True), (np.where(near, 1.1, q), False)):
        result["RAMBO"]["q"] = values
        assert script.checks(result)["RAMBO's Q lower out of the data"] == holds
        assert script.q_excess(result["RAMBO"]) == pytest.approx(-0.5)  # what the table shows


@pytest.mark.parametrize("option", ["--updates", "--iterations"])
def test_no_work_is_refused_before_anything_runs(tmp_path: Path, option: str) -> None:
    done = run(option, "0", folder=tmp_path)
    assert done.returncode == 2
    assert "--iterations, --updates: at least 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_range_without_a_seed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = run("--seeds", "3:3", folder=tmp_path)
    assert done.returncode == 2
    assert "--seeds 3:3" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_rambo_stays_at_the_edge_of_the_data_and_mbpo_does_not(tmp_path: Path) -> None:
    done = run("--seed", "1", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    mbpo, mbpo_q, rambo, rambo_q, error, excess, verdict, seconds = cells_of(done.stdout, 1)[1:]
    assert float(mbpo) > 0.8
    assert 0.2 <= float(rambo) <= 0.4
    assert abs(float(error) - 1) <= 0.1
    assert float(excess) <= 0
    assert verdict == "hold"
    (believed, true), (cautious, earned) = (
        (float(x) for x in cell.rstrip(")").split(" (")) for cell in (mbpo_q, rambo_q)
    )
    assert believed > true + 5  # MBPO counts on what the model makes up
    assert cautious < earned
    assert float(seconds) < 120
