"""The illustrative MDP: the script runs, and the adversary keeps the policy in the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

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


@pytest.fixture
def script() -> ModuleType:
    return load_example("illustrative_mdp")


@pytest.fixture
def sound(script: ModuleType) -> dict[str, Any]:
    """A seed on which all promises hold."""
    q = np.where(np.abs(script.GRID) <= 0.301, 1.0, 0.5)
    curves = {"q": q, "true_q": q + 0.1, "error": 1.0, "model": (-np.abs(script.GRID), None)}
    mbpo = {"action": 0.9, "q": q + 4.0, "true_q": q}
    return {"fit_error": 1.0, "MBPO": mbpo, "RAMBO": {"action": 0.3, **curves}}


def test_q_has_to_be_lower_from_the_edge_of_the_data_on(
    script: ModuleType, sound: dict[str, Any]
) -> None:
    near = np.isclose(script.GRID, 0.325)
    q = sound["RAMBO"]["q"]
    for values, holds in ((q, True), (np.where(near, 1.1, q), False)):
        sound["RAMBO"]["q"] = values
        assert script.checks(sound)["RAMBO's Q lower out of the data"] == holds
        assert script.q_excess(sound["RAMBO"]) == pytest.approx(-0.5)  # what the table shows


def test_exploitation_and_pessimism_are_checked_too(
    script: ModuleType, sound: dict[str, Any]
) -> None:
    assert all(script.checks(sound).values())
    sound["MBPO"]["true_q"] = sound["MBPO"]["q"] - 1.0  # right values after all
    sound["RAMBO"]["model"] = (np.abs(script.GRID), None)  # promises more, the further out
    failed = [name for name, holds in script.checks(sound).items() if not holds]
    assert failed == [
        "MBPO's Q far above the true one",
        "RAMBO's model expects less out of the data",
    ]


def test_true_values_count_rewards_and_entropy_as_a_critic_does(script: ModuleType) -> None:
    """Of a policy that always acts a = 0 with log pi = -2, at alpha = 0.5."""
    model = SimpleNamespace(
        log_ent_coef=torch.tensor([0.5]).log(),
        actor=SimpleNamespace(
            action_log_prob=lambda obs: (torch.zeros(len(obs), 1), torch.full((len(obs),), -2.0))
        ),
    )
    found = script.true_q_curve(model, np.full((2000, 1), 0.3, np.float32), seed=0)
    here, later = (float(script.true_mean(np.array(a))) for a in (0.3, 0.0))
    gamma = script.GAMMA
    tail = sum(gamma**t * (later + 0.5 * 2.0) for t in range(2, 60))
    expected = 0.3 + gamma * (here + 0.5 * 2.0) + tail
    assert np.interp(0.3, script.GRID, found) == pytest.approx(expected, abs=0.1)


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
    done = run("--seeds", "1", folder=tmp_path)
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
