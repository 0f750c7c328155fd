"""Checks of arrays that come from outside; every message names the key, the row and the remedy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import ArrayLike, NDArray

from adv_worldmodel.errors import first_line

ACTION_TOLERANCE = 1e-5
"""Share of an action dimension's range by which float error may leave the bounds; clipped."""


def numeric(values: ArrayLike, key: str, where: str) -> NDArray[Any]:
    """`values` as a numeric array of any shape; ValueError for anything but real numbers.

    Masked numbers are none: what lies under a mask is whatever was there.
    """
    if np.ma.is_masked(values):
        masked = np.argwhere(np.ma.getmaskarray(np.ma.asarray(values)))
        place = f" row {masked[0, 0]}" if masked.shape[1] else ""
        raise ValueError(
            f"{where}: '{key}'{place} is masked ({len(masked):,} masked numbers). Drop these "
            "transitions, or fill in what they are (array.filled)."
        )
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        # ragged nested lists; tensors with gradients, or of a type that NumPy lacks
        raise ValueError(
            f"{where}: '{key}' is not a rectangular array of numbers ({first_line(error)})."
        ) from None
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{where}: '{key}' has dtype {array.dtype}; expected numbers. Convert it to float32."
        )
    return array


def freeze(array: NDArray[Any]) -> None:
    """Make an array that nobody else has read-only, and the one that it is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        owner = owner.base


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """`array` read-only, and a copy if anyone could still write to its memory.

    A copy too of a view that torch cannot take: one that runs backwards, or in parts of a number.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray) and not owner.flags.writeable and owner.base is not None:
        owner = owner.base
    strange = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if strange or not isinstance(owner, np.ndarray) or owner.flags.writeable:
        array = array.copy()
        freeze(array)
    return array


def float_matrix(values: ArrayLike, key: str, where: str) -> NDArray[np.float32]:
    """`values` as finite float32 of shape (N, D), N >= 1, D >= 1."""
    array = numeric(values, key, where)
    if array.ndim != 2 or array.shape[1] == 0:
        if array.ndim == 1:
            remedy = "Give one row per transition, e.g. array.reshape(-1, 1) if each is one number."
        else:
            remedy = "Flatten what belongs to one transition, e.g. array.reshape(len(array), -1)."
        raise ValueError(
            f"{where}: '{key}' has shape {array.shape}; expected (rows, dimensions). {remedy}"
        )
    return _finite_float32(array, key, where)


def float_vector(values: ArrayLike, key: str, where: str) -> NDArray[np.float32]:
    """`values` as finite float32 of shape (N,); (N, 1) is taken as (N,)."""
    return _finite_float32(_vector(values, key, where), key, where)


def spread_rows(size: int, most: int) -> NDArray[np.intp]:
    """Rows of `size` that are spread over all, `most` at most, ascending."""
    return np.linspace(0, size - 1, min(size, most)).astype(np.intp)


def warn_of_rounding(
    observations: NDArray[Any],
    next_observations: NDArray[Any],
    where: str,
    rows: NDArray[np.intp] | None = None,
) -> None:
    """Warns where float32 is too coarse for how states change, as with a large offset.

    That is where rounding moves a dimension by more than 1 % of the standard deviation of s' - s,
    or of its size where all changes are alike, as a clock's. 100,000 rows that are spread over the
    data are looked at.

    :param observations: (N, S), as they came, finite.
    :param next_observations: (N, S).
    :param where: how messages call the data.
    :param rows: those that count; None: all.
    """
    if all(np.can_cast(array.dtype, np.float32) for array in (observations, next_observations)):
        return
    size = len(observations if rows is None else rows)
    spread = spread_rows(size, 100_000)
    looked_at = spread if rows is None else rows[spread]
    states = observations[looked_at].astype(np.float64)
    successors = next_observations[looked_at].astype(np.float64)
    steps = successors - states
    error = np.sqrt(np.square(states.astype(np.float32) - states).mean(axis=0))
    # a change that float64 has but from its own rounding is none
    least = 1e-12 * np.maximum(np.abs(states), np.abs(successors)).max(axis=0)
    spread_of_steps, size_of_steps = steps.std(axis=0), np.sqrt(np.square(steps).mean(axis=0))
    change = np.where(spread_of_steps > least, spread_of_steps, size_of_steps)
    real = change > least
    coarse = np.flatnonzero(real & (error > 0.01 * change))
    if coarse.size:
        i = int(coarse[0])
        warnings.warn(
            f"{where}: 'observations' dimension {i} is near {states[:, i].mean():.6g} and changes "
            f"by {change[i]:.3g} a step, but rounding to float32 moves it by {error[i]:.3g} "
            f"({coarse.size} such dimensions). Subtract an offset from it.",
            stacklevel=3,
        )


