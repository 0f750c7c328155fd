"""Checks that several classes make of their arguments."""

from __future__ import annotations

import operator
from typing import Any


def check_whole(**counts: Any) -> None:
    """ValueError of one line, by the argument's name, where a count is no whole number."""
    for name, value in counts.items():
        try:  # also NumPy's integers
            operator.index(value)
        except TypeError:
            raise ValueError(f"{name} = {value!r}: expected a whole number") from None
