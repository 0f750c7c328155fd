"""`gym.make` without the notices that are not for the user of a data set, by id alone."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec


def check_id(env_id: object) -> None:
    """ValueError unless `env_id` is a string; given by mistake is mostly an environment itself."""
    if not isinstance(env_id, str):
        raise ValueError(
            f"Expected a Gymnasium id such as 'Pendulum-v1', got {type(env_id).__name__}; name the "
            "environment by its id (env.spec.id)."
        )


def make_quietly(env_id: str | EnvSpec, **kwargs: Any) -> gym.Env[Any, Any]:
    """`gym.make(env_id, **kwargs)`; raises what it raises.

    Silent about versions that are out of date, since the version is the one the data come from,
    and about MuJoCo's remarks on Gymnasium's model files, which it otherwise prints for every
    environment built and appends to a MUJOCO_LOG.TXT in the current folder.
    """
    with (
        warnings.catch_warnings(),
        _silent_mujoco(env_id if isinstance(env_id, str) else env_id.id),
    ):
        warnings.simplefilter("ignore")
        return gym.make(env_id, **kwargs)


@contextmanager
def _silent_mujoco(env_id: str) -> Iterator[None]:
    spec = gym.registry.get(env_id)
    if "mujoco" not in sys.modules and "mujoco" not in str(spec and spec.entry_point):
        yield  # no reason to load a simulator that is not used
        return
    try:
        mujoco = importlib.import_module("mujoco")
    except ImportError:  # gym.make says so better
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