def warn_of_shuffled(observations: NDArray[np.float32], rows: NDArray[np.intp], where: str) -> None:
    """Warns where a row is no nearer to the next one than to any other, in no dimension.

    The mean square of what independent draws differ by is twice their variance. Says nothing of
    fewer than 100 rows; of more than 100,000 as many are looked at.

    :param observations: (N, S).
    :param rows: those that have a successor, which is the next one.
    :param where: how messages call the data.
    """
    if len(rows) < 100:
        return
    looked_at = rows[spread_rows(len(rows), 100_000)]
    states = observations[looked_at].astype(np.float64)
    steps = np.square(observations[looked_at + 1] - states).mean(axis=0)
    variance = states.var(axis=0)
    moving = variance > np.square(1e-6 * states.mean(axis=0))
    if moving.any() and (steps[moving] > 0.9 * 2.0 * variance[moving]).all():
        warnings.warn(
            f"{where}: no next_observations, and a row is no nearer to the next one than to any "
            "other. If rows were shuffled, what is learnt is wrong: give them in order of time, or "
            "add next_observations.",
            stacklevel=4,
        )


def flag_vector(values: ArrayLike, key: str, where: str) -> NDArray[np.bool_]:
    """`values` as booleans of shape (N,); numbers must be 0 or 1."""
    array = _vector(values, key, where)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"{where}: '{key}' row {row} is {array[row]}; expected true or false (1 or 0)."
        )
    return array.astype(np.bool_)


def same_length(where: str, **lengths: int) -> None:
    """ValueError unless all lengths (key -> rows) equal the first and are not 0."""
    first, rows = next(iter(lengths.items()))
    if rows == 0:
        raise ValueError(
            f"{where}: the data set is empty ('{first}' has 0 rows); expected 1 or more."
        )
    for key, length in lengths.items():
        if length != rows:
            raise ValueError(
                f"{where}: '{key}' has {length} rows but '{first}' has {rows}; "
                "every key needs one row per transition."
            )


def same_width(where: str, key: str, width: int, other: str, expected: int) -> None:
    """ValueError unless the two widths (dimensions per row) are equal."""
    if width != expected:
        raise ValueError(
            f"{where}: '{key}' has {width} dimensions per row but '{other}' has {expected}; "
            "they must be equal."
        )


def flat_box(space: Space[Any], what: str, where: str, *, bounded: bool = True) -> Box:
    """`space` as a flat float32 Box; ValueError for any other kind of space.

    :param bounded: refuse an action space with infinite bounds.
    """
    if not isinstance(space, Box):
        kind = type(space).__name__
        remedy = {
            "Discrete": "Discrete spaces are not supported: use data with continuous values.",
            "Dict": "Flatten it into one vector per row first (e.g. gymnasium.spaces.flatten).",
            "Tuple": "Flatten it into one vector per row first (e.g. gymnasium.spaces.flatten).",
        }.get(kind, "Only flat vectors of real numbers are supported.")
        raise ValueError(f"{where}: the {what} space is {kind}; expected a flat Box. {remedy}")
    if len(space.shape) != 1 or space.shape[0] == 0:
        raise ValueError(
            f"{where}: the {what} space has shape {space.shape}; expected one dimension, (D,). "
            "Flatten it into one vector per row first."
        )
    if what == "action" and not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"{where}: the action space is a Box of {space.dtype}; discrete actions are not "
            "supported. Give a Box of float32 if the actions are continuous."
        )
    with np.errstate(over="ignore"):  # bounds beyond float32 are none
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    if what == "action":
        if bounded and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(
                f"{where}: the action space has infinite bounds (low {low}, high {high}); expected "
                "finite ones. Give action_space= with the real limits (in a file: keys action_low "
                "and action_high, one number per dimension)."
            )
        if not (low < high).all():
            raise ValueError(
                f"{where}: the action space has a dimension without room (low {low}, high {high}); "
                "expected low < high everywhere. Leave that dimension out."
            )
    return Box(low, high, dtype=np.float32)


