"""Dynamics: the ensemble, its fit, its termination and the adversary that changes it."""

from adv_worldmodel.dynamics.adversary import Adversary
from adv_worldmodel.dynamics.ensemble import Ensemble
from adv_worldmodel.dynamics.fit_cache import cached_world_model
from adv_worldmodel.dynamics.fitting import FitSettings, fit_world_model
from adv_worldmodel.dynamics.model_gradient import AdversarySettings
from adv_worldmodel.dynamics.termination import Termination, make_termination
from adv_worldmodel.dynamics.world_model import WorldModel

__all__ = [
    "Adversary",
    "AdversarySettings",
    "Ensemble",
    "FitSettings",
    "Termination",
    "WorldModel",
    "cached_world_model",
    "fit_world_model",
    "make_termination",
]
