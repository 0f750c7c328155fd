"""The mixed replay buffer: real rows carry rewards >= 1000 here, model rows smaller ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from adv_worldmodel import OfflineDataset
from agents.buffers import MixedReplayBuffer

N_REAL, N_ENVS = 50, 4
OBS_SPACE = Box(-np.inf, np.inf, (2,), np.float32)
ACTION_SPACE = Box(np.float32([-2.0, 0.0]), np.float32([2.0, 10.0]))


@pytest.fixture(scope="module")
def data() -> OfflineDataset:
    """Rows with reward 1000 + row number; one termination (row 3), one truncation (row 7)."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N_REAL, 2))
    return OfflineDataset.from_arrays(
        obs,
        rng.uniform([-2.0, 0.0], [2.0, 10.0], (N_REAL, 2)),
        1000.0 + np.arange(N_REAL),
        obs + 1.0,
        np.arange(N_REAL) == 3,
        np.arange(N_REAL) == 7,
        observation_space=OBS_SPACE,
        action_space=ACTION_SPACE,
    )


def make(data: OfflineDataset | None, ratio: float = 0.5, size: int = 40) -> MixedReplayBuffer:
    return MixedReplayBuffer(
        size, OBS_SPACE, ACTION_SPACE, "cpu", N_ENVS, dataset=data, real_ratio=ratio, seed=0
    )


def step_of(number: int) -> Iterator[torch.Tensor]:
    """Four rows of model step `number`, all told apart; the third terminates."""
    row = torch.arange(N_ENVS, dtype=torch.float32) + 10.0 * number
    yield torch.stack([row, -row], dim=1)
    yield torch.stack([row / 100, -row / 100], dim=1)
    yield row
    yield torch.stack([row + 1, -row - 1], dim=1)
    yield torch.arange(N_ENVS) == 2


@pytest.mark.parametrize(
    ("ratio", "batch_size", "expected"),
    [
        (0.0, 10, 0), (1.0, 10, 10), (0.5, 10, 5), (0.5, 256, 128), (0.3, 10, 3),
        (0.05, 10, 0), (0.05, 256, 13), (0.99, 20, 20), (0.5, 7, 4), (0.5, 1, 0),
    ],
)  # fmt: skip
def test_every_batch_has_exactly_that_many_real_rows(
    data: OfflineDataset, ratio: float, batch_size: int, expected: int
) -> None:
    buffer = make(data, ratio)
    buffer.add_tensors(*step_of(1))
    assert buffer.n_real(batch_size) == expected
    batches = list(buffer.batches(20, batch_size))
    assert len(batches) == 20
    for batch in batches:
        assert batch.reward.shape == (batch_size,)
        assert int((batch.reward >= 1000).sum()) == expected


def test_all_rows_held_are_drawn_and_no_others(data: OfflineDataset) -> None:
    buffer = make(data)
    buffer.add_tensors(*step_of(1))
    buffer.add_tensors(*step_of(2))
    seen = set(torch.cat([b.reward for b in buffer.batches(100, 32)]).tolist())
    assert seen == {1000.0 + i for i in range(N_REAL)} | {10.0, 11, 12, 13, 20, 21, 22, 23}


