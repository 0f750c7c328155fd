"""Bounds of actions: stated, those of the environment that is named, or guessed, which is said."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box

from adv_worldmodel.data import OfflineDataset, load_dataset
from tests.adv_worldmodel.data.two_episodes import arrays


class Torque(PendulumEnv):
    """The pendulum with other bounds of its actions."""

    def __init__(self, torque: float) -> None:
        super().__init__()
        self.action_space = Box(-torque, torque, (1,), np.float32)


def test_bounds_are_the_unit_box_or_else_the_range_of_the_data() -> None:
    inside = OfflineDataset.from_arrays(**arrays())
    assert inside.action_space == Box(-1.0, 1.0, (1,), np.float32)
    assert not inside.observation_space.is_bounded()
    with pytest.warns(UserWarning, match=r"guessed the range of the data, \[-3, 2\]"):
        wide = OfflineDataset.from_arrays(**arrays(actions=[[-3.0], [0.0], [2.0]]))
    assert wide.action_space == Box(-3.0, 2.0, (1,), np.float32)
    with pytest.raises(ValueError, match="dimension 0 never changes"):
        OfflineDataset.from_arrays(**arrays(actions=[[3.0], [3.0], [3.0]]))


def guesses(columns: dict[str, Any], **kwargs: Any) -> list[str]:
    """What warnings say."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        OfflineDataset.from_arrays(**columns, **kwargs)
    return [str(warning.message) for warning in caught]


def test_a_guess_of_bounds_is_warned_of_where_the_data_do_not_fill_the_unit_box() -> None:
    narrow = arrays(actions=[[0.3], [-0.3], [0.1]])
    (message,) = guesses(narrow, name="my data")
    assert message.startswith("my data: no action bounds are known; guessed [-1, 1]")
    assert "beyond 0.3" in message
    assert "action_space=" in message
    assert "\n" not in message
    (message,) = guesses(narrow, name="my data", env_id="Elsewhere-v0")
    assert message.startswith("my data (Elsewhere-v0 cannot be built here): no action bounds")
    assert guesses(arrays()) == []
    assert guesses(narrow, action_space=Box(-0.3, 0.3, (1,), np.float32)) == []
    # one dimension that fills the box tells the scale of the others
    assert guesses(arrays(actions=[[1.0, 0.3], [-1.0, -0.3], [0.0, 0.1]])) == []


@pytest.mark.parametrize(
    ("column", "place"),
    [([0.0, 0.5, 1.0], "0 and 1"), ([-0.01, 0.01, 0.0], "-0.01 and 0.01"), ([0.0] * 3, "0 and 0")],
    ids=["throttle", "small", "constant"],
)
def test_a_dimension_that_hardly_uses_the_unit_box_is_warned_of(
    column: list[float], place: str
) -> None:
    actions = [[full, own] for full, own in zip([1.0, -1.0, 0.0], column, strict=True)]
    (message,) = guesses(arrays(actions=actions))
    assert f"guessed [-1, 1], though dimension 1 stays between {place}" in message


def test_a_guess_of_bounds_is_remembered() -> None:
    guessed = OfflineDataset.from_arrays(**arrays())
    box = Box(-1.0, 1.0, (1,), np.float32)
    stated = OfflineDataset.from_arrays(**arrays(), action_space=box)
    assert guessed.action_bounds_guessed
    assert guessed.with_reward_offset(1.0).action_bounds_guessed
    assert not stated.action_bounds_guessed
    assert guessed.content_hash == stated.content_hash


def test_bounds_are_those_of_an_environment_that_can_be_built() -> None:
    states = {key: np.zeros((3, 3)) for key in ("observations", "next_observations")}
    columns = arrays(actions=[[-1.9996], [0.0], [1.99999]], **states)
    dataset = OfflineDataset.from_arrays(**columns, env_id="Pendulum-v1")
    assert dataset.action_space == Box(-2.0, 2.0, (1,), np.float32)
    assert not dataset.action_bounds_guessed
    own = Box(-4.0, 4.0, (1,), np.float32)
    stated = OfflineDataset.from_arrays(**columns, action_space=own, env_id="Pendulum-v1")
    assert stated.action_space == own
    # as in a file that names it: (cos, sin, velocity)
    for each in (dataset, stated):
        assert each.observation_space.high.tolist() == [1.0, 1.0, 8.0]
    wide = Box(-9.0, 9.0, (3,), np.float32)
    for space in (None, own):
        both = OfflineDataset.from_arrays(
            **columns, observation_space=wide, action_space=space, env_id="Pendulum-v1"
        )
        assert both.observation_space == wide
    with pytest.raises(ValueError, match="'observations' has 1 dimensions per row, but Pendulum"):
        OfflineDataset.from_arrays(**arrays(), env_id="Pendulum-v1")


