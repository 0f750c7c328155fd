"""Trainings where something is missing: a home, a terminal, a GPU, plain names; and two at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adv_worldmodel import OfflineDataset
from agents.training.run_folder import RunFolder
from tests.agents.tiny import TINY

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "agents"]
TRAIN = [*COMMAND, "train", "pendulum-random", *TINY, "model.cache=true"]


def environment(**changes: str) -> dict[str, str]:
    """The variables of this process without those that name a folder of the user's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "ADV_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def test_two_trainings_share_the_cache_of_fits(tmp_path: Path) -> None:
    variables = environment(ADV_WORLDMODEL_CACHE=str(tmp_path / "cache"))
    runs = [RunFolder(tmp_path / f"run-{i}") for i in range(2)]
    processes = [
        subprocess.Popen([*TRAIN, f"out={run.path}"], env=variables, stdout=subprocess.DEVNULL)
        for run in runs
    ]
    assert [process.wait() for process in processes] == [0, 0]
    files = [(run.world_model / "model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]
    assert [path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["fit"]


@pytest.fixture
def place(tmp_path: Path, pendulum: OfflineDataset) -> Path:
    """A folder with spaces and letters beyond ASCII, and a data set in it that has them too."""
    folder = tmp_path / "Läufe & Daten ✓"
    folder.mkdir()
    keys = ("observations", "actions", "rewards", "next_observations", "terminations")
    columns = {key: getattr(pendulum, key) for key in keys}
    np.savez(folder / "meine Daten.npz", allow_pickle=False, env_id="Pendulum-v1", **columns)
    return folder


def test_without_home_terminal_and_gpu_in_a_folder_with_an_odd_name(place: Path) -> None:
    # Nothing can be made below /proc, not even by root: a home that is read-only.
    variables = environment(HOME="/proc/home", CUDA_VISIBLE_DEVICES="", LC_ALL="C")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=place,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = [*TINY, "model.cache=true", "dataset=meine Daten.npz", "out=mein Lauf ☂"]
    assert run("train", "base", *settings).splitlines()[-1] == "mein Lauf ☂"
    assert run("train", "--resume", "mein Lauf ☂", "iterations=2").splitlines()[-1] == "mein Lauf ☂"
    assert RunFolder(place / "mein Lauf ☂").read_result()["iterations"] == 2
    assert "return" in run("evaluate", "mein Lauf ☂", "--episodes", "1")
    assert "Not in it" not in run("results", "mein Lauf ☂")  # it finished: nothing to say of it
    assert "1,000 in 5 episodes" in run("data", "info", "meine Daten.npz")
