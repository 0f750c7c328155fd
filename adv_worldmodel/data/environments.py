"""Spaces and time limit of the real environment, where it can be built here."""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from adv_worldmodel.building import make_quietly
from adv_worldmodel.data.validation import action_box_of, flat_box
from adv_worldmodel.errors import first_line


def buildable(env_id: str | None) -> bool:
    """Whether `gym.make(env_id)` works here; not for None."""
    if env_id is None:
        return False
    try:
        _built(env_id)
    except Exception:  # an environment's own constructor may raise anything
        return False
    return True


def without_module(env_id: str, where: str) -> str | None:
    """The id that a data set states; None, with a warning, if to build it imports a module.

    :param where: the data set, for the warning.
    """
    if ":" not in env_id:
        return env_id
    warnings.warn(
        f"{where} names the environment {env_id!r}, for which a module of its choice would be "
        "imported: it is taken for no known environment. If you trust the module, name it yourself "
        "(env_id=, --env; data.env_id= in a configuration).",
        stacklevel=2,
    )
    return None


def with_flat_spaces(env_id: str | None, where: str) -> str | None:
    """The id that a file states; None, with a warning, if its spaces are not those of flat rows.

    A wrapper flattened the data then, of which the id does not tell.

    :param where: the file, for the warning.
    """
    if env_id is None or not buildable(env_id):
        return env_id
    try:
        environment_spaces(env_id, bounded=False)
    except ValueError as error:
        warnings.warn(
            f"{where} names the environment {env_id}, of other spaces than flat vectors "
            f"({first_line(error)}): it is taken for no known environment. Register one that gives "
            "these rows, and name it (env_id=, --env; data.env_id= in a configuration).",
            stacklevel=3,
        )
        return None
    return env_id


def environment_spaces(env_id: str, *, bounded: bool = True) -> tuple[Box, Box]:
    """Flat float32 observation and action space of the environment `env_id`.

    :param bounded: its actions must have finite bounds.
    :raises ValueError: if it cannot be built (names near ids) or its spaces are not flat boxes.
    """
    try:
        observation_space, action_space, _ = _built(env_id)
    except Exception as error:
        reason = first_line(error)
        near = get_close_matches(env_id, gym.registry, n=3, cutoff=0.6)
        hint = f" Near ids: {', '.join(near)}." if near else ""
        if ":" in env_id:
            hint += " A module of the current folder is found with PYTHONPATH=. before the command."
        raise ValueError(
            f"Environment '{env_id}' cannot be built here: {reason}.{hint} Name another one "
            "(env_id=), install what it needs, or leave env_id out."
        ) from None
    return (
        flat_box(observation_space, "observation", env_id),
        flat_box(action_space, "action", env_id, bounded=bounded),
    )


def time_limit(env_id: str | None) -> int | None:
    """Steps after which Gymnasium truncates an episode of `env_id`; None where it is unknown."""
    return _built(env_id)[2] if env_id is not None and buildable(env_id) else None


def check_fit(env_id: str, observation_dim: int, action_dim: int, where: str) -> None:
    """ValueError unless rows of these many dimensions can come from the environment `env_id`."""
    observation_space, action_space = environment_spaces(env_id, bounded=False)
    for key, width, space in (
        ("observations", observation_dim, observation_space),
        ("actions", action_dim, action_space),
    ):
        if width != space.shape[0]:
            raise ValueError(
                f"{where}: '{key}' has {width} dimensions per row, but {env_id} has "
                f"{space.shape[0]}. Name the environment that the data come from (env_id=)."
            )


def spaces_for(
    observations: NDArray[np.float32],
    actions: NDArray[np.float32],
    env_id: str | None,
    where: str,
    stated: Box | None = None,
) -> tuple[Box, Box, bool]:
    """Spaces of the environment `env_id` if it can be built here, else such that the data fit.

    :param observations: (N, S).
    :param actions: (N, A).
    :param env_id: environment of the data; None: unknown.
    :param where: how messages call the data.
    :param stated: the action space, where the data state it.
    :return: observation space, action space, and whether the second one is guessed.
    :raises ValueError: if the environment's dimensions are not those of the data.
    """
    if env_id is not None and buildable(env_id):
        check_fit(env_id, observations.shape[1], actions.shape[1], where)
        observation_space, action_space = environment_spaces(env_id, bounded=stated is None)
        return observation_space, action_space if stated is None else stated, False
    unbounded = Box(-np.inf, np.inf, (observations.shape[1],), np.float32)
    if stated is not None:
        return unbounded, stated, False
    if env_id is not None:
        where = f"{where} ({env_id} cannot be built here)"
    return unbounded, action_box_of(actions, where), True


Built = tuple[Space[Any], Space[Any], int | None]
#: What `_built` has found, and how the id was registered then.
_BUILT: dict[str, tuple[object, Built]] = {}


def _built(env_id: str) -> Built:
    """Observation space, action space and time limit, of the id as it is registered now."""
    name = env_id.rpartition(":")[2]
    known = _BUILT.get(env_id)
    if known is not None and known[0] is gym.registry.get(name):
        return known[1]
    env = make_quietly(env_id)
    try:
        limit = None if env.spec is None else env.spec.max_episode_steps
        found = env.observation_space, env.action_space, limit
    finally:
        env.close()
    _BUILT[env_id] = gym.registry.get(name), found
    return found
