"""What the commands have in common: errors of one line, results, and numbers."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROG = "adv-worldmodel"


@contextmanager
def user_input() -> Iterator[None]:
    """Turn the errors that the user's input causes into one line on stderr and exit code 2.

    Wrap only the reading and checking of input: a ValueError from further inside is a bug, and its
    traceback is needed.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        from adv_worldmodel.errors import one_line  # torch comes with it

        print(f"{PROG}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def no_input(what: str) -> Iterator[None]:
    """The reverse, within `user_input`: a ValueError from here keeps its traceback.

    :param what: fails, for the message.
    :raises RuntimeError: in place of a ValueError or an OSError.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{what} failed") from error


def print_result(text: str) -> None:
    """Print what a command was called for; exit code 1 where that cannot be written.

    Nothing is wrong where nobody reads any more (`... | head`).
    """
    from agents.training.progress import print_now  # torch comes with it

    try:
        print_now(text)
    except BrokenPipeError:
        pass
    except OSError as error:  # a full disk behind `> FILE`
        print(f"{PROG}: error: cannot write the result: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


def positive(text: str) -> int:
    """The type of an option that is a whole number of at least 1."""
    return _whole(text, 1)


def seed(text: str) -> int:
    """The type of an option that is a seed: a whole number that NumPy takes, as the setting is."""
    return _whole(text, 0, 2**32 - 1)


def not_negative(text: str) -> float:
    """The type of an option that is a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text!r}")
    return number


def _whole(text: str, least: int, most: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}, got {text!r}"
        )
    if most is not None and number > most:
        raise argparse.ArgumentTypeError(f"expected a whole number of at most {most}, got {text!r}")
    return number