def test_stated_bounds_do_for_an_environment_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = partial(Torque, np.inf)
    monkeypatch.setitem(gym.registry, "Any-v0", EnvSpec("Any-v0", entry))
    states = {key: np.zeros((3, 3)) for key in ("observations", "next_observations")}
    columns = arrays(actions=[[-1.0], [0.0], [1.0]], **states)
    own = Box(-4.0, 4.0, (1,), np.float32)
    stated = OfflineDataset.from_arrays(**columns, action_space=own, env_id="Any-v0")
    assert (stated.action_space, stated.env_id) == (own, "Any-v0")
    with pytest.raises(ValueError, match=r"infinite bounds .* keys action_low and action_high"):
        OfflineDataset.from_arrays(**columns, env_id="Any-v0")
    bounds = {"action_low": [-4.0], "action_high": [4.0]}
    np.savez(tmp_path / "log.npz", **columns, **bounds)
    read = load_dataset(tmp_path / "log.npz", env_id="Any-v0")
    assert (read.action_space, read.env_id) == (own, "Any-v0")
    np.savez(tmp_path / "named.npz", **columns, **bounds, env_id="Any-v0")
    named = load_dataset(tmp_path / "named.npz")
    assert (named.action_space, named.env_id) == (own, "Any-v0")


def test_an_id_that_is_registered_anew_gives_its_new_bounds() -> None:
    states = {key: np.zeros((3, 3)) for key in ("observations", "next_observations")}
    try:
        for torque in (2.0, 3.0):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # gymnasium's, of the second one
                gym.register("Again-v0", lambda torque=torque: Torque(torque))
            dataset = OfflineDataset.from_arrays(**arrays(**states), env_id="Again-v0")
            assert dataset.action_space.high == torque
    finally:
        del gym.registry["Again-v0"]


@pytest.mark.filterwarnings("ignore:mine. no action bounds are known")
def test_guessed_bounds_give_way_to_those_of_an_environment_that_is_named_later() -> None:
    states = {key: np.zeros((3, 3)) for key in ("observations", "next_observations")}
    columns = arrays(actions=[[-1.9], [0.0], [1.5]], **states)
    guessed = OfflineDataset.from_arrays(**columns, name="mine")
    named = load_dataset(guessed, env_id="Pendulum-v1")
    whole = OfflineDataset.from_arrays(**columns, env_id="Pendulum-v1")
    assert named.content_hash == whole.content_hash  # of the spaces as well
    assert not named.action_bounds_guessed
    wide = Box(-9.0, 9.0, (3,), np.float32)
    own = OfflineDataset.from_arrays(**columns, name="mine", observation_space=wide)
    assert load_dataset(own, env_id="Pendulum-v1").observation_space == wide
    # bounds that were stated stay, and so does a guess where nothing better is known
    box = Box(-4.0, 4.0, (1,), np.float32)
    stated = OfflineDataset.from_arrays(**columns, action_space=box)
    assert load_dataset(stated, env_id="Pendulum-v1").action_space == box
    elsewhere = guessed.with_env_id("Elsewhere-v0")
    assert elsewhere.action_space == guessed.action_space
    assert elsewhere.action_bounds_guessed
    outside = arrays(actions=[[-3.0], [0.0], [1.5]], **states)
    with pytest.raises(ValueError, match=r"'actions' row 0 .* is -3, outside the bounds \[-2, 2\]"):
        load_dataset(OfflineDataset.from_arrays(**outside, name="mine"), env_id="Pendulum-v1")


def test_float_error_at_a_bound_is_clipped() -> None:
    dataset = OfflineDataset.from_arrays(**arrays(actions=[[1.000001], [0.0], [-1.000001]]))
    np.testing.assert_array_equal(dataset.actions[:, 0], [1.0, 0.0, -1.0])
    assert dataset.action_space.contains(dataset.actions[0])
