"""Errors of others, as part of a message of ours."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """All that the error says, in one line; the name of its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of it, without the full stop."""
    return _lines(error)[0].rstrip(".")


def last_line(error: BaseException) -> str:
    """The last line, in which torch says which of many tensors is wrong."""
    return _lines(error)[-1].strip()


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
