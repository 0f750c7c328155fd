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
        ("Ant-v3", -325.6, 3879.7),
        ("AntMaze_UMaze-v5", 0.0, 1.0),
        ("PointMaze_UMaze-v3", 23.85, 161.86),
        ("PointMaze_Medium-v3", 13.13, 277.39),
        ("PointMaze_Large-v3", 6.7, 273.99),
        ("AdroitHandPen-v1", 96.262799, 3076.8331),
        ("AdroitHandHammer-v1", -274.856578, 12794.1348),
        ("AdroitHandDoor-v1", -56.512833, 2880.5693),
        ("AdroitHandRelocate-v1", -6.425911, 4233.8778),
        ("FrankaKitchen-v1", 0.0, 4.0),
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


@pytest.mark.parametrize(
    "env_id", [None, "", "Pendulum-v1", "Ant-v", "MyAnt-v4", "HopperHard-v4", "HopperHard"]
)
def test_unknown_environments_have_no_score(env_id: str | None) -> None:
    assert normalised_score(env_id, 1.0) is None


def test_ant_and_antmaze_are_not_confused() -> None:
    ant, maze = normalised_score("Ant-v5", 1.0), normalised_score("AntMaze_UMaze-v5", 1.0)
    assert ant is not None
    assert maze is not None
    assert ant.value < 10.0 < maze.value


def test_which_versions_compare() -> None:
    comparable = ("Hopper-v2", "Hopper-v3", "Hopper-v4", "Ant-v3")
    for env_id in (*comparable, "Hopper-v5", "Ant-v4", "AdroitHandPen-v1"):
        score = normalised_score(env_id, 0.0)
        assert score is not None
        assert score.comparable == (env_id in comparable), env_id


@pytest.mark.parametrize("base", ["Hopper", "Ant", "AdroitHandPen", "module:Hopper"])
def test_without_a_version_the_latest_is_meant(base: str) -> None:
    bare, latest = normalised_score(base, 1000.0), normalised_score(f"{base}-v5", 1000.0)
    assert bare is not None
    assert latest is not None
    assert (bare.value, bare.comparable) == (latest.value, False)


def test_a_module_in_front_changes_nothing() -> None:
    plain = normalised_score("AntMaze_UMaze-v5", 0.5)
    named = normalised_score("gymnasium_robotics:AntMaze_UMaze-v5", 0.5)
    assert plain is not None
    assert named is not None
    assert named.value == plain.value == 50.0
