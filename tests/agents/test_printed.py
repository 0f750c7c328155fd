"""Numbers as people read them."""

from __future__ import annotations

import pytest

from agents.printed import number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0.0"), (-149.53, "-149.5"), (10.0, "10.0"), (9.876, "9.88"),
        (-0.000839, "-0.000839"), (12345.67, "12345.7"),
    ],
)  # fmt: skip
def test_small_numbers_keep_their_digits(value: float | None, text: str) -> None:
    assert number(value) == text
