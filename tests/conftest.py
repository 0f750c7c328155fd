"""Small data sets, world models and SB3 algorithms that tests of several files share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.base_class import BaseAlgorithm

from adv_worldmodel import FitSettings, OfflineDataset, WorldModel, fit_world_model, load_dataset
from adv_worldmodel.dynamics import Ensemble, make_termination

SMALL_FIT = FitSettings(n_networks=3, n_elites=2, hidden_sizes=(16, 16), max_steps=50, seed=0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small products are slower on several threads, and sums on them differ in the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pendulum() -> OfflineDataset:
    """1000 transitions of Pendulum-v1: S = 3, actions in [-2, 2]."""
    whole = load_dataset("pendulum-random")
    columns = ("observations", "actions", "rewards", "next_observations", "terminations")
    return OfflineDataset.from_arrays(
        *(getattr(whole, column)[:1000] for column in columns),
        observation_space=whole.observation_space,
        action_space=whole.action_space,
        name="pendulum-1000",
        env_id="Pendulum-v1",
    )


@pytest.fixture(scope="session")
def fitted_once(pendulum: OfflineDataset) -> WorldModel:
    """The fit behind `pendulum_model`; not to be changed."""
    return fit_world_model(pendulum, SMALL_FIT, termination="never", device="cpu")


@pytest.fixture
def pendulum_model(fitted_once: WorldModel) -> WorldModel:
    """A small fitted model that never terminates; each test has its own copy to change."""
    return copy.deepcopy(fitted_once)


@pytest.fixture
def ending_model(pendulum_model: WorldModel) -> WorldModel:
    """The same, ending episodes where the pendulum is above the horizontal (cos > 0)."""
    pendulum_model.termination = make_termination(
        lambda obs, action, next_obs: next_obs[:, 0] > 0, None
    )
    return pendulum_model


@pytest.fixture(scope="session")
def line() -> OfflineDataset:
    """Ten states 0, 100, ..., 900 on a line, actions in [-2, 2], one termination."""
    states = 100.0 * np.arange(10.0)[:, None]
    return OfflineDataset.from_arrays(
        states,
        np.linspace(-2.0, 2.0, 10)[:, None],
        np.arange(10.0),
        states + 1.0,
        np.arange(10) == 9,
        action_space=Box(-2.0, 2.0, (1,), np.float32),
        name="line",
    )


@pytest.fixture
def line_model(line: OfflineDataset) -> Callable[..., WorldModel]:
    """Builds a model of three members without noise: member m gives reward m and s' = s + m + 1."""

    def build(termination: Any = "never") -> WorldModel:
        ensemble = Ensemble(3, input_dim=2, output_dim=2, hidden_sizes=(4,))  # zero weights
        with torch.no_grad():
            ensemble.max_logvar.fill_(-60.0)
            ensemble.min_logvar.fill_(-61.0)
            for m in range(3):
                ensemble.biases[-1][m, 0, :2] = torch.tensor([m, m + 1.0])
        rule = make_termination(termination, None)
        return WorldModel(ensemble, rule, line.observation_space, line.action_space)

    return build


@pytest.fixture(scope="session")
def make_algorithm() -> Callable[..., BaseAlgorithm]:
    """Builds a small SAC, TD3, PPO, TQC or CrossQ that learns every five steps."""

    def build(name: str, env: Any, **kwargs: Any) -> BaseAlgorithm:
        cls = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
        small: dict[str, Any] = {"policy_kwargs": {"net_arch": [16, 16]}}
        if name == "PPO":
            small |= {"n_steps": 5, "batch_size": 80, "n_epochs": 2}
        else:
            small |= {"train_freq": (5, "step"), "gradient_steps": 5, "batch_size": 32}
            small |= {"learning_starts": 0, "buffer_size": 5000}
        model: BaseAlgorithm = cls("MlpPolicy", env, seed=0, device="cpu", **{**small, **kwargs})
        return model

    return build