def continuous(actions: ArrayLike, where: str) -> None:
    """ValueError for actions of a whole-number or boolean type, whose space nothing tells."""
    dtype = numeric(actions, "actions", where).dtype
    if dtype.kind != "f":
        raise ValueError(
            f"{where}: 'actions' has dtype {dtype}, as discrete actions have; those are not "
            "supported. If they are continuous, cast them to float (array.astype(float))."
        )


def actions_in_bounds(
    actions: NDArray[np.float32], space: Box, key: str, where: str
) -> NDArray[np.float32]:
    """Actions (N, A) within `space`: float error up to `ACTION_TOLERANCE` of the range is clipped.

    :raises ValueError: at the first row that lies further outside.
    """
    slack = ACTION_TOLERANCE * (space.high - space.low)
    outside = (actions < space.low - slack) | (actions > space.high + slack)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        count = int(outside.any(axis=1).sum())
        raise ValueError(
            f"{where}: '{key}' row {row} dimension {column} is {actions[row, column]:.6g}, outside "
            f"the bounds [{space.low[column]:.6g}, {space.high[column]:.6g}] ({count} such rows). "
            "Scale the actions into the bounds, or give the bounds they were taken in."
        )
    if not ((actions < space.low) | (actions > space.high)).any():
        return actions
    clipped = np.clip(actions, space.low, space.high)
    freeze(clipped)
    return clipped


def action_box_of(actions: NDArray[np.float32], where: str) -> Box:
    """Bounds for actions (N, A) that come without: [-1, 1] if all fit, else the data's range.

    Warns but where the actions fit [-1, 1] and use more than its inner half, as most data's do,
    each dimension on both sides of 0 and beyond a tenth of it.
    """
    width = actions.shape[1]
    remedy = (
        "Give action_space= (in a file: keys action_low and action_high, one number per dimension) "
        "or the environment's id (env_id=)."
    )
    low, high = actions.min(axis=0), actions.max(axis=0)
    largest = max(-low.min(), high.max())
    doubtful = np.flatnonzero((low >= 0.0) | (high <= 0.0) | (np.maximum(-low, high) < 0.1))
    if largest <= 1.0 + 2.0 * ACTION_TOLERANCE:
        if largest < 0.5:
            warnings.warn(
                f"{where}: no action bounds are known; guessed [-1, 1], though no action goes "
                f"beyond {largest:.6g} in size. {remedy}",
                stacklevel=2,
            )
        elif doubtful.size:
            i = int(doubtful[0])
            warnings.warn(
                f"{where}: no action bounds are known; guessed [-1, 1], though dimension {i} "
                f"stays between {low[i]:.6g} and {high[i]:.6g}. {remedy}",
                stacklevel=2,
            )
        return Box(-1.0, 1.0, (width,), np.float32)
    constant = np.flatnonzero(low >= high)
    if constant.size:
        raise ValueError(
            f"{where}: no action bounds are known and action dimension {int(constant[0])} never "
            f"changes (always {low[constant[0]]:.6g}), so none can be guessed. {remedy}"
        )
    warnings.warn(
        f"{where}: no action bounds are known; guessed the range of the data, [{low.min():.6g}, "
        f"{high.max():.6g}]{'' if width == 1 else ' over all dimensions'}. {remedy}",
        stacklevel=2,
    )
    return Box(low, high, dtype=np.float32)


def _vector(values: ArrayLike, key: str, where: str) -> NDArray[Any]:
    array = numeric(values, key, where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{where}: '{key}' has shape {array.shape}; expected (rows,), one number per row."
        )
    return array


def _finite_float32(array: NDArray[Any], key: str, where: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        result = array.astype(np.float32, copy=False)
    if result is not array:
        freeze(result)  # else `frozen` would copy it again
    if not np.isfinite(result).all():
        wrong = np.argwhere(~np.isfinite(result))
        index = tuple(int(i) for i in wrong[0])
        place = f"row {index[0]}" + (f" dimension {index[1]}" if len(index) > 1 else "")
        rows = len(np.unique(wrong[:, 0]))
        raise ValueError(
            f"{where}: '{key}' {place} is {array[index]}; expected finite float32 numbers "
            f"({rows} such rows). Repair or drop these transitions."
        )
    return result
