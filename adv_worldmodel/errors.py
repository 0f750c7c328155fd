"""Errors of others, as part of a message of ours."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """All that the error says, in one line; the name of its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of it, without the full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
