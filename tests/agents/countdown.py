"""A policy and an environment whose returns can be told by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box


class ConstantPolicy:
    """Always the same action."""

    def __init__(self, *action: float) -> None:
        self.action = np.array(action, dtype=np.float32)

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        return np.broadcast_to(self.action, (*observation.shape[:-1], len(self.action))), None


class Countdown(gym.Env[np.ndarray, np.ndarray]):
    """Reward = action; ends after as many steps as the seed's last digit says, plus one."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 1 + (seed or 0) % 10
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.left -= 1
        return np.zeros(1, np.float32), float(action[0]), self.left == 0, False, {}
