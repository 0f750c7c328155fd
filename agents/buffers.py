"""Replay of real and model transitions mixed in a fixed proportion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from adv_worldmodel.checks import check_shares
from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.device import shared_tensor
from adv_worldmodel.seeding import make_generator
from agents.actions import ActionBounds


class Batch(NamedTuple):
    """Transitions of one update; actions scaled to [-1, 1]."""

    obs: Tensor  #: (B, S)
    action: Tensor  #: (B, A)
    reward: Tensor  #: (B,)
    next_obs: Tensor  #: (B, S)
    continues: Tensor  #: (B,), 0 where the transition terminated, else 1


def rows_of_data(real_ratio: float, batch_size: int) -> int:
    """How many rows of a batch are data, the others being the model's."""
    return round(real_ratio * batch_size)


class MixedReplayBuffer(ReplayBuffer):
    """Recent model transitions beside a fixed data set, both on the device.

    Every batch of B holds exactly ``round(real_ratio * B)`` rows of data, the rest are model rows
    (P, algorithm 1). A row is packed as [s, a, r, s', continues], so that a batch is two gathers,
    and padded to a multiple of 16 bytes, without which a GPU gathers number by number.

    :param buffer_size: model transitions kept, the oldest leave first.
    :param dataset: the real transitions; ``None`` for a buffer that will never be sampled.
    :param real_ratio: f, share of real rows.
    :param seed: of the index draws.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        *,
        dataset: OfflineDataset | None = None,
        real_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        # ReplayBuffer's own constructor would allocate the same rows again, on the host
        BaseBuffer.__init__(
            self, buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        check_shares(real_ratio=real_ratio)
        self.real_ratio = real_ratio
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True
        self.buffer_size = max(buffer_size // n_envs, 1) * n_envs
        self.bounds = ActionBounds(action_space, self.device)
        self.generator = make_generator(seed, "replay", self.device)
        self.obs_dim = get_flattened_obs_dim(observation_space)
        self.width = -(-(2 * self.obs_dim + self.action_dim + 2) // 4) * 4
        self.synthetic: Tensor | None = None  # allocated by the first row
        self.real: Tensor | None = None if dataset is None else self._pack_dataset(dataset)

    def _pack_dataset(self, dataset: OfflineDataset) -> Tensor:
        real = torch.zeros((len(dataset), self.width), device=self.device)
        batch = self.unpack(real)
        batch.obs.copy_(shared_tensor(dataset.observations, self.device))
        batch.action.copy_(self.bounds.scale(shared_tensor(dataset.actions, self.device)))
        batch.reward.copy_(shared_tensor(dataset.rewards, self.device))
        batch.next_obs.copy_(shared_tensor(dataset.next_observations, self.device))
        batch.continues.copy_(torch.as_tensor(~dataset.terminations))
        return real

    def unpack(self, rows: Tensor) -> Batch:
        """Views into packed rows."""
        s, a = self.obs_dim, self.action_dim
        return Batch(
            rows[..., :s],
            rows[..., s : s + a],
            rows[..., s + a],
            rows[..., s + a + 1 : 2 * s + a + 1],
            rows[..., 2 * s + a + 1],
        )

    def size(self) -> int:
        """Model transitions held."""
        return self.buffer_size if self.full else self.pos

    def add_tensors(
        self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor
    ) -> None:
        """Append one model step of ``n_envs`` rows; actions scaled to [-1, 1]."""
        if self.synthetic is None:
            self.synthetic = torch.zeros((self.buffer_size, self.width), device=self.device)
        rows = self.unpack(self.synthetic[self.pos : self.pos + self.n_envs])
        rows.obs.copy_(obs)
        rows.action.copy_(action)
        rows.reward.copy_(reward)
        rows.next_obs.copy_(next_obs)
        rows.continues.copy_(~terminated)
        self.pos += self.n_envs
        if self.pos >= self.buffer_size:
            self.full, self.pos = True, 0

    def take_rollouts(self, other: MixedReplayBuffer) -> None:
        """Hold the model transitions of another buffer, the newest that fit, in place of one's own.

        :raises ValueError: its transitions are of other sizes.
        """
        if (other.obs_dim, other.action_dim) != (self.obs_dim, self.action_dim):
            raise ValueError(
                f"the buffer holds {other.obs_dim} numbers per state and {other.action_dim} per "
                f"action, the agent takes {self.obs_dim} and {self.action_dim}: load another"
            )
        rows = other.synthetic
        if rows is None:
            self.synthetic, self.pos, self.full = None, 0, False
            return
        rows, pos = rows[: other.size()], other.pos
        if (other.buffer_size, other.n_envs) != (self.buffer_size, self.n_envs):
            rows = rows.roll(-pos, 0) if other.full else rows  # the oldest first
            rows = rows[max(len(rows) - self.buffer_size, 0) :]
            rows = rows[len(rows) % self.n_envs :]  # whole steps of this agent's
            pos = len(rows) % self.buffer_size
        self.hold(rows)
        self.pos, self.full = pos, len(rows) == self.buffer_size

    def hold(self, rows: Tensor) -> None:
        """Keep a copy of packed model rows ``(n, width)``, or of an earlier version's, unpadded."""
        self.synthetic = torch.zeros((self.buffer_size, self.width), device=self.device)
        self.synthetic[: len(rows), : rows.shape[1]] = rows

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """SB3's form of :meth:`add_tensors`; rows cut by the horizon are no terminations."""
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        terminated = np.asarray(done, dtype=bool) & ~cut
        tensors = (
            torch.as_tensor(x, device=self.device)
            for x in (obs, action, reward, next_obs, terminated)
        )
        self.add_tensors(*tensors)

    def n_real(self, batch_size: int) -> int:
        """Real rows in a batch."""
        return rows_of_data(self.real_ratio, batch_size)

    def draw(self, n_batches: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Row numbers of ``n_batches`` mixed batches, all drawn at once.

        :return: of the data ``(n_batches, n_real)`` and of the model rows ``(n_batches, rest)``.
        :raises ValueError: there are no rows of a kind that a batch needs.
        """
        n_real = self.n_real(batch_size)
        held = 0 if self.real is None else len(self.real)
        indices = []
        for count, rows, name in (
            (n_real, held, "the data set"),
            (batch_size - n_real, self.size(), "model rollouts"),
        ):
            if count > 0 and rows == 0:
                raise ValueError(
                    f"a batch needs {count} of {batch_size} rows from {name}, none is held"
                )
            shape, n = (n_batches, count), max(rows, 1)
            indices.append(torch.randint(n, shape, generator=self.generator, device=self.device))
        return indices[0], indices[1]

    def gather(self, real: Tensor, synthetic: Tensor) -> Batch:
        """One batch of the given row numbers, the data first."""
        batch = torch.empty((len(real) + len(synthetic), self.width), device=self.device)
        parts = batch.split([len(real), len(synthetic)])
        for rows, i, part in zip(
            (self.real, self.synthetic), (real, synthetic), parts, strict=True
        ):
            if rows is not None and len(i) > 0:
                torch.index_select(rows, 0, i, out=part)
        return self.unpack(batch)

    def batches(self, n_batches: int, batch_size: int) -> Iterator[Batch]:
        """``n_batches`` mixed batches, real rows first."""
        for real, synthetic in zip(*self.draw(n_batches, batch_size), strict=True):
            yield self.gather(real, synthetic)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """One mixed batch in SB3's form."""
        batch = next(self.batches(1, batch_size))
        return ReplayBufferSamples(
            batch.obs,
            batch.action,
            batch.next_obs,
            1.0 - batch.continues.unsqueeze(-1),
            batch.reward.unsqueeze(-1),
        )
