"""Numbers as people read them."""

from __future__ import annotations


def number(value: float | None) -> str:
    """One decimal from 10 on, three digits of smaller ones; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"
