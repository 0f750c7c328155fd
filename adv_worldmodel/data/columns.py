"""Named columns, as D4RL's and Minari's files call them, to an `OfflineDataset`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from adv_worldmodel.data import validation
from adv_worldmodel.data.dataset import OfflineDataset, infer_truncations
from adv_worldmodel.data.environments import buildable, spaces_for, time_limit

ALIASES = {
    "observations": ("observations",),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminations": ("terminals", "terminations"),
    "truncations": ("timeouts", "truncations"),
    "next_observations": ("next_observations",),
    "action_low": ("action_low",),
    "action_high": ("action_high",),
}
"""What each column may be called: D4RL's name first, Minari's second."""

BOUNDS = ("action_low", "action_high")

ELSEWHERE = {
    "next_observations": ("next_obs", "next_states"),
    "truncations": ("truncated",),
}
"""What others call a column that may be missing: not read, but warned of."""

OPTIONAL = ("truncations", "next_observations", *BOUNDS)


def wanted_keys(present: list[str], where: str) -> dict[str, list[str]]:
    """Column -> its key in the file, or its keys where it is there under both names.

    :raises ValueError: if a key that is needed is missing; lists the keys that are there.
    """
    found = {}
    for column, names in ALIASES.items():
        keys = [name for name in names if name in present]
        if keys:
            found[column] = keys
        elif column not in OPTIONAL:
            close = get_close_matches(names[0], _others(present), n=1)
            hint = f" Rename '{close[0]}'?" if close else ""
            listed = ", ".join(sorted(present)) if present else "none"
            raise ValueError(
                f"{where}: key {' or '.join(repr(name) for name in names)} is missing; found: "
                f"{listed}.{hint} Expected observations, actions, rewards, terminals (or "
                "terminations), and if known next_observations, timeouts (or truncations), "
                "action_low and action_high."
            )
        else:
            _warn_of_misspelt(column, present, where)
    return found


def _others(present: list[str]) -> set[str]:
    """Those that are no column under its own name."""
    return set(present) - {name for names in ALIASES.values() for name in names}


def _warn_of_misspelt(column: str, present: list[str], where: str) -> None:
    """Warns of a key that is not read, but nearly what the missing `column` may be called."""
    for name in (*ALIASES[column], *ELSEWHERE.get(column, ())):
        close = get_close_matches(name, _others(present), n=1, cutoff=0.85)
        if close:
            warnings.warn(
                f"{where}: '{close[0]}' is not read, and there is no '{column}'. Rename it if it "
                "is that.",
                stacklevel=4,
            )
            return


def from_columns(
    arrays: Mapping[str, NDArray[Any]],
    where: str,
    *,
    name: str,
    env_id: str | None,
    goal_terminals: bool = False,
) -> OfflineDataset:
    """A data set of arrays under D4RL's or Minari's keys (`ALIASES`), one row per transition.

    Without `next_observations` a row's successor is the next row's observation. An episode's last
    row (by terminal flag, time-out or end of the file) has none and is dropped, even if terminal:
    D4RL's `qlearning_dataset` pairs it with the next episode's first state (D4RL issue 145). The
    row before it then ends the episode as a truncation, and a warning counts the terminal rows that
    are lost. With `next_observations` gaps count as time-outs (`infer_truncations`), whatever
    `timeouts` say; without both, episodes are cut at the time
    limit of the environment (as D4RL does), and where none is known a warning says what that means.
    The last row always closes its episode. `action_low` and `action_high`, (A,) each, state the
    bounds of the actions.

    :param arrays: key -> array.
    :param where: the file, for messages.
    :param name: name of the data set.
    :param env_id: environment of the data; its spaces are taken where it can be built, but for
        action bounds that `arrays` state.
    :param goal_terminals: terminal flags mark rows at the goal of a trajectory that goes on
        (AntMaze's files), so that only time-outs end it.
    :raises ValueError: a missing key or a wrong array; names key and row.
    """
    keys = {
        column: _agreed_key(arrays, names, where)
        for column, names in wanted_keys(list(arrays), where).items()
    }
    observations = validation.float_matrix(arrays["observations"], "observations", where)
    if not any(bound in arrays for bound in BOUNDS) and not buildable(env_id):
        validation.continuous(arrays["actions"], where)
    elif arrays["actions"].dtype.kind in "iub":
        warnings.warn(
            f"{where}: 'actions' are whole numbers, of dtype {arrays['actions'].dtype}, and taken "
            "for continuous: the policy will give values in between",
            stacklevel=2,
        )
    actions = validation.float_matrix(arrays["actions"], "actions", where)
    rewards = validation.float_vector(arrays["rewards"], "rewards", where)
    key = keys["terminations"]
    terminations = validation.flag_vector(arrays[key], key, where)
    lengths = {
        "observations": len(observations),
        "actions": len(actions),
        "rewards": len(rewards),
        key: len(terminations),
    }
    truncations = successors = None
    if "truncations" in keys:
        key = keys["truncations"]
        truncations = validation.flag_vector(arrays[key], key, where)
        lengths[key] = len(truncations)
    if "next_observations" in keys:
        key = "next_observations"
        successors = validation.float_matrix(arrays[key], key, where)
        lengths[key] = len(successors)
        width = observations.shape[1]
        validation.same_width(where, key, successors.shape[1], "observations", width)
    validation.same_length(where, **lengths)

    stated = _stated_bounds(arrays, actions.shape[1], where)
    observation_space, action_space, guessed = spaces_for(
        observations, actions, env_id, where, stated
    )
    actions = validation.actions_in_bounds(actions, action_space, "actions", where)
    if successors is not None:
        gaps = infer_truncations(observations, successors, terminations)
        truncations = gaps if truncations is None else truncations | gaps
    elif truncations is None:
        ends = np.zeros_like(terminations) if goal_terminals else terminations
        truncations = _time_limits(ends, env_id, where)
    kept: slice | NDArray[np.intp] = slice(None)
    lost = 0
    if successors is None:
        lost = 0 if goal_terminals else int(terminations.sum())
        gone = float(rewards[terminations].sum(dtype=np.float64))
        kept, successors, terminations, truncations = _successors(
            observations, terminations, truncations, goal_terminals, where
        )
        if lost:
            warnings.warn(
                f"{where}: no next_observations, so that what follows a terminal row is not known: "
                f"all ({lost:,}, with rewards that sum to {gone:.4g}) are dropped, no termination "
                "is left, and values go on where the task ended. Add next_observations.",
                stacklevel=2,
            )
        states = arrays["observations"]
        validation.warn_of_rounding(states, states[1:], where, kept)
    else:
        states, following = arrays["observations"], arrays["next_observations"]
        validation.warn_of_rounding(states, following, where)
    return OfflineDataset(
        observations=observations[kept],
        actions=actions[kept],
        rewards=rewards[kept],
        next_observations=successors,
        terminations=terminations,
        truncations=truncations,
        observation_space=observation_space,
        action_space=action_space,
        name=name,
        env_id=env_id,
        goal_terminals=goal_terminals,
        action_bounds_guessed=guessed,
        terminations_lost=lost > 0,
    )


def _agreed_key(arrays: Mapping[str, NDArray[Any]], keys: list[str], where: str) -> str:
    """The first of the `keys` of a column; ValueError where it is there twice (flags) and differs.

    Which of the two was meant nobody can tell, and an episode would end elsewhere.
    """
    if len(keys) == 1:
        return keys[0]
    first, second = (validation.flag_vector(arrays[key], key, where) for key in keys)
    if len(first) != len(second) or (first != second).any():
        rows = f"{len(first):,} and {len(second):,} rows"
        if len(first) == len(second):
            rows = f"first in row {int(np.argmax(first != second))}"
        raise ValueError(
            f"{where}: '{keys[0]}' and '{keys[1]}' are two names of one column, but differ "
            f"({rows}). Delete the one that is wrong."
        )
    return keys[0]


def _stated_bounds(arrays: Mapping[str, NDArray[Any]], width: int, where: str) -> Box | None:
    """The action space of (`width`,) bounds among `arrays`; None where there are none."""
    found = [key for key in BOUNDS if key in arrays]
    if not found:
        return None
    if len(found) == 1:
        raise ValueError(
            f"{where}: '{found[0]}' stands alone; expected both {' and '.join(BOUNDS)}."
        )
    bounds = []
    for key in BOUNDS:
        bound = validation.numeric(arrays[key], key, where)
        if bound.shape != (width,):
            raise ValueError(
                f"{where}: '{key}' has shape {bound.shape}; expected ({width},), one number per "
                "action dimension."
            )
        with np.errstate(over="ignore"):
            bounds.append(bound.astype(np.float32))
    low, high = bounds
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(
            f"{where}: action_low is {low} and action_high {high}; expected finite numbers, low < "
            "high in every dimension."
        )
    return Box(low, high, dtype=np.float32)


def _time_limits(
    terminations: NDArray[np.bool_], env_id: str | None, where: str
) -> NDArray[np.bool_]:
    """Truncations (N,) wherever an episode has lasted for the environment's time limit."""
    limit = time_limit(env_id)
    if limit is None:
        if not terminations.all():
            warnings.warn(
                f"{where}: neither next_observations nor timeouts, and no known time limit. If "
                "episodes were cut by one, the row at each cut is paired with the next episode's "
                "first state: add timeouts (or truncations), or name the environment.",
                stacklevel=2,
            )
        return np.zeros_like(terminations)
    row = np.arange(len(terminations))
    starts = np.concatenate(([0], np.flatnonzero(terminations) + 1))
    steps = row - starts[np.searchsorted(starts, row, side="right") - 1] + 1
    cut: NDArray[np.bool_] = (steps % limit == 0) & ~terminations
    return cut


def _successors(
    observations: NDArray[np.float32],
    terminations: NDArray[np.bool_],
    truncations: NDArray[np.bool_],
    goal_terminals: bool,
    where: str,
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows that have a successor in the file, it, and their two flags."""
    last = truncations.copy() if goal_terminals else truncations | terminations
    last[-1] = True
    kept = np.flatnonzero(~last)
    if kept.size == 0:
        raise ValueError(
            f"{where}: no 'next_observations', and every row ends its episode, so that no row's "
            "successor is known. Add next_observations to the file."
        )
    validation.warn_of_shuffled(observations, kept, where)
    flags = terminations[kept]
    # The row before a dropped one now ends its episode; it did not terminate.
    return kept, observations[kept + 1], flags, last[kept + 1] & ~flags
