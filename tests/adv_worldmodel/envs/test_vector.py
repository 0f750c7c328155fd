"""The batched environment, mostly on a line where every step can be followed by hand.

Start states are multiples of 100; member m pays reward m and moves by m + 1, so that the reward
tells what the successor must be.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from adv_worldmodel import (
    AdvWorldModelVectorEnv,
    FitSettings,
    OfflineDataset,
    WorldModel,
    fit_world_model,
)
from tests.adv_worldmodel.envs.small_envs import envs_on, rollout

Build = Callable[..., WorldModel]


def beyond_five(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return next_obs[:, 0] % 100 >= 5


def test_make_vec_builds_it_with_same_step_autoreset(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    envs = gym.make_vec(
        "AdvWorldModel-v0", num_envs=4, dataset=pendulum, world_model=pendulum_model, seed=0
    )
    assert isinstance(envs, AdvWorldModelVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.single_observation_space == pendulum.observation_space
    obs, info = envs.reset(seed=1)
    assert envs.observation_space.contains(obs)
    assert info == {}
    obs, reward, terminated, truncated, _ = envs.step(np.zeros((4, 1), np.float32))
    assert envs.observation_space.contains(obs)
    assert reward.shape == terminated.shape == truncated.shape == (4,)
    assert terminated.dtype == truncated.dtype == np.bool_


def test_every_step_followed_by_hand(line: OfflineDataset, line_model: Build) -> None:
    horizon, n = 4, 16
    envs = envs_on(line, line_model(beyond_five), num_envs=n, horizon=horizon)
    state, _ = envs.reset(seed=0)
    elapsed = np.zeros(n, int)
    ends = {"terminated": 0, "truncated": 0, "both": 0}
    for _ in range(60):
        obs, reward, terminated, truncated, info = envs.step(np.zeros((n, 1), np.float32))
        successor = state + reward.round()[:, None] + 1.0
        elapsed += 1
        np.testing.assert_array_equal(terminated, successor[:, 0] % 100 >= 5)
        np.testing.assert_array_equal(truncated, elapsed == horizon)
        done = terminated | truncated
        np.testing.assert_allclose(obs[~done], successor[~done], atol=1e-3)
        assert np.isin(obs[done], line.observations).all()
        if done.any():
            np.testing.assert_array_equal(info["_final_obs"], done)
            for i in range(n):
                if done[i]:
                    np.testing.assert_allclose(info["final_obs"][i], successor[i], atol=1e-3)
                else:
                    assert info["final_obs"][i] is None
        else:
            assert info == {}
        ends["both"] += int((terminated & truncated).sum())
        ends["terminated"] += int((terminated & ~truncated).sum())
        ends["truncated"] += int((truncated & ~terminated).sum())
        elapsed[done] = 0
        state = obs
    assert min(ends.values()) > 0, ends  # every kind of end was met


def test_starts_are_spread_over_the_data(line: OfflineDataset, line_model: Build) -> None:
    obs, _ = envs_on(line, line_model(), num_envs=1000).reset(seed=0)
    states, counts = np.unique(obs, return_counts=True)
    np.testing.assert_array_equal(states, line.observations[:, 0])
    assert counts.min() > 60  # 100 expected; five standard deviations below are 53


def test_equal_seeds_give_equal_rollouts(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    first = rollout(envs_on(pendulum, pendulum_model, num_envs=8, seed=5), seed=3)
    again = rollout(envs_on(pendulum, pendulum_model, num_envs=8, seed=6), seed=3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    other = rollout(envs_on(pendulum, pendulum_model, num_envs=8), seed=4)
    assert not np.array_equal(first[0], other[0])


def test_the_constructor_s_seed_is_enough(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    one, two = (envs_on(pendulum, pendulum_model, num_envs=8, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.reset()[0], two.reset()[0])
    torch.rand(1)  # the global random state plays no part
    action = np.ones((8, 1), np.float32)
    np.testing.assert_array_equal(one.step(action)[0], two.step(action)[0])


def test_returned_arrays_are_not_used_again(line: OfflineDataset, line_model: Build) -> None:
    envs = envs_on(line, line_model(), num_envs=4, horizon=2)
    obs, _ = envs.reset(seed=0)
    kept, copies = [obs], [obs.copy()]
    for _ in range(5):
        *arrays, info = envs.step(np.zeros((4, 1), np.float32))
        arrays.extend(info.get("final_obs", []))
        kept.extend(arrays)
        copies.extend(copy.deepcopy(arrays))
    for array, before in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, before)
    obs, *_ = envs.step(np.zeros((4, 1), np.float32))
    obs[:] = -1e6  # nor is what the user does to them seen inside
    assert (envs.step(np.zeros((4, 1), np.float32))[0] > -100).all()
    assert (line.observations >= 0).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 5),
        ({"horizon": 3}, 3),
        ({"max_episode_steps": 7}, 7),
        ({"horizon": 4, "max_episode_steps": 6}, 4),
        ({"horizon": 6, "max_episode_steps": 4}, 4),
    ],
    ids=["default", "horizon", "max_episode_steps", "horizon-below", "horizon-above"],
)
def test_make_vec_s_horizon(
    line: OfflineDataset, line_model: Build, given: dict[str, Any], expected: int
) -> None:
    envs = gym.make_vec(
        "AdvWorldModel-v0", num_envs=2, dataset=line, world_model=line_model(), **given
    )
    envs.reset(seed=0)
    cuts = [envs.step(np.zeros((2, 1), np.float32))[3].all() for _ in range(expected)]
    assert cuts == [False] * (expected - 1) + [True]


def test_one_member_per_rollout(line: OfflineDataset, line_model: Build) -> None:
    # rows end out of step: member 2 moves by 3 and ends after two steps, member 0 is cut after four
    model = line_model(beyond_five)
    envs = envs_on(line, model, num_envs=30, horizon=4, member_per="rollout")
    envs.reset(seed=0)
    member = np.full(30, -1)
    drawn = []
    for _ in range(40):
        _, reward, terminated, truncated, _ = envs.step(np.zeros((30, 1), np.float32))
        now = reward.round().astype(int)
        assert np.all((member == -1) | (member == now))
        drawn.append(now[member == -1])
        member = np.where(terminated | truncated, -1, now)
    counts = np.bincount(np.concatenate(drawn), minlength=3)
    assert counts.min() > 0.2 * counts.sum()


def test_one_member_per_rollout_of_a_single_row(line: OfflineDataset, line_model: Build) -> None:
    envs = envs_on(line, line_model(), num_envs=1, horizon=3, member_per="rollout")
    envs.reset(seed=0)
    rewards = [envs.step(np.zeros((1, 1), np.float32))[1][0] for _ in range(60)]
    rollouts = np.array(rewards).round().reshape(20, 3)
    assert (rollouts == rollouts[:, :1]).all()
    assert set(rollouts[:, 0]) == {0.0, 1.0, 2.0}


def test_another_model_s_members_are_drawn_anew(line: OfflineDataset, line_model: Build) -> None:
    """Amid the rollouts, which their three members, unlike the five now, did not share evenly."""
    model = line_model()
    envs = envs_on(line, model, num_envs=10, horizon=50, member_per="rollout")
    envs.reset(seed=0)
    envs.step(np.zeros((10, 1), np.float32))
    spaces = (model.observation_space, model.action_space)
    five = model.ensemble.select([0, 0, 1, 2, 2])
    envs.world_model = WorldModel(five, model.termination, *spaces)
    rewards = envs.step(np.zeros((10, 1), np.float32))[1].round()
    assert sorted(rewards) == [0.0] * 4 + [1.0] * 2 + [2.0] * 4


def test_a_member_per_step_is_the_default(line: OfflineDataset, line_model: Build) -> None:
    envs = envs_on(line, line_model(), num_envs=30, horizon=50)
    envs.reset(seed=0)
    rewards = np.array([envs.step(np.zeros((30, 1), np.float32))[1] for _ in range(30)]).round()
    assert all(len(set(row)) == 3 for row in rewards.T)
    np.testing.assert_array_equal(np.sort(rewards, axis=1), [[0] * 10 + [1] * 10 + [2] * 10] * 30)


def test_wrong_actions_are_explained(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    envs = envs_on(pendulum, pendulum_model, num_envs=3)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have shape \(3, 2\), expected \(3, 1\)"):
        envs.step(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"actions have shape \(1,\), expected \(3, 1\)"):
        envs.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"action of environment 1 is not finite: \[nan\]"):
        envs.step(np.array([[0.0], [np.nan], [0.0]]))


def test_actions_outside_the_bounds_act_as_on_them(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    envs = envs_on(pendulum, pendulum_model, num_envs=3)
    envs.reset(seed=0)
    on_bound = envs.step(np.full((3, 1), 2.0))[0]
    envs.reset(seed=0)
    np.testing.assert_array_equal(envs.step(np.full((3, 1), 50.0))[0], on_bound)


def test_predicted_states_stay_in_the_observation_space(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    with torch.no_grad():
        pendulum_model.target_std.mul_(1e3)  # predictions far outside
    envs = envs_on(pendulum, pendulum_model, num_envs=50)
    envs.reset(seed=0)
    obs = envs.step(np.zeros((50, 1), np.float32))[0]
    assert envs.observation_space.contains(obs)
    assert (np.abs(obs[:, :2]) == 1.0).any()


def test_another_world_model_steps_at_once(line: OfflineDataset, line_model: Build) -> None:
    """Also where a CUDA graph of the old one has been captured."""
    envs = envs_on(line, line_model("never"), num_envs=2)
    captured = envs._transition
    other = line_model("never")
    envs.world_model = other
    assert envs.world_model is other
    assert envs._transition is not captured


def test_a_world_model_of_other_spaces_takes_no_other_s_place(
    line: OfflineDataset, line_model: Build, pendulum_model: WorldModel
) -> None:
    envs = envs_on(line, line_model("never"), num_envs=2)
    with pytest.raises(ValueError, match="the same observation space: make a new environment"):
        envs.world_model = pendulum_model
    bounded = line_model("never")
    bounded.observation_space = Box(-1.0, 1.0, line.observations.shape[1:], np.float32)
    with pytest.raises(ValueError, match="the same observation space: make a new environment"):
        envs.world_model = bounded
    assert envs.world_model is not bounded


def test_a_model_of_other_rewards_is_warned_of(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    pendulum_model.fit_info["reward_offset"] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs_on(pendulum, pendulum_model)
    lower = pendulum.with_reward_offset(-1.0)
    with pytest.warns(UserWarning, match="fitted to rewards with 0 added, those of .* have -1"):
        envs_on(lower, pendulum_model)
    pendulum_model.fit_info["content_hash"] = lower.content_hash  # whatever was added to whose
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs_on(lower, pendulum_model)


def test_functions_that_are_given_again_are_compared_with_the_data(
    pendulum: OfflineDataset, tmp_path: Path
) -> None:
    def right(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        angle = torch.atan2(obs[:, 1], obs[:, 0])
        return -(angle**2 + 0.1 * obs[:, 2] ** 2 + 0.001 * action[:, 0] ** 2)

    def never(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(obs[:, 0], dtype=torch.bool)

    fit = FitSettings(hidden_sizes=(8,), max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit_world_model(
            pendulum, fit, termination=never, reward_function=right, device="cpu"
        )
        model.save(tmp_path)
        again: dict[str, Any] = {"world_model": tmp_path, "device": "cpu"}
        AdvWorldModelVectorEnv(pendulum, termination=never, reward_function=right, **again)
    with pytest.warns(UserWarning, match="the known rewards differ from the data's by"):
        AdvWorldModelVectorEnv(
            pendulum, termination=never, reward_function=lambda *x: 9.0 * right(*x), **again
        )
    with pytest.warns(UserWarning, match="of 1,000 rows are terminal, the termination rule"):
        AdvWorldModelVectorEnv(
            pendulum, termination=lambda *x: ~never(*x), reward_function=right, **again
        )
    with pytest.warns(UserWarning, match="the known rewards differ"):
        other = fit_world_model(
            pendulum, fit, termination=never, reward_function=lambda *x: 9.0 * right(*x)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdvWorldModelVectorEnv(pendulum, world_model=other)  # the fit has said it
    with pytest.raises(ValueError, match="the known reward of row 0 is not a finite number"):
        AdvWorldModelVectorEnv(
            pendulum, termination=never, reward_function=lambda *x: right(*x) / 0.0 * 0.0, **again
        )


def test_masked_rows_alone_are_reset(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    envs = envs_on(pendulum, pendulum_model, num_envs=3, horizon=9, seed=0)
    before = envs.step(np.zeros((3, 1)))[0]
    mask = np.array([True, False, True])
    after, _ = envs.reset(options={"reset_mask": mask})
    assert (before != after).any(axis=1).tolist() == mask.tolist()
    assert envs.elapsed.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": [1, 0, 1]})


def test_environments_share_no_random_stream(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    one, other = (envs_on(pendulum, pendulum_model, num_envs=3) for _ in range(2))
    assert not np.array_equal(one.action_space.sample(), other.action_space.sample())
    one.single_action_space.seed(0)
    expected = [one.single_action_space.sample() for _ in range(2)]
    one.single_action_space.seed(0)
    first = one.single_action_space.sample()
    other.single_action_space.sample()
    pendulum.action_space.sample()
    np.testing.assert_array_equal([first, one.single_action_space.sample()], expected)


def test_float32_whatever_the_user_s_default_is(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        envs = envs_on(pendulum, pendulum_model, num_envs=3, seed=0)
        obs = envs.step(np.zeros((3, 1)))[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert obs.dtype == np.float32
