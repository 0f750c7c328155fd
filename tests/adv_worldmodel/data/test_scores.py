"""Normalised scores."""

from __future__ import annotations

import pytest

from adv_worldmodel.data import normalised_score


@pytest.mark.parametrize(
    ("env_id", "low", "high"),
    [
        ("Hopper-v4", -20.272305, 3234.3),
        ("HalfCheetah-v5", -280.178953, 12135.0),
        ("Walker2d-v5", 1.629008, 4592.3),
        ("AntMaze_UMaze-v5", 0.0, 1.0),
    ],
)
def test_random_is_0_and_expert_is_100(env_id: str, low: float, high: float) -> None:
    for ret, value in ((low, 0.0), (high, 100.0), ((low + high) / 2, 50.0)):
        score = normalised_score(env_id, ret)
        assert score is not None
        assert score.value == pytest.approx(value)
        assert env_id in score.reference


def test_only_older_versions_compare_with_the_published_tables() -> None:
    old, new = normalised_score("Hopper-v4", 0.0), normalised_score("Hopper-v5", 0.0)
    assert old is not None
    assert new is not None
    assert old.comparable
    assert not new.comparable
    assert "not comparable" in new.reference
    assert "not comparable" not in old.reference


@pytest.mark.parametrize("env_id", [None, "Pendulum-v1", "Ant", "MyAnt-v4", "HopperHard-v4"])
def test_unknown_environments_have_no_score(env_id: str | None) -> None:
    assert normalised_score(env_id, 1.0) is None


def test_ant_and_antmaze_are_not_confused() -> None:
    ant, maze = normalised_score("Ant-v5", 1.0), normalised_score("AntMaze_UMaze-v5", 1.0)
    assert ant is not None
    assert maze is not None
    assert ant.value < 10.0 < maze.value