def test_only_the_last_steps_are_kept(data: OfflineDataset) -> None:
    horizon, retain = 2, 3
    buffer = make(data, 0.0, size=retain * horizon * N_ENVS)
    sizes = []
    for step in range(1, (retain + 1) * horizon + 1):
        buffer.add_tensors(*step_of(step))
        sizes.append(buffer.size())
    assert sizes == [4, 8, 12, 16, 20, 24, 24, 24]
    seen = torch.cat([b.reward for b in buffer.batches(100, 32)])
    # iteration 1, steps 1 and 2, has left
    assert sorted({int(r) // 10 for r in seen.tolist()}) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("size", "steps"), [(6, [3, 4, 5, 6, 7, 8]), (4, [5, 6, 7, 8]), (9, [3, 4, 5, 6, 7, 8])]
)
def test_another_buffer_s_rollouts_are_taken_the_newest_that_fit(
    data: OfflineDataset, size: int, steps: list[int]
) -> None:
    source, buffer = make(data, 0.0, size=6 * N_ENVS), make(data, 0.0, size=size * N_ENVS)
    for step in range(1, 9):
        source.add_tensors(*step_of(step))
    buffer.add_tensors(*step_of(1))
    buffer.take_rollouts(source)

    def held() -> list[int]:
        seen = torch.cat([b.reward for b in buffer.batches(100, 32)])
        return sorted({int(r) // 10 for r in seen.tolist()})

    assert held() == steps
    buffer.add_tensors(*step_of(9))  # the oldest leaves first, where there is no room
    assert held() == [*steps, 9][-size:]


def test_rows_come_back_as_they_went_in(data: OfflineDataset) -> None:
    buffer = make(data, 0.0)
    buffer.add_tensors(*step_of(5))
    obs, action, reward, next_obs, terminated = step_of(5)
    batch = next(buffer.batches(1, 200))
    rows = (batch.reward - 50).long()
    for got, put in (
        (batch.obs, obs), (batch.action, action), (batch.reward, reward),
        (batch.next_obs, next_obs), (batch.continues, (~terminated).float()),
    ):  # fmt: skip
        assert torch.equal(got, put[rows])


def test_real_rows_are_the_data_s(data: OfflineDataset) -> None:
    batch = next(make(data, 1.0).batches(1, 1000))
    rows = (batch.reward - 1000).long().numpy()
    np.testing.assert_array_equal(batch.obs, data.observations[rows])
    np.testing.assert_array_equal(batch.next_obs, data.next_observations[rows])
    # [-2, 2] and [0, 10] to [-1, 1]
    by_hand = data.actions[rows] / [2.0, 5.0] - [0.0, 1.0]
    np.testing.assert_allclose(batch.action, by_hand, atol=1e-6)
    # row 7 was cut by a time limit: its successor's value counts
    np.testing.assert_array_equal(batch.continues, np.where(rows == 3, 0.0, 1.0))


def test_scaling_and_its_inverse(data: OfflineDataset) -> None:
    buffer = make(data)
    raw = torch.tensor([[-2.0, 0.0], [2.0, 10.0], [0.0, 5.0], [1.0, 2.5]])
    scaled = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -0.5]])
    assert torch.equal(buffer.bounds.scale(raw), scaled)
    assert torch.equal(buffer.bounds.unscale(scaled), raw)


def test_sb3_s_add_is_extend(data: OfflineDataset) -> None:
    obs, action, reward, next_obs, terminated = step_of(3)
    direct, through_sb3 = make(data), make(data)
    direct.add_tensors(obs, action, reward, next_obs, terminated)
    # row 0 ends at the horizon, row 2 terminates
    infos: list[dict[str, Any]] = [{"TimeLimit.truncated": True}, {}, {}, {}]
    done = np.array([True, False, True, False])
    through_sb3.add(obs.numpy(), next_obs.numpy(), action.numpy(), reward.numpy(), done, infos)
    assert direct.synthetic is not None
    assert through_sb3.synthetic is not None
    assert torch.equal(direct.synthetic, through_sb3.synthetic)
    assert direct.size() == through_sb3.size() == N_ENVS


@pytest.mark.parametrize("obs_dim", [1, 2, 3, 4])
def test_rows_are_whole_vectors_of_16_bytes_and_those_without_a_pad_are_taken(obs_dim: int) -> None:
    space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
    buffer = MixedReplayBuffer(2, space, ACTION_SPACE, "cpu", real_ratio=0.0, seed=0)
    numbers = 2 * obs_dim + 2 + 2
    rows = torch.arange(2.0 * numbers).view(2, numbers)
    buffer.hold(rows)
    buffer.pos, buffer.full = 0, True
    assert buffer.synthetic is not None
    assert buffer.synthetic.stride(0) % 4 == 0
    columns = buffer.unpack(buffer.synthetic)
    joined = [c.view(2, -1) for c in columns]
    assert torch.equal(torch.cat(joined, dim=1), rows)
    batch = buffer.gather(torch.empty(0, dtype=torch.int64), torch.tensor([1, 0, 1]))
    for mine, column in zip(batch, columns, strict=True):
        assert torch.equal(mine, column[[1, 0, 1]])


def test_sb3_s_form_of_a_batch(data: OfflineDataset) -> None:
    one, two = make(data), make(data)
    for buffer in (one, two):
        buffer.add_tensors(*step_of(1))
    batch, samples = next(one.batches(1, 64)), two.sample(64)
    assert torch.equal(samples.observations, batch.obs)
    assert torch.equal(samples.actions, batch.action)
    assert torch.equal(samples.next_observations, batch.next_obs)
    assert samples.rewards.shape == samples.dones.shape == (64, 1)
    assert torch.equal(samples.rewards[:, 0], batch.reward)
    assert torch.equal(samples.dones[:, 0], 1 - batch.continues)


def test_rows_that_are_missing_are_named(data: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="needs 5 of 10 rows from model rollouts, none is held"):
        make(data).sample(10)
    empty = make(None)
    empty.add_tensors(*step_of(1))
    with pytest.raises(ValueError, match="needs 5 of 10 rows from the data set, none is held"):
        empty.sample(10)
    assert len(make(data, 1.0).sample(10).rewards) == 10  # needs no rollouts
    model_only = make(None, 0.0)
    model_only.add_tensors(*step_of(1))
    assert len(model_only.sample(10).rewards) == 10  # needs no data


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        make(None, ratio)
