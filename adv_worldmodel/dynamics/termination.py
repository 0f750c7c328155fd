"""When does an episode end? A function of (s, a, s') for the world model's rollouts.

The ensemble predicts rewards and next states only; whether a predicted state ends the episode
is known from the task. The rule is read from the real environment where Gymnasium can build it,
taken from a table by exact name otherwise, or is the user's own function. Rules are data (a
JSON-able `spec`), so that a saved world model can be loaded without running any code.
"""

from __future__ import annotations

import json
import math
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adv_worldmodel.data.validation import spread_rows
from adv_worldmodel.dynamics.known_tasks import (
    TASKS,
    read_environment,
    spec_of_task,
    task_of_name,
)

if TYPE_CHECKING:
    from adv_worldmodel.data import OfflineDataset

TerminationFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`f(obs (B, S), action (B, A), next_obs (B, S)) -> bool (B,)`, all raw (not standardised)."""

CHECKED_ROWS = 100_000
"""How many rows of the data `compare_with_flags` looks at, beside those that are terminal."""

_REMEDY = (
    "Pass termination='never', the name of its task (such as 'hopper'), or your own function "
    "f(obs, action, next_obs) -> bool (B,)."
)


def kind_of(value: object) -> str:
    """What a user's function returned: dtype and shape of a tensor, the type of anything else."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


@contextmanager
def left_as_they_are(function: str, *tensors: Tensor) -> Iterator[None]:
    """Refuse a user's function that writes to its arguments: they are what a rollout goes on with.

    :param function: how the message calls it.
    :raises ValueError: at the end, where one was written to.
    """
    kept = [tensor for tensor in tensors if not tensor.is_inference()]  # those count no writing
    before = [tensor._version for tensor in kept]
    yield
    if [tensor._version for tensor in kept] != before:
        raise ValueError(
            f"the {function} function changes its arguments in place, which are the rollout's own "
            "states and actions: let it compute new tensors (x - 1.0 in place of x -= 1.0)"
        )


