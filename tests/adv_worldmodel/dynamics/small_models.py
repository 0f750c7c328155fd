"""Small world models that tests of several files share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from adv_worldmodel.dynamics.ensemble import Ensemble
from adv_worldmodel.dynamics.termination import make_termination
from adv_worldmodel.dynamics.world_model import WorldModel


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
