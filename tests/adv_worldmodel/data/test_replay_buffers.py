"""SB3's ReplayBuffer: several environments, full rings, shared observations, scaled actions."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from adv_worldmodel.data import from_replay_buffer, load_dataset
from agents.buffers import MixedReplayBuffer

OBSERVATIONS = Box(-np.inf, np.inf, (1,), np.float64)


def filled(steps: int, size: int = 100, n_envs: int = 1, **kwargs: Any) -> ReplayBuffer:
    """Environment e at step t is at 100 e + t; an episode has 3 steps, the first one is cut by
    time, the others terminate; a new one starts at + 50."""
    buffer = ReplayBuffer(size * n_envs, OBSERVATIONS, Box(-1, 1, (1,)), "cpu", n_envs, **kwargs)
    state = 100.0 * np.arange(n_envs)[:, None]
    for step in range(steps):
        done = step % 3 == 2
        buffer.add(
            state,
            state + 1,
            np.full((n_envs, 1), step / 100),
            np.full(n_envs, float(step)),
            np.full(n_envs, done),
            [{"TimeLimit.truncated": done and step == 2}] * n_envs,
        )
        state = state + (50 if done else 1)
    return buffer


def test_each_environments_rows_follow_one_another() -> None:
    dataset = load_dataset(filled(5, n_envs=2))
    first = [0, 1, 2, 52, 53]
    np.testing.assert_array_equal(dataset.observations[:, 0], first + [100 + s for s in first])
    np.testing.assert_array_equal(dataset.next_observations, dataset.observations + 1)
    np.testing.assert_array_equal(dataset.rewards, [0, 1, 2, 3, 4] * 2)
    # step 2 is a time-out, and so is the end of what is there (step 4)
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [2, 4, 7, 9])
    assert not dataset.terminations.any()
    np.testing.assert_array_equal(dataset.episode_lengths(), [3, 2, 3, 2])


def test_terminations_are_not_time_outs() -> None:
    dataset = load_dataset(filled(6))
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [5])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [2])


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_full_ring_starts_at_its_oldest_row(n_envs: int) -> None:
    dataset = load_dataset(filled(6, size=4, n_envs=n_envs))
    np.testing.assert_array_equal(dataset.rewards, [2, 3, 4, 5] * n_envs)
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations)[:1], [3])


@pytest.mark.parametrize("n_envs", [1, 2])
def test_shared_observations_never_pair_two_episodes(n_envs: int) -> None:
    buffer = filled(7, n_envs=n_envs, optimize_memory_usage=True, handle_timeout_termination=False)
    lost = f": {2 * n_envs} rows that terminated are left out, no termination is left"
    with pytest.warns(UserWarning, match=lost) as caught:
        dataset = load_dataset(buffer)
    assert len(caught) == 1
    # steps 2 and 5 are done: their successors were overwritten by the next episode's first state
    np.testing.assert_array_equal(dataset.rewards, [0, 1, 3, 4, 6] * n_envs)
    np.testing.assert_array_equal(dataset.next_observations, dataset.observations + 1)
    np.testing.assert_array_equal(dataset.truncations, [False, True, False, True, True] * n_envs)


def test_shared_observations_in_a_full_ring() -> None:
    buffer = filled(8, size=5, optimize_memory_usage=True, handle_timeout_termination=False)
    dataset = load_dataset(buffer)
    # of steps 3 to 7, step 3's state was overwritten by the successor of step 7; step 5 is done
    np.testing.assert_array_equal(dataset.rewards, [4, 6, 7])
    np.testing.assert_array_equal(dataset.next_observations, dataset.observations + 1)
    assert dataset.terminations_lost


def test_the_newest_done_row_keeps_its_successor() -> None:
    buffer = filled(6, optimize_memory_usage=True, handle_timeout_termination=False)
    lost = ": 1 rows that terminated are left out, 1 termination is left"
    with pytest.warns(UserWarning, match=lost):
        dataset = load_dataset(buffer)
    np.testing.assert_array_equal(dataset.rewards, [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [4])


def test_actions_of_an_sb3_agent_are_scaled_back() -> None:
    """SB3 stores them in [-1, 1]; Pendulum's next velocity tells the torque that was applied."""
    model = SAC("MlpPolicy", gym.make("Pendulum-v1"), learning_starts=300, seed=0)
    model.learn(250)
    assert isinstance(model.replay_buffer, ReplayBuffer)
    with warnings.catch_warnings():  # they come near to 1: no word is needed
        warnings.simplefilter("error")
        dataset = load_dataset(model.replay_buffer, env_id="Pendulum-v1")
    assert len(dataset) == 250
    assert dataset.env_id == "Pendulum-v1"
    sine, velocity = dataset.observations[:, 1], dataset.observations[:, 2]
    expected = np.clip(velocity + (15.0 * sine + 3.0 * dataset.actions[:, 0]) * 0.05, -8.0, 8.0)
    np.testing.assert_allclose(dataset.next_observations[:, 2], expected, atol=1e-4)
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [199, 249])


