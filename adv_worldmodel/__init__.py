"""Adversarial world models for offline reinforcement learning, as Gymnasium environments.

Importing the package registers ``AdvWorldModel-v0`` with Gymnasium; nothing else happens. In
docstrings P is the paper (Rigter et al., RAMBO-RL, NeurIPS 2022, arXiv:2204.12581).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adv_worldmodel.data import OfflineDataset, load_dataset
from adv_worldmodel.dynamics import (
    Adversary,
    AdversarySettings,
    FitSettings,
    WorldModel,
    cached_world_model,
    fit_world_model,
    make_termination,
)
from adv_worldmodel.envs import AdvWorldModelEnv, AdvWorldModelVectorEnv
from adv_worldmodel.envs.vector import register as _register

if TYPE_CHECKING:
    from adv_worldmodel.envs.sb3 import AdvWorldModelVecEnv, make_sb3_env

__version__ = "0.1.0"
__all__ = [
    "AdvWorldModelEnv",
    "AdvWorldModelVecEnv",
    "AdvWorldModelVectorEnv",
    "Adversary",
    "AdversarySettings",
    "FitSettings",
    "OfflineDataset",
    "WorldModel",
    "cached_world_model",
    "fit_world_model",
    "load_dataset",
    "make_sb3_env",
    "make_termination",
]

_register()


def __getattr__(name: str) -> Any:
    # SB3 is imported only by those who ask for its face
    if name in ("AdvWorldModelVecEnv", "make_sb3_env"):
        from adv_worldmodel.envs import sb3

        return getattr(sb3, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
