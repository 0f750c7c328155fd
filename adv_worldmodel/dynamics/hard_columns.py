"""Columns of data that a fit will hardly learn, and that are easily mended: warnings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from adv_worldmodel.dynamics.world_model import SMALLEST_STD

#: Rows from which on one should not make the scale, and the share of the variance that does.
ROWS_OF_A_SCALE, OUTLIER_SHARE = 100, 1.0 / 3.0
#: Shares of a dimension's range: the changes of an angle that wraps lie below the first or above
#: the second. Values by which it differs from a switch.
WRAPPING, VALUES_OF_A_SWITCH = (0.3, 0.7), 20


def warn_of_columns(
    name: str, obs: Tensor, action: Tensor, changes: Tensor, reward: Tensor | None
) -> None:
    """Warn of units, single rows and angles with which a fit will not get far.

    :param name: of the data, whose columns are raw.
    :param changes: of the states, ``(N, S)``.
    :param reward: ``(N,)``; None where no model learns it.
    """
    columns = {"observations": obs, "actions": action}
    if reward is not None:
        columns["rewards"] = reward.unsqueeze(1)
    for key, rows in columns.items():
        _warn_of_tiny_units(name, key, rows, rows)
    by_step = "next_observations - observations"
    still = obs.std(dim=0, correction=0) < SMALLEST_STD  # whose changes are tiny as well
    _warn_of_tiny_units(name, by_step, changes.masked_fill(still, 0.0), obs)
    _warn_of_outliers(name, columns | {by_step: changes})
    _warn_of_wrapping(name, obs, changes)


def _warn_of_tiny_units(name: str, key: str, rows: Tensor, rounded: Tensor) -> None:
    """Warn of what counts as constant by its spread, though that is more than rounding.

    :param name: of the data.
    :param key: of the column.
    :param rows: raw, ``(N, D)``.
    :param rounded: what they were rounded as, ``(N, D)``: themselves, or what they are of.
    """
    spread = rows.std(dim=0, correction=0)
    rounding = torch.finfo(torch.float32).eps * rounded.abs().amax(dim=0)
    tiny = (spread < SMALLEST_STD) & (spread > 4 * rounding)
    for i in tiny.nonzero().flatten().tolist():
        warnings.warn(
            f"{name}: '{key}' dimension {i} varies by {float(spread[i]):.2g} only and counts "
            "as constant: if it means anything, give it in a smaller unit",
            stacklevel=4,
        )


def _warn_of_outliers(name: str, columns: Mapping[str, Tensor]) -> None:
    """Warn of single rows that make the scale of a dimension, in which the others are alike.

    :param name: of the data.
    :param columns: by name, raw, ``(N, D)``.
    """
    dimensions = ((k, i, rows[:, i]) for k, rows in columns.items() for i in range(rows.shape[1]))
    for key, i, values in dimensions:
        if len(values) < ROWS_OF_A_SCALE:
            return
        values = values.double()
        squares = values.sub_(values.mean()).square_()
        greatest, row = squares.max(dim=0)
        if greatest > OUTLIER_SHARE * squares.sum() and squares.mean() > SMALLEST_STD**2:
            warnings.warn(
                f"{name}: row {int(row)} alone makes the scale of '{key}' dimension {i}, "
                f"{float(greatest.sqrt()):.3g} from the mean: the model will hardly tell the other "
                "rows apart; if it is an error, leave it out",
                stacklevel=4,
            )


def _warn_of_wrapping(name: str, obs: Tensor, changes: Tensor) -> None:
    """Warn of dimensions that now and then jump from one end of their range to the other.

    :param name: of the data.
    :param obs: raw, ``(N, S)``.
    :param changes: of the states, ``(N, S)``.
    """
    near, far = WRAPPING
    span = obs.amax(dim=0) - obs.amin(dim=0)
    sizes = changes.abs()
    n_far = (sizes > far * span).sum(dim=0)
    n_between = (sizes > near * span).sum(dim=0) - n_far
    wraps = (span > SMALLEST_STD) & (n_far >= 3) & (10 * n_between <= n_far)
    for i in wraps.nonzero().flatten().tolist():
        if len(obs[:10_000, i].unique()) > VALUES_OF_A_SWITCH:
            warnings.warn(
                f"{name}: 'observations' dimension {i} changes by its whole range ({span[i]:.3g}) "
                f"in {int(n_far[i]):,} rows, and hardly ever by half of it: if it is an angle that "
                "wraps, give its sine and cosine instead",
                stacklevel=4,
            )
