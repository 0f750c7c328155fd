"""The environment that a Minari set was recorded in, as far as its id can say it."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from numpy.typing import NDArray

from adv_worldmodel.data.environments import (
    buildable,
    check_fit,
    environment_spaces,
    without_module,
)
from adv_worldmodel.errors import first_line

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec, WrapperSpec

#: Wrappers that change neither what is observed nor what ends an episode.
_HARMLESS = ("ClipAction", "RecordEpisodeStatistics", "RecordVideo")


def name_to_write(env_id: str | None, where: str) -> str | None:
    """The environment as Minari can write it into the set `where`; None where there is none.

    A warning tells of one that cannot be written.
    """
    if env_id is None:
        return None
    plain = env_id.rpartition(":")[2]
    reason = f"{env_id} cannot be built here, as Minari wants to"
    if buildable(env_id):  # which has imported the module, so that Minari knows the plain id
        try:
            gym.spec(plain).to_json()
            return plain
        except (TypeError, ValueError) as error:
            reason = (
                f"{plain} is registered with what no file can hold ({first_line(error)}). Register "
                "it with entry_point='module:Class'"
            )
    warnings.warn(
        f"{where} will not name its environment: {reason}, or name it where the set is used "
        "(env_id=, --env).",
        stacklevel=3,
    )
    return None


def environment_of(spec: EnvSpec | None, widths: tuple[int, int], where: str) -> str | None:
    """The id of the environment that the set `where` was recorded in; None where none says it.

    Warns where an id is there, and makes another environment.

    :param widths: of observations and actions.
    """
    if spec is None:
        return None
    stated = without_module(spec.id, where)
    if stated is None or not _is_registered(spec, where):
        return None
    return _usable(stated, *widths)


def with_bounds(
    actions: NDArray[Any], space: Box, spec: EnvSpec | None, env_id: str | None, where: str
) -> tuple[NDArray[Any], Box]:
    """Actions ``(N, A)`` and their bounds: those of the environment where the set has none.

    A `ClipAction` takes actions without bounds, and clips: so are these.

    :raises ValueError: nobody knows the bounds.
    """
    if space.is_bounded():
        return actions, space
    if not buildable(env_id):
        raise ValueError(
            f"{where}: the action space has infinite bounds (low {space.low}, high {space.high}). "
            "Name the environment that has the real ones (env_id=, --env), or give the arrays to "
            "OfflineDataset.from_arrays(..., action_space=)."
        )
    assert env_id is not None
    _, space = environment_spaces(env_id)
    recorded_there = spec is not None and spec.id == env_id.rpartition(":")[2]
    wrappers = spec.additional_wrappers if spec and recorded_there else ()
    if any(wrapper.name == "ClipAction" for wrapper in wrappers):
        actions = np.clip(actions, space.low, space.high)
    return actions, space


def _is_registered(spec: EnvSpec, where: str) -> bool:
    """Whether the environment is what its id alone makes; warns where it is not."""
    registered = gym.registry.get(spec.id)
    given = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    usual, own = {}, []
    if registered is not None:
        usual = _defaults(registered) | registered.kwargs
        own = [_written(wrapper) for wrapper in registered.additional_wrappers]
    arguments = [
        f"{key}={value!r}"
        for key, value in given.items()
        if key not in usual or _listed(usual[key]) != _listed(value)
    ]
    wrappers = [
        wrapper.name
        for wrapper in spec.additional_wrappers
        if wrapper.name not in _HARMLESS and _written(wrapper) not in own
    ]
    differing = wrappers if registered is None else arguments + wrappers
    if differing:
        warnings.warn(
            f"{where}: recorded in {spec.id} with {', '.join(differing)}, which the id does not "
            "say: it is taken for no known environment. Register one with these settings and name "
            f"it (env_id=), or name {spec.id} if they make no difference.",
            stacklevel=4,
        )
    elif arguments:
        warnings.warn(
            f"{where}: recorded in {spec.id} with {', '.join(arguments)}, and whether the id says "
            "so is not known: it is not registered. Import the package that registers it before.",
            stacklevel=4,
        )
    elif registered and spec.max_episode_steps not in (None, registered.max_episode_steps):
        warnings.warn(
            f"{where}: recorded with a time limit of {spec.max_episode_steps} steps, {spec.id} has "
            f"{registered.max_episode_steps}: returns of the data and of policies there do not "
            "compare.",
            stacklevel=4,
        )
    return not differing


def _written(wrapper: WrapperSpec) -> tuple[Any, ...]:
    """All that a file says of a wrapper."""
    return wrapper.name, wrapper.entry_point, _listed(wrapper.kwargs)


def _listed(value: Any) -> Any:
    """`value` as JSON gives it back: with lists for tuples and arrays, at any depth."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_listed(item) for item in value]
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return value


def _defaults(spec: EnvSpec) -> dict[str, Any]:
    """The constructor's own values of its arguments, as far as they can be found out."""
    try:
        creator: Any = spec.entry_point
        creator = load_env_creator(creator) if isinstance(creator, str) else creator
        parameters = inspect.signature(creator).parameters.values()
    except Exception:  # a package that is not there, a constructor in C
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _usable(env_id: str, observation_dim: int, action_dim: int) -> str | None:
    """`env_id`, unless it builds here with other dimensions than the data's."""
    if buildable(env_id):
        try:
            check_fit(env_id, observation_dim, action_dim, env_id)
        except ValueError:
            return None
    return env_id
