"""Environments and agents that tests of several files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest

from adv_worldmodel import AdvWorldModelVecEnv, OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from tests.agents.adversaries import Make
from tests.agents.countdown import Countdown
from tests.agents.small_agents import HORIZON, N_ENVS, UPDATES, MakeAgent


@pytest.fixture
def countdown() -> Iterator[str]:
    gym.register(id="Countdown-v0", entry_point=Countdown)
    yield "Countdown-v0"
    del gym.registry["Countdown-v0"]


@pytest.fixture
def make_agent(pendulum: OfflineDataset, pendulum_model: WorldModel) -> MakeAgent:
    """Builds a small agent of class `kind` in the pendulum's world model.

    `dataset`, `world_model`, `n_envs` and `horizon` go to its environment, `networks` to its policy
    beside `net_arch`, all else to its class.
    """

    def make_agent(
        kind: type[RAMBO] = RAMBO, *, networks: dict[str, Any] | None = None, **kwargs: Any
    ) -> RAMBO:
        env = make_sb3_env(
            kwargs.pop("dataset", pendulum),
            kwargs.pop("n_envs", N_ENVS),
            kwargs.pop("horizon", HORIZON),
            world_model=kwargs.pop("world_model", pendulum_model),
            device="cpu",
        )
        small: dict[str, Any] = {
            "policy_kwargs": {"net_arch": [16, 16], **(networks or {})},
            "gradient_steps": UPDATES, "batch_size": 16, "seed": 0, "device": "cpu",
        }  # fmt: skip
        return kind("MlpPolicy", env, **(small | kwargs))

    return make_agent


@pytest.fixture
def env(pendulum: OfflineDataset, ending_model: WorldModel) -> AdvWorldModelVecEnv:
    """16 rows for the five steps of `tests.agents.adversaries.ITERATION`."""
    return make_sb3_env(pendulum, 16, 5, world_model=ending_model, device="cpu", seed=0)


@pytest.fixture
def build(env: AdvWorldModelVecEnv, make_algorithm: Make) -> Make:
    """Builds a small algorithm by its name, RAMBO too, in `env` or another environment."""

    def build(name: str, environment: Any = env) -> Any:
        if name != "RAMBO":
            return make_algorithm(name, environment)
        small = {"gradient_steps": 5, "batch_size": 32, "policy_kwargs": {"net_arch": [16, 16]}}
        return RAMBO(env=environment, seed=0, device="cpu", **small)

    return build
