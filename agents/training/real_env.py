"""The real environment by its id: found, built and compared with a policy's spaces.

The algorithms never need it; evaluation and rendering do. Whatever goes wrong here is the user's
installation or a mistyped id, so every error is a ValueError of one line.
"""

from __future__ import annotations

import difflib
import importlib
import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Space

from adv_worldmodel.building import check_id, make_quietly
from adv_worldmodel.errors import first_line


def resolve_env(env_id: str) -> EnvSpec:
    """The registered environment that `env_id` names.

    :param env_id: a Gymnasium id, or `module:ID`, where importing `module` registers `ID`. Without
        a version (`Hopper`) the latest one is meant.
    :raises ValueError: no id, the module cannot be imported, or the id is not registered (names
        near ones).
    """
    check_id(env_id)
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module that is broken raises anything
            raise ValueError(
                f"Environment {env_id!r}: module {module!r} cannot be imported ({error}); it has "
                "to be installed or lie on PYTHONPATH (PYTHONPATH=. for the current folder)."
            ) from error
    if name in gym.registry:
        return gym.registry[name]
    versions = [
        spec
        for spec in gym.registry.values()
        if spec.version is not None and _base(spec.id) == name
    ]
    if versions:
        return max(versions, key=lambda spec: spec.version or 0)
    # A wrong version lists the right ones first: they are nearer than any other name.
    near = difflib.get_close_matches(name, gym.registry, n=4, cutoff=0.6)
    hint = f"near ids: {', '.join(near)}" if near else "no id is near it"
    raise ValueError(
        f"Environment {env_id!r} is not registered in Gymnasium; {hint}. An environment of a "
        "package of its own is named as module:ID."
    )


def warn_of_endless(env_id: str) -> None:
    """Warns of an environment whose episodes nothing cuts."""
    if resolve_env(env_id).max_episode_steps is None:
        warnings.warn(
            f"{env_id} has no time limit (max_episode_steps): an evaluation waits for ever where "
            "an episode does not end by itself",
            stacklevel=3,
        )


def full_id(env_id: str) -> str:
    """`env_id` with its version, and with the module that registers it where one is named.

    :raises ValueError: as `resolve_env`.
    """
    module, colon, _ = env_id.rpartition(":")
    return f"{module}{colon}{resolve_env(env_id).id}"


def _base(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id)


def make_real_env(env_id: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build the environment `env_id` (see `resolve_env`).

    :raises ValueError: it is not registered, or its constructor fails (a missing package, ...).
    """
    spec = resolve_env(env_id)
    try:
        # Not every environment's constructor knows the argument.
        drawing = {} if render_mode is None else {"render_mode": render_mode}
        return make_quietly(spec, **drawing)
    except Exception as error:  # a third party's constructor may raise anything
        raise ValueError(
            f"Environment {env_id!r} cannot be built here: {first_line(error)}"
        ) from error


def check_spaces(
    policy: Any, env: gym.Env[Any, Any], env_id: str, *, owner: str = "policy"
) -> None:
    """Refuse a policy whose observations or actions are not the environment's.

    Also for a data set, or any `owner` of an observation and an action space.

    Shapes of both and bounds of the actions have to agree; data sets are float32 and often know
    no bounds of the observations, so dtype and those bounds may differ. A policy without spaces
    (any object with `predict`) is not checked.

    :raises ValueError: naming both sides.
    """
    for kind in ("observation", "action"):
        own: Space[Any] | None = getattr(policy, f"{kind}_space", None)
        real: Space[Any] = getattr(env, f"{kind}_space")
        if own is None:
            continue
        agree, bounds = False, ""
        if isinstance(real, Box) and isinstance(own, Box) and own.shape == real.shape:
            agree = kind == "observation" or (
                np.allclose(own.low, real.low) and np.allclose(own.high, real.high)
            )
            bounds = ": only the bounds differ. Where those of the data were guessed, state them "
            bounds += "(action_low and action_high in the file, or data.env_id), and train again"
        if not agree:
            raise ValueError(
                f"The {owner}'s {kind} space {own} is not that of {env_id!r}, {real}"
                + (bounds or "; name the environment that the data come from.")
            )