def hand_filled(bounds: tuple[float, float], actions: list[float]) -> ReplayBuffer:
    buffer = ReplayBuffer(10, OBSERVATIONS, Box(*bounds, (1,)), "cpu")
    for step, action in enumerate(actions):
        state = np.array([[float(step)]])
        buffer.add(state, state + 1, np.array([[action]]), np.zeros(1), np.zeros(1), [{}])
    return buffer


@pytest.mark.parametrize(
    ("bounds", "stored", "raw"),
    [
        ((-2.0, 2.0), [0.5, -1.9], [0.5, -1.9]),  # leaves [-1, 1]: raw
        ((0.0, 0.5), [0.4, -1.0], [0.35, 0.0]),  # leaves the bounds: scaled
        ((-1.0, 1.0), [0.4, -1.0], [0.4, -1.0]),  # the same
    ],
)
@pytest.mark.filterwarnings("error")
def test_raw_or_scaled_is_what_the_data_fit(
    bounds: tuple[float, float], stored: list[float], raw: list[float]
) -> None:
    dataset = load_dataset(hand_filled(bounds, stored))
    np.testing.assert_allclose(dataset.actions[:, 0], raw, rtol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "stored", "scaled_back", "taken"),
    [
        ((-2.0, 2.0), [0.5, -0.9], [1.0, -1.8], "scaled"),
        ((-0.5, 2.0), [0.5, 0.99], [1.375, 1.9875], "scaled"),  # raw ones could, if rarely
        ((0.0, 0.5), [0.4, 0.2], [0.35, 0.3], "raw"),  # scaled ones would leave [0, 0.5]
        ((0.0, 1.0), [0.0, 0.99], [0.5, 0.995], "raw"),
    ],
)
def test_actions_that_fit_both_are_read_with_a_warning(
    bounds: tuple[float, float], stored: list[float], scaled_back: list[float], taken: str
) -> None:
    buffer = hand_filled(bounds, stored)
    with pytest.warns(UserWarning, match=r"from_replay_buffer\(..., actions='scaled'\)") as caught:
        dataset = load_dataset(buffer)
    assert "\n" not in str(caught[0].message)
    readings = {"scaled": scaled_back, "raw": stored}
    np.testing.assert_allclose(dataset.actions[:, 0], readings[taken], rtol=1e-6)
    with warnings.catch_warnings():  # who says it, means it
        warnings.simplefilter("error")
        for reading, expected in readings.items():
            said = from_replay_buffer(buffer, actions=reading)  # type: ignore[arg-type]
            np.testing.assert_allclose(said.actions[:, 0], expected, rtol=1e-6)


def test_actions_outside_both_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'actions' row 1 dimension 0 is 3, outside"):
        load_dataset(hand_filled((-2.0, 2.0), [0.0, 3.0]))


def test_nan_is_refused_with_its_row() -> None:
    buffer = filled(4)
    buffer.rewards[2] = np.nan
    with pytest.raises(ValueError, match="replay buffer: 'rewards' row 2 is nan"):
        load_dataset(buffer)


def test_empty_and_unfit_buffers() -> None:
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        load_dataset(filled(0))
    discrete = ReplayBuffer(10, OBSERVATIONS, Discrete(2), "cpu")
    with pytest.raises(ValueError, match="action space is Discrete"):
        load_dataset(discrete)
    spaces = Dict({"a": Box(-1, 1, (1,))})
    with pytest.raises(ValueError, match="observation space is Dict"):
        load_dataset(DictReplayBuffer(10, spaces, Box(-1, 1, (1,)), "cpu"))


def test_a_gap_between_rows_without_an_end_cuts_the_episode() -> None:
    """A second `learn` resets the environment, and no row says so."""
    buffer = ReplayBuffer(10, OBSERVATIONS, Box(-1, 1, (1,)), "cpu")
    for state in (0.0, 1.0, 50.0, 51.0):
        row = np.array([[state]])
        buffer.add(row, row + 1, np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    assert np.flatnonzero(load_dataset(buffer).truncations).tolist() == [1, 3]


@pytest.mark.parametrize("shared", [True, False])
def test_a_large_offset_is_warned_of(shared: bool) -> None:
    buffer = ReplayBuffer(
        100, OBSERVATIONS, Box(-1, 1, (1,)), "cpu", optimize_memory_usage=shared,
        handle_timeout_termination=False,
    )  # fmt: skip
    states = 5.4e6 + 0.1 * np.square(np.arange(21.0))
    for state, following in pairwise(states):
        rows = (np.array([[value]]) for value in (state, following))
        buffer.add(*rows, np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    with pytest.warns(UserWarning, match="replay buffer: 'observations' dimension 0 .* an offset"):
        load_dataset(buffer)


def test_dones_that_may_be_time_outs_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="every done counts as a termination"):
        dataset = load_dataset(filled(6, handle_timeout_termination=False))
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [2, 5])


def test_rambo_s_own_buffer_is_no_data_set() -> None:
    buffer = MixedReplayBuffer(8, OBSERVATIONS, Box(-1, 1, (1,)), "cpu")
    with pytest.raises(ValueError, match="give the data set itself"):
        load_dataset(buffer)