@dataclass(frozen=True)
class Termination:
    """Batched end-of-episode rule on raw observations.

    :param spec: JSON-able description, enough for `termination_from_spec`. `kind` is one of
        `never`; `outside` (ends unless every bound holds: "unhealthy"); `inside` (ends when every
        bound holds: "goal reached"); `tip_height` (double pendulum); `function`. `origin` says
        where the rule came from.
    """

    spec: dict[str, Any]
    rule: TerminationFunction

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Which rows end their episode.

        :param obs: `(B, S)` raw states.
        :param action: `(B, A)` raw actions.
        :param next_obs: `(B, S)` raw.
        :return: bool tensor `(B,)` on the device of `next_obs`.
        :raises ValueError: a user's function returned something else than bool `(B,)`, or wrote to
            its arguments; or the rule reads a component that the observation does not have.
        """
        with left_as_they_are("termination", obs, action, next_obs):
            done = self.rule(obs, action, next_obs)
        batch = next_obs.shape[0]
        if not isinstance(done, Tensor) or done.dtype != torch.bool or done.shape != (batch,):
            raise ValueError(
                f"The termination function returned {kind_of(done)}; expected a torch.bool "
                f"tensor of shape ({batch},), one flag per row."
            )
        return done

    def __repr__(self) -> str:
        return f"Termination({self.spec['kind']}, origin={self.spec.get('origin')!r})"


# --------------------------------------------------------------------------------------------
# Rules: specs and the tensor code they stand for


def _within(next_obs: Tensor, bound: Mapping[str, Any]) -> Tensor:
    """`(B, width)`: which components in the bound hold it. NaN is never within."""
    start, stop = int(bound["start"]), bound["stop"]
    if next_obs.shape[-1] <= start or (stop is not None and next_obs.shape[-1] < stop):
        raise ValueError(
            f"The termination rule reads component {start if stop is None else stop - 1} of the "
            f"observation, which has only {next_obs.shape[-1]}. The data set's observations are "
            f"not those of the environment the rule was read from. {_REMEDY}"
        )
    part = next_obs[:, start:stop]
    low = -math.inf if bound["low"] is None else float(bound["low"])
    high = math.inf if bound["high"] is None else float(bound["high"])
    return (low <= part) & (part <= high) if bound["closed"] else (low < part) & (part < high)


def _all_within(next_obs: Tensor, spec: Mapping[str, Any]) -> Tensor:
    held = [_within(next_obs, bound) for bound in spec["bounds"]]
    if spec.get("finite", False):
        held.append(torch.isfinite(next_obs))
    return torch.cat(held, dim=-1).all(dim=-1)


def _tip_height(next_obs: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """Height of the double pendulum's tip; observation: x, sin(1), sin(2), cos(1), cos(2), ...

    The second angle is relative to the first link, hence cos(1 + 2).
    """
    first, second = spec["links"]
    sin1, sin2, cos1, cos2 = (next_obs[:, i] for i in range(1, 5))
    height = first * cos1 + second * (cos1 * cos2 - sin1 * sin2)
    return torch.le(height, float(spec["height"]))


def _never(next_obs: Tensor, spec: Mapping[str, Any]) -> Tensor:
    return torch.zeros(next_obs.shape[0], dtype=torch.bool, device=next_obs.device)


def _outside(next_obs: Tensor, spec: Mapping[str, Any]) -> Tensor:
    return ~_all_within(next_obs, spec)


_KINDS = {"never": _never, "outside": _outside, "inside": _all_within, "tip_height": _tip_height}


@dataclass(frozen=True)
class _Rule:
    """What a spec stands for; a class, since models are pickled and copied."""

    spec: Mapping[str, Any]

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return _KINDS[self.spec["kind"]](next_obs, self.spec)


def _rule_of(spec: Mapping[str, Any]) -> TerminationFunction:
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"Unknown termination kind {kind!r}; expected {', '.join(_KINDS)} or "
            "function. The file was written by another version, or is damaged."
        )
    return _Rule(spec)


def termination_from_spec(
    spec: Mapping[str, Any],
    function: TerminationFunction | None = None,
    obs_dim: int | None = None,
) -> Termination:
    """Rebuild a `Termination` from its `spec`; runs no code that the spec brings along.

    :param spec: `Termination.spec`, or what JSON made of it.
    :param function: needed for, and only used with, `{"kind": "function"}`.
    :param obs_dim: S, where it is known: the rule may read no other components.
    :raises ValueError: unknown or damaged spec, one for other observations, or a function is needed
        and none was given.
    """
    if spec.get("kind") == "function":
        if function is None:
            raise ValueError(
                "This world model was made with the termination function "
                f"{spec.get('origin')!r}, which is code and was not saved: pass it again as "
                "termination=f, with f(obs, action, next_obs) -> bool (B,)."
            )
        return Termination(dict(spec), function)
    clean: dict[str, Any] = json.loads(json.dumps(dict(spec)))  # own copy, nothing but data
    termination = Termination(clean, _rule_of(clean))
    try:
        # Wide enough for every rule's components: shows damage now, not in the first rollout.
        highest = max((b["stop"] or b["start"] + 1 for b in clean.get("bounds", ())), default=0)
        probe = torch.zeros(1, 5 + highest if obs_dim is None else obs_dim, device="cpu")
        termination(probe, probe, probe)
    except (KeyError, TypeError, IndexError, OverflowError, RuntimeError) as error:
        raise ValueError(f"Damaged termination spec {reprlib.repr(clean)}: {error!r}.") from error
    return termination


def _automatic(env_id: str | None) -> dict[str, Any]:
    if env_id is None:
        raise ValueError(
            f"The data set names no environment to read the termination from. {_REMEDY}"
        )
    spec, reason = read_environment(env_id)
    if spec is not None:
        return {**spec, "origin": env_id}
    task = task_of_name(env_id)
    # The table stands in for an environment that cannot be built. One that was built and is
    # not Gymnasium's own is not judged by its name, mazes excepted.
    if task is not None and (task == "antmaze" or reason.startswith("it cannot be built")):
        return {**spec_of_task(task), "origin": f"table: {task}"}
    raise ValueError(f"No termination rule for environment {env_id!r}: {reason}. {_REMEDY}")


def make_termination(
    source: str | TerminationFunction | Termination | None, env_id: str | None
) -> Termination:
    """The termination rule of a world model.

    :param source: None or `"auto"`: read from the real environment `env_id` where Gymnasium can
        build it, else from a table by exact name. `"never"`. A task's name (`"hopper"`,
        `"Walker2d-v5"`): the table's rule with the task's default bounds. A function
        `f(obs, action, next_obs) -> bool (B,)` on raw tensors. What this made before.
    :param env_id: Gymnasium id of the real environment, or None if unknown.
    :raises ValueError: no rule is known; the message says what to pass instead.
    """
    if source is None or source == "auto":
        return termination_from_spec(_automatic(env_id))
    if isinstance(source, Termination):
        return source
    if callable(source):
        name = getattr(source, "__qualname__", type(source).__name__)
        return Termination({"kind": "function", "origin": name}, source)
    if source == "never":
        return termination_from_spec({"kind": "never", "origin": "never"})
    task = task_of_name(source) if isinstance(source, str) else None
    if task is None:
        raise ValueError(
            f"Unknown termination {source!r}; known: auto, never, antmaze, "
            f"{', '.join(sorted(TASKS))}. {_REMEDY}"
        )
    return termination_from_spec({**spec_of_task(task), "origin": f"table: {task}"})


@torch.no_grad()
def compare_with_flags(
    termination: Termination, dataset: OfflineDataset, device: torch.device | str = "cpu"
) -> None:
    """Warns where the rule and the terminations of the data are not those of one task.

    Looked at are all terminal rows and `CHECKED_ROWS` that are spread over the data. Rounding to
    float32 moves a row across a limit now and then: up to 3 rows, or 2 % of those that end an
    episode by either, may differ. Data with `goal_terminals`, which end no episode, are left out.

    :param termination: the rule.
    :param dataset: the data.
    :param device: where the rule is evaluated.
    :raises ValueError: as `Termination`.
    """
    if dataset.goal_terminals:
        return
    size = len(dataset)
    spread = spread_rows(size, CHECKED_ROWS)
    rows = np.union1d(spread, np.flatnonzero(dataset.terminations))
    columns = (dataset.observations, dataset.actions, dataset.next_observations)
    parts = []
    for start in range(0, len(rows), CHECKED_ROWS):
        part = rows[start : start + CHECKED_ROWS]
        batch = [torch.as_tensor(column[part], device=device) for column in columns]
        parts.append(termination(*batch).cpu().numpy())
    ruled, flagged = np.concatenate(parts), dataset.terminations[rows]
    in_data, in_rule = int((flagged & ~ruled).sum()), int((ruled & ~flagged).sum())
    if in_data + in_rule <= max(3, 0.02 * int((ruled | flagged).sum())):
        return
    found = f"{int(ruled.sum()):,}" if ruled.any() else "none"
    looked_at = "" if len(rows) == size else f" of the {len(rows):,} looked at"
    message = (
        f"{dataset.name}: {int(flagged.sum()):,} of {size:,} rows are terminal, the termination "
        f"rule ({termination.spec.get('origin')}) says {found}{looked_at}."
    )
    if in_data:
        message += (
            f" {in_data:,} are terminal in the data alone: are these time limits? Flag them as "
            "truncations (timeouts) then."
        )
    if in_rule:
        message += f" {in_rule:,} are so by the rule alone: are terminations missing in the data?"
    warnings.warn(f"{message} Else name the rule of their task (termination=).", stacklevel=3)
