"""The careful driver: its road, its log, and what the adversary makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.example_scripts import EXAMPLES, load_example

SCRIPT = EXAMPLES / "careful_driver.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example("careful_driver")


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", "o", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "o" / "table.md").read_text()


def means(table: str) -> dict[str, float]:
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if "lambda" in line]
    return {row[0]: float(row[1]) for row in rows}


def test_too_fast_for_the_bend_is_off_the_road_for_good(script: ModuleType) -> None:
    env = script.CarefulDriver()
    env.reset(seed=0)
    env.speed, env.curvature = 0.9, 1.0
    obs, reward, *_ = env.step(np.array([1.0], np.float32))
    assert reward == pytest.approx(0.9)
    assert obs[0] == pytest.approx(1.0, abs=0.05)
    env.speed, env.curvature = 1.1, 1.0
    for _ in range(3):
        obs, *_ = env.step(np.array([1.0], np.float32))
        assert obs.tolist() == [0.0, 2.0]


def test_the_log_never_leaves_the_road(script: ModuleType) -> None:
    log = script.drive(0.7, 2000)
    speed, curvature = log["observations"].T
    assert 0.75 < (speed**2 * curvature).max() < 1.0
    assert curvature.max() <= 1.5
    assert log["truncations"].sum() == 20
    inside = ~log["truncations"][:-1]
    np.testing.assert_array_equal(
        log["next_observations"][:-1][inside], log["observations"][1:][inside]
    )


def test_a_variant_is_trained_tabled_and_drawn(tmp_path: Path) -> None:
    tiny = ("iterations=1", "agent.updates=2", "adversary.updates=2", "model.max_steps=5")
    fast = (*tiny, "cloning.epochs=0", "rollout.starts=20", "evaluation.episodes=1")
    settings = (*fast, "evaluation.every=1", "model.cache=false")
    table = run("--seeds", "0", "--only", "fit continued", *settings, folder=tmp_path)
    assert list(means(table)) == ["lambda 0, fit continued"]
    assert "80%" in table
    assert (tmp_path / "o" / "careful-driver.png").stat().st_size > 10_000
    folder = tmp_path / "o" / "lambda-0--fit-continued" / "adversary.continue_fit=true" / "seed-0"
    config = (folder / "config.yaml").read_text()
    assert "continue_fit: true" in config
    assert "weight: 0.0" in config


@pytest.mark.slow
def test_only_the_adversary_keeps_the_car_on_the_road(tmp_path: Path) -> None:
    variants = ("lambda 0, ", "lambda 0.3")
    tables = [run("--seeds", "1", "--only", only, folder=tmp_path) for only in variants]
    found = means("\n".join(tables))
    assert found["lambda 0, model frozen at its fit"] < 20
    assert found["lambda 0, fit continued"] < 20
    assert found["lambda 0.3"] > 65
