"""The example scripts keep their promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ADV_WORLDMODEL_CACHE": str(folder)}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_own_data_stays_under_30_lines() -> None:
    assert len((EXAMPLES / "own_data.py").read_text().splitlines()) < 30


def test_train_rambo_is_the_train_command(tmp_path: Path) -> None:
    done = run("train_rambo.py", "--config", "no-such-config", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("adv-worldmodel: error: no configuration 'no-such-config'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_own_arrays_become_a_policy(tmp_path: Path) -> None:
    done = run("own_data.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own_data_policy.zip").is_file()
    behaviour, rambo = (float(part.split()[1]) for part in done.stdout.splitlines()[-1].split(", "))
    assert behaviour < -1000
    assert rambo > -400


@pytest.mark.slow
def test_ppo_learns_the_swing_up_in_the_world_model(tmp_path: Path) -> None:
    done = run("ppo_in_world_model.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (float(line.split()[3]) for line in done.stdout.splitlines()[-2:])
    assert before < -1000
    assert after > -400
