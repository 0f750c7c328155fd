"""The environment that a Minari set names: is it what the set was recorded in?"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari  # type: ignore[import-untyped]
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.wrappers import ClipAction, RescaleAction
from minari.data_collector import EpisodeBuffer  # type: ignore[import-untyped]

from adv_worldmodel.data import OfflineDataset, load_dataset, to_minari
from adv_worldmodel.data.minari_environment import _usable


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def test_an_environment_that_no_file_can_name_is_left_out() -> None:
    class Own(PendulumEnv):
        pass

    gym.register("Own-v0", Own)  # the class, where a file needs its name
    try:
        data = load_dataset("pendulum-random", env_id="Own-v0")
        with pytest.warns(UserWarning, match="will not name its environment: Own-v0"):
            to_minari(data, "mine/own-v0")
        back = load_dataset("mine/own-v0")
        assert back.env_id is None
        assert load_dataset("mine/own-v0", env_id="Own-v0").content_hash == data.content_hash
    finally:
        del gym.registry["Own-v0"]


def test_an_environment_that_cannot_be_built_is_not_named_and_told(
    pendulum: OfflineDataset,
) -> None:
    with pytest.warns(UserWarning, match="will not name its environment: Hopper-v3 cannot be"):
        to_minari(replace(pendulum, env_id="Hopper-v3"), "mine/old-v0")
    assert load_dataset("mine/old-v0").env_id is None


def test_an_environment_of_other_dimensions_is_not_the_data_s() -> None:
    assert _usable("Pendulum-v1", 3, 1) == "Pendulum-v1"
    assert _usable("Pendulum-v1", 1, 1) is None
    assert _usable("NotHere-v0", 1, 1) == "NotHere-v0"  # nothing is known of it


@pytest.mark.parametrize(
    ("settings", "env_id", "warning"),
    [
        ({}, "Pendulum-v1", None),
        ({"g": 10.0}, "Pendulum-v1", None),  # the constructor's own
        ({"g": 9.81}, None, "recorded in Pendulum-v1 with g=9.81"),
        ({"max_episode_steps": 50}, "Pendulum-v1", "a time limit of 50 steps, Pendulum-v1 has 200"),
    ],
)
def test_an_environment_of_other_settings_is_not_taken_for_the_registered_one(
    pendulum: OfflineDataset, settings: dict[str, Any], env_id: str | None, warning: str | None
) -> None:
    to_minari(pendulum, "mine/pendulum-v0")
    dataset = minari.load_dataset("mine/pendulum-v0")
    env = gym.make("Pendulum-v1", **settings)
    dataset._env_spec = env.spec
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert load_dataset(dataset).env_id == env_id
    assert [warning in str(w.message) for w in told] == ([True] if warning else [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who names it, means it
        assert load_dataset(dataset, env_id="Pendulum-v1").env_id == "Pendulum-v1"


NO_GOAL = np.zeros(2)


class Registered(PendulumEnv):  # type: ignore[misc]
    """Takes settings that JSON has no tuples for, nor arrays."""

    def __init__(
        self, bounds: Any = None, goal: Any = NO_GOAL, render_mode: str | None = None
    ) -> None:
        super().__init__(render_mode)


class Unbounded(PendulumEnv):  # type: ignore[misc]
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float32)


def test_tuples_among_an_environment_s_settings_are_its_own(
    pendulum: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs = {"bounds": ((0.8, 1.0), {"a": (1, 2)})}
    spec = EnvSpec("Registered-v0", f"{__name__}:Registered", kwargs=kwargs)
    monkeypatch.setitem(gym.registry, "Registered-v0", spec)
    to_minari(replace(pendulum, env_id="Registered-v0"), "mine/registered-v0")
    assert load_dataset("mine/registered-v0").env_id == "Registered-v0"
    changed = replace(spec, kwargs={"bounds": ((0.8, 2.0), {"a": (1, 2)})})
    monkeypatch.setitem(gym.registry, "Registered-v0", changed)
    with pytest.warns(UserWarning, match=r"recorded in Registered-v0 with bounds="):
        assert load_dataset("mine/registered-v0").env_id is None


def recorded_in(env: Any, dataset_id: str = "recorded/here-v0") -> Any:
    """Two steps of the largest action, or of 6 where there are no bounds."""
    largest = env.action_space.high if env.action_space.is_bounded() else np.float32([6.0])
    episode = EpisodeBuffer(
        observations=np.zeros((3, 3), np.float32),
        actions=np.stack([largest, largest]),
        rewards=np.zeros(2),
        terminations=np.zeros(2, bool),
        truncations=np.array([False, True]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari's, of an author that is not given
        return minari.create_dataset_from_buffers(
            dataset_id, [episode], env=env, observation_space=env.observation_space,
            action_space=env.action_space,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("goal", "env_id"), [([0.0, 0.0], "Registered-v0"), ([1.0, 0.0], None)], ids=["same", "other"]
)
def test_arrays_among_an_environment_s_settings_are_compared(
    monkeypatch: pytest.MonkeyPatch, goal: list[float], env_id: str | None
) -> None:
    spec = EnvSpec("Registered-v0", f"{__name__}:Registered")
    monkeypatch.setitem(gym.registry, "Registered-v0", spec)
    dataset = recorded_in(gym.make("Registered-v0", goal=goal))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert load_dataset(dataset).env_id == env_id
    assert ["with goal=[1.0, 0.0], which the id" in str(w.message) for w in told] == (
        [True] if env_id is None else []
    )


def test_wrappers_that_an_environment_is_registered_with_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = EnvSpec("Registered-v0", f"{__name__}:Registered")
    monkeypatch.setitem(gym.registry, "Registered-v0", plain)
    scaled = RescaleAction(gym.make("Registered-v0"), -1.0, 1.0)
    assert scaled.spec is not None
    wrapped = replace(plain, additional_wrappers=scaled.spec.additional_wrappers)
    monkeypatch.setitem(gym.registry, "Registered-v0", wrapped)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*recorded in")
        assert load_dataset(recorded_in(gym.make("Registered-v0"))).env_id == "Registered-v0"
    twice = recorded_in(RescaleAction(gym.make("Registered-v0"), -3.0, 3.0), "recorded/twice-v0")
    with pytest.warns(UserWarning, match="recorded in Registered-v0 with RescaleAction, which"):
        assert load_dataset(twice).env_id is None


@pytest.mark.parametrize(
    ("make_env", "env_id", "told"),
    [
        (lambda: gym.make("Registered-v0"), "Registered-v0", []),
        (lambda: gym.make("Registered-v0", goal=[1.0, 0.0]), "Registered-v0", ["goal=[1.0, 0.0]"]),
        (lambda: RescaleAction(gym.make("Registered-v0"), -1.0, 1.0), None, ["RescaleAction"]),
    ],
    ids=["as registered", "an argument", "a wrapper"],
)
def test_an_environment_that_is_not_registered_here_is_judged_by_its_wrappers(
    monkeypatch: pytest.MonkeyPatch, make_env: Any, env_id: str | None, told: list[str]
) -> None:
    spec = EnvSpec("Registered-v0", f"{__name__}:Registered")
    monkeypatch.setitem(gym.registry, "Registered-v0", spec)
    dataset = recorded_in(make_env())
    monkeypatch.delitem(gym.registry, "Registered-v0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_dataset(dataset).env_id == env_id
    assert len(caught) == len(told)
    assert all(part in str(w.message) for part, w in zip(told, caught, strict=True))


def test_actions_without_bounds_have_those_that_they_were_clipped_to() -> None:
    dataset = load_dataset(recorded_in(ClipAction(gym.make("Pendulum-v1"))))
    assert dataset.env_id == "Pendulum-v1"
    assert dataset.action_space == Box(-2.0, 2.0, (1,), np.float32)
    assert dataset.actions.tolist() == [[2.0], [2.0]]


def test_actions_without_bounds_have_those_of_an_environment_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        gym.registry, "Unbounded-v0", EnvSpec("Unbounded-v0", f"{__name__}:Unbounded")
    )
    dataset = recorded_in(gym.make("Unbounded-v0"))
    with pytest.raises(ValueError, match=r"Unbounded-v0: the action space has infinite bounds"):
        load_dataset(dataset)
    with pytest.raises(ValueError, match="dimension 0 is 6, outside the bounds"):
        load_dataset(dataset, env_id="Pendulum-v1")  # nothing says that they were clipped
    dataset._env_spec = None
    with pytest.raises(ValueError, match="Name the environment that has the real ones"):
        load_dataset(dataset)
