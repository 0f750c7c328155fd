"""SB3's face of the world model, and SB3's and sb3-contrib's algorithms in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import adv_worldmodel
from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env

Build = Callable[..., WorldModel]
ALGORITHMS = ["SAC", "TD3", "PPO", "TQC", "CrossQ"]


def test_sb3_s_checker_is_content(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    env = gym.make("AdvWorldModel-v0", dataset=pendulum, world_model=pendulum_model, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # the real environment's action space is what it is
        warnings.filterwarnings("ignore", message=".*symmetric and normalized")
        check_env(env.unwrapped)


def test_it_is_a_vec_env_that_shows_its_world(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = make_sb3_env(pendulum, 4, 3, world_model=pendulum_model, device="cpu")
    assert isinstance(env, VecEnv)
    assert isinstance(env, adv_worldmodel.AdvWorldModelVecEnv)
    assert (env.num_envs, env.horizon) == (4, 3)
    assert env.dataset is pendulum
    assert env.world_model is pendulum_model
    assert env.observation_space == pendulum.observation_space
    assert env.action_space == pendulum.action_space
    assert env.get_attr("world_model") == [pendulum_model] * 4
    assert env.get_attr("member_per", [0, 2]) == ["step", "step"]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 4
    env.set_attr("horizon", 2)
    assert env.horizon == 2
    with pytest.raises(ValueError, match="horizon is shared by all rows"):
        env.set_attr("horizon", 2, indices=[0])
    with pytest.raises(ValueError, match="reset_all is shared by all rows"):
        env.env_method("reset_all", indices=[0])
    with pytest.raises(ValueError, match="horizon = 0 must be at least 1"):
        env.set_attr("horizon", 0)
    with pytest.raises(ValueError, match="member_per = 'Step' is neither"):
        env.set_attr("member_per", "Step")
    with pytest.raises(ValueError, match="the data cannot be changed"):
        env.set_attr("dataset", pendulum)
    with pytest.raises(RuntimeError, match="before step_async"):
        env.step_wait()


def test_infos_of_ended_rows(line: OfflineDataset, line_model: Build) -> None:
    """Member m moves by m + 1: from a multiple of 100, past 5 after two to five steps."""
    model = line_model(lambda obs, action, next_obs: next_obs[:, 0] % 100 >= 5)
    env = make_sb3_env(line, 30, 4, world_model=model, device="cpu", seed=0)
    obs, elapsed = env.reset(), np.zeros(30, int)
    cuts = []
    for _ in range(20):
        new_obs, rewards, dones, infos = env.step(np.zeros((30, 1), np.float32))
        successor = obs + rewards.round()[:, None] + 1.0
        elapsed += 1
        terminated = successor[:, 0] % 100 >= 5
        np.testing.assert_array_equal(dones, terminated | (elapsed == 4))
        for i in range(30):
            if dones[i]:
                np.testing.assert_array_equal(infos[i]["terminal_observation"], successor[i])
                assert infos[i]["TimeLimit.truncated"] == (not terminated[i])
                assert new_obs[i] in line.observations
                cuts.append(infos[i]["TimeLimit.truncated"])
            else:
                assert infos[i] == {}
                np.testing.assert_array_equal(new_obs[i], successor[i])
        elapsed[dones] = 0
        obs = new_obs
    assert True in cuts
    assert False in cuts


def test_equal_seeds_give_equal_rollouts(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    def rollout(seed: int, at_construction: bool) -> list[Any]:
        env = make_sb3_env(
            pendulum, 8, 3, world_model=pendulum_model, device="cpu",
            seed=seed if at_construction else None,
        )  # fmt: skip
        if not at_construction:
            env.seed(seed)
        steps: list[Any] = [env.reset()]
        for _ in range(5):
            steps.extend(env.step(np.ones((8, 1), np.float32))[:3])
        return steps

    for at_construction in (True, False):
        first, again, other = (rollout(seed, at_construction) for seed in (1, 1, 2))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(first[1], other[1])


def test_returned_arrays_are_not_used_again(line: OfflineDataset, line_model: Build) -> None:
    env = make_sb3_env(line, 4, 2, world_model=line_model(), device="cpu", seed=0)
    kept = [env.reset()]
    copies = [kept[0].copy()]
    for _ in range(4):
        obs, rewards, dones, infos = env.step(np.zeros((4, 1), np.float32))
        arrays = [obs, rewards, dones, *(i["terminal_observation"] for i in infos if i)]
        kept.extend(arrays)
        copies.extend(a.copy() for a in arrays)
    for array, before in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_run_unmodified(
    pendulum: OfflineDataset,
    ending_model: WorldModel,
    make_algorithm: Callable[..., Any],
    name: str,
) -> None:
    env = make_sb3_env(pendulum, 64, 5, world_model=ending_model, device="cpu")
    model = make_algorithm(name, env)
    before = [p.clone() for p in model.policy.parameters()]
    world_before = [p.clone() for p in ending_model.parameters()]
    model.learn(total_timesteps=2560)
    assert model.num_timesteps == 2560
    after = list(model.policy.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for a, b in zip(world_before, ending_model.parameters(), strict=True):
        assert torch.equal(a, b)  # training alone does not touch the dynamics
    action, _ = model.predict(pendulum.observations[:3], deterministic=True)
    assert action.shape == (3, 1)


def test_sb3_s_make_vec_env_builds_it(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    """Which asks for pictures first."""
    settings = {"dataset": pendulum, "world_model": pendulum_model, "device": "cpu"}
    envs = make_vec_env("AdvWorldModel-v0", n_envs=2, seed=0, env_kwargs=settings)
    assert envs.reset().shape == (2, 3)


def test_what_a_user_writes_into_is_not_the_world_s(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    def episode(spoil: bool) -> list[Any]:
        env = make_sb3_env(pendulum, 3, 50, world_model=pendulum_model, device="cpu", seed=0)
        found = [env.reset()]
        for _ in range(4):
            if spoil:
                found[-1][:] = 7.0
            found.append(env.step(np.zeros((3, 1), np.float32))[0])
        return found

    assert np.array_equal(episode(True)[-1], episode(False)[-1])


def test_infos_are_each_row_s_own(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    env = make_sb3_env(pendulum, 3, 5, world_model=pendulum_model, device="cpu", seed=0)
    env.reset()
    for step in range(2):
        infos = env.step(np.zeros((3, 1), np.float32))[3]
        assert infos == [{}, {}, {}]
        for row, info in enumerate(infos):  # as a wrapper may do
            info["row"] = row
        assert [info["row"] for info in infos] == [0, 1, 2], step


def test_an_attribute_that_is_set_is_found(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    env = make_sb3_env(pendulum, 2, 5, world_model=pendulum_model, device="cpu")
    for name, value in (("render_mode", "x"), ("horizon", 3), ("own", 1)):
        env.set_attr(name, value)
        assert env.get_attr(name) == [value, value]
