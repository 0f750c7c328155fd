"""What the commands have in common: one-line errors, exit codes, an orderly end."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agents.run_folder import raise_terminated

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
        message = " ".join(str(error).split())
        print(f"{PROG}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM (a scheduler's stop) end the run as Ctrl-C does, with its files written."""
    if threading.current_thread() is not threading.main_thread():  # signals are not ours to set
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def positive(text: str) -> int:
    """The type of an option that is a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """The type of an option that is a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}, got {text!r}"
        )
    return number
