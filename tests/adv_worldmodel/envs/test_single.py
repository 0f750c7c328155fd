"""The environment of ``gym.make``: one row of the batched one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from adv_worldmodel import (
    AdvWorldModelEnv,
    AdvWorldModelVectorEnv,
    OfflineDataset,
    WorldModel,
    make_sb3_env,
)

Step = tuple[NDArray[Any], float, bool, bool]


def make(dataset: OfflineDataset, model: WorldModel, **kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make("AdvWorldModel-v0", dataset=dataset, world_model=model, device="cpu", **kwargs)


def test_gymnasium_s_checker_is_content(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = make(pendulum, pendulum_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # the real environment's action space is what it is
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")
        check_env(env.unwrapped)


def actions_of(n_steps: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-2, 2, (n_steps, 1)).astype(np.float32)


def single_steps(env: AdvWorldModelEnv, seed: int, n_steps: int) -> list[Step]:
    """What the agent of an unbatched environment sees; resets at the end of an episode."""
    obs, _ = env.reset(seed=seed)
    steps: list[Step] = [(obs, 0.0, False, False)]
    for action in actions_of(n_steps):
        obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((obs, reward, terminated, truncated))
        if terminated or truncated:
            steps.append((env.reset()[0], 0.0, False, False))
    return steps


def vector_steps(envs: AdvWorldModelVectorEnv, seed: int, n_steps: int) -> list[Step]:
    obs, _ = envs.reset(seed=seed)
    steps: list[Step] = [(obs[0], 0.0, False, False)]
    for action in actions_of(n_steps):
        obs, reward, terminated, truncated, info = envs.step(action[None])
        ended = terminated[0] or truncated[0]
        successor = info["final_obs"][0] if ended else obs[0]
        steps.append((successor, reward[0], terminated[0], truncated[0]))
        if ended:
            steps.append((obs[0], 0.0, False, False))
    return steps


def sb3_steps(envs: Any, seed: int, n_steps: int) -> list[Step]:
    envs.seed(seed)
    steps: list[Step] = [(envs.reset()[0], 0.0, False, False)]
    for action in actions_of(n_steps):
        obs, reward, done, infos = envs.step(action[None])
        if done[0]:
            cut = infos[0]["TimeLimit.truncated"]
            steps.append((infos[0]["terminal_observation"], reward[0], not cut, cut))
            steps.append((obs[0], 0.0, False, False))
        else:
            steps.append((obs[0], reward[0], False, False))
    return steps


@pytest.mark.parametrize("member_per", ["step", "rollout"])
def test_the_three_faces_show_the_same_trajectory(
    pendulum: OfflineDataset, ending_model: WorldModel, member_per: str
) -> None:
    kwargs: dict[str, Any] = {
        "world_model": ending_model, "horizon": 4, "device": "cpu", "member_per": member_per,
    }  # fmt: skip
    faces = (
        single_steps(AdvWorldModelEnv(pendulum, **kwargs), 7, 40),
        vector_steps(AdvWorldModelVectorEnv(pendulum, 1, **kwargs), 7, 40),
        sb3_steps(make_sb3_env(pendulum, 1, **kwargs), 7, 40),
    )
    assert sum(s[2] for s in faces[0]) > 1  # episodes of both kinds are in it
    assert sum(s[3] for s in faces[0]) > 1
    for one, two, three in zip(*faces, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[0], three[0])
        assert one[1] == two[1] == pytest.approx(three[1], rel=1e-6)
        assert one[2] == two[2]
        # SB3 has one flag: a step that terminates and reaches the horizon is a termination
        assert two[3] == one[3]
        assert (three[2], three[3]) == (one[2], one[3] and not one[2])


def test_reset_in_the_middle_starts_anew(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = AdvWorldModelEnv(pendulum, world_model=pendulum_model, horizon=3, device="cpu")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    obs, _ = env.reset()
    assert (obs == pendulum.observations).all(axis=1).any()
    cuts = [env.step(np.zeros(1, np.float32))[3] for _ in range(3)]
    assert cuts == [False, False, True]


def test_a_seed_restarts_the_stream_after_an_episode_has_ended(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = AdvWorldModelEnv(pendulum, world_model=pendulum_model, horizon=2, device="cpu")
    first = single_steps(env, seed=1, n_steps=6)
    for a, b in zip(first, single_steps(env, seed=1, n_steps=6), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def length_of(env: gym.Env[Any, Any]) -> int:
    env.reset(seed=0)
    for n in range(1, 100):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            return n
    return 0


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({}, 5),
        ({"horizon": 8}, 8),
        ({"max_episode_steps": 3}, 3),
        ({"horizon": 8, "max_episode_steps": 6}, 6),
        ({"horizon": 4, "max_episode_steps": 6}, 4),
    ],
    ids=["default", "horizon", "limit", "limit-below-horizon", "horizon-below-limit"],
)
def test_the_lower_of_horizon_and_gymnasium_s_time_limit_cuts(
    pendulum: OfflineDataset, pendulum_model: WorldModel, given: dict[str, int], length: int
) -> None:
    assert length_of(make(pendulum, pendulum_model, **given)) == length


def test_neither_data_nor_model_are_copied_by_make(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = make(pendulum, pendulum_model)
    inner = env.unwrapped
    assert isinstance(inner, AdvWorldModelEnv)
    assert inner.dataset is pendulum
    assert inner.world_model is pendulum_model  # an adversary changes what the user holds
    assert env.spec is not None
    assert env.spec.kwargs["dataset"] is pendulum
    assert copy.deepcopy(env.spec).kwargs["dataset"] is pendulum
    assert len(repr(env.spec.kwargs["dataset"])) < 100


def test_stepping_from_a_state_of_choice(
    line: OfflineDataset, line_model: Callable[..., WorldModel]
) -> None:
    env = AdvWorldModelEnv(line, world_model=line_model(), horizon=2, device="cpu")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    env.set_state(np.array([12345.0]))
    obs, reward, _, truncated, _ = env.step(np.zeros(1, np.float32))
    np.testing.assert_allclose(obs, [12345.0 + reward + 1.0], rtol=1e-6)
    assert not truncated  # the horizon starts anew
    with pytest.raises(ValueError, match=r"state has shape \(2,\), expected \(1,\)"):
        env.set_state(np.zeros(2))


def test_wrong_actions_are_explained(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    env = make(pendulum, pendulum_model).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(1,\)"):
        env.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"shape \(\), expected \(1,\)"):
        env.step(0.5)
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.array([np.inf], np.float32))


def test_a_state_that_is_set_is_copied_and_finite(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = AdvWorldModelEnv(pendulum, world_model=pendulum_model, device="cpu", seed=0)
    state = np.array([1.0, 0.0, 0.0], np.float32)
    env.set_state(state)
    state[:] = 1e6
    assert np.abs(env.step(np.zeros(1, np.float32))[0]).max() < 100.0
    with pytest.raises(ValueError, match="not finite"):
        env.set_state(np.array([np.nan, 0.0, 0.0]))
