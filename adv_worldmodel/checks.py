"""Checks that several classes make of their arguments: ValueError of one line, by the name."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any


def check_whole(*, at_least: int | None = None, **counts: Any) -> None:
    """Counts are whole numbers, NumPy's as well, and no truth values."""
    for name, value in counts.items():
        try:
            if isinstance(value, bool):
                raise TypeError
            operator.index(value)
        except TypeError:
            raise ValueError(f"{name} = {value!r}: expected a whole number") from None
        if at_least is not None and value < at_least:
            raise ValueError(f"{name} = {value} must be at least {at_least}")


def check_finite(**numbers: Any) -> None:
    """Rates and weights are finite and not negative."""
    for name, number in numbers.items():
        if not (isinstance(number, Real) and 0.0 <= float(number) < math.inf):  # so is NaN refused
            raise ValueError(f"{name} = {number!r} must be a finite number of at least 0")


def check_shares(**shares: Any) -> None:
    """Shares, of a batch or of what is kept, lie in [0, 1]."""
    for name, share in shares.items():
        if not (isinstance(share, Real) and 0.0 <= float(share) <= 1.0):
            raise ValueError(f"{name} = {share!r} must lie between 0 and 1")
