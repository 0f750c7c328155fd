"""Whole trainings of the shipped configurations, each held to the return that it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.training.config import load_config
from agents.training.experiment import train


def result_of(name: str, seed: int, out: Path) -> dict[str, Any]:
    config = load_config(name, [f"seed={seed}", f"out={out}"])
    folder = train(config, progress=False)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_pendulum_data_become_a_swing_up_that_cloning_cannot_give(
    seed: int, tmp_path: Path
) -> None:
    result = result_of("pendulum-random", seed, tmp_path / "run")
    assert result["return_mean"] >= -200
    assert result["cloning_return"] < -800
    assert result["behaviour_return"] == pytest.approx(-1234, abs=5)
    assert result["wall_s"]["total"] < 6 * 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halfcheetah_medium_replay_reaches_its_best_episodes(seed: int, tmp_path: Path) -> None:
    result = result_of("halfcheetah-medium-replay-cpu", seed, tmp_path / "run")
    assert result["return_mean"] >= 5000
    assert result["q_avg"] < 2 * result["q_ceiling"]
