"""Small data, fits and world models that tests of several files share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics.ensemble import Ensemble
from adv_worldmodel.dynamics.fitting import FitSettings, fit_world_model
from adv_worldmodel.dynamics.termination import make_termination
from adv_worldmodel.dynamics.world_model import WorldModel

SMALL = FitSettings(n_networks=3, n_elites=2, hidden_sizes=(8,), batch_size=64, max_steps=20)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_model(**kwargs: Any) -> WorldModel:
    """Three random members with noise over two states and one action."""
    n_targets = 2 if "reward_function" in kwargs else 3
    ensemble = Ensemble(3, 3, n_targets, (8,), generator())
    rule = make_termination(kwargs.pop("termination", "never"), None)
    low = np.array([-1.5, -np.inf], np.float32)
    spaces = Box(low, np.full(2, np.inf, np.float32)), Box(-2.0, 2.0, (1,), np.float32)
    model = WorldModel(ensemble, rule, *spaces, **kwargs)
    model.set_scales(
        torch.randn(20, 3, generator=generator(1)),
        5.0 * torch.randn(20, n_targets, generator=generator(2)),
    )
    return model


def linear_system(n: int = 400, seed: int = 0) -> OfflineDataset:
    """s' = 0.9 s + 0.5 a + 0.2 noise and r = 2 s - a + 0.6 noise; multiples of 1/1024."""
    rng = np.random.default_rng(seed)

    def rounded(x: np.ndarray) -> np.ndarray:  # so that differences of states are exact
        return np.round(x * 1024) / 1024

    s, a = rounded(rng.normal(size=n)), rounded(rng.uniform(-1, 1, n))
    successor = rounded(0.9 * s + 0.5 * a + 0.2 * rng.normal(size=n))
    reward = rounded(2.0 * s - a + 0.6 * rng.normal(size=n))
    return OfflineDataset.from_arrays(
        s[:, None], a[:, None], reward, successor[:, None], np.zeros(n, bool), np.ones(n, bool)
    )


def fit(data: OfflineDataset, settings: FitSettings = SMALL, **kwargs: Any) -> WorldModel:
    return fit_world_model(data, settings, termination="never", device="cpu", **kwargs)
