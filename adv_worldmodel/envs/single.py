"""The world model as a plain Gymnasium environment: one row of the vector environment."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.dynamics import WorldModel
from adv_worldmodel.envs.vector import AdvWorldModelVectorEnv

Array = NDArray[Any]


class AdvWorldModelEnv(gym.Env[Array, Array]):
    """What ``gym.make("AdvWorldModel-v0", dataset=...)`` returns (inside Gymnasium's wrappers).

    Takes the arguments of :class:`AdvWorldModelVectorEnv`, whose single row it shows. Its episodes
    end after ``horizon`` steps: ``max_episode_steps`` of ``gym.make``, which Gymnasium keeps for
    its own wrapper, can only shorten them.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, dataset: Any, **kwargs: Any) -> None:
        self._envs = AdvWorldModelVectorEnv(dataset, num_envs=1, **kwargs)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self._restarted = False

    @property
    def dataset(self) -> OfflineDataset:
        """The data whose states episodes start in."""
        return self._envs.dataset

    @property
    def world_model(self) -> WorldModel:
        """The dynamics; an adversary may change them in place."""
        return self._envs.world_model

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""
        return self._envs.horizon

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in a data-set state, drawn by ``seed`` where it is given."""
        super().reset(seed=seed)
        # An episode that has ended was restarted within its last step, as in the other faces:
        # equal seeds give all three the same episodes.
        if not self._restarted or seed is not None:
            self._envs.reset(seed=seed)
        self._restarted = False
        return self._envs.obs[0].cpu().numpy().copy(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Sample (s', r) from the model; truncated after ``horizon`` steps."""
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            expected = self.action_space.shape
            raise ValueError(f"the action has shape {action.shape}, expected {expected}")
        batch = self._envs.action_tensor(action[None])
        out = self._envs.advance(batch)
        done = out.done
        self._envs.restart(done)
        self._restarted = bool(done[0])
        obs = out.next_obs[0].cpu().numpy().copy()
        return obs, float(out.reward[0]), bool(out.terminated[0]), bool(out.truncated[0]), {}

    def set_state(self, obs: Array) -> None:
        """Continue from a given raw state ``(S,)``, its horizon starting anew."""
        state = torch.tensor(np.asarray(obs, dtype=np.float32), device=self._envs.device)
        if state.shape != self._envs.obs[0].shape:
            expected = tuple(self._envs.obs[0].shape)
            raise ValueError(f"the state has shape {tuple(state.shape)}, expected {expected}")
        if not bool(state.isfinite().all()):
            raise ValueError(f"the state is not finite: {np.asarray(obs)}")
        self._envs.reset_all()
        self._envs.obs = state[None]
        self._restarted = False
