"""Ctrl-C and SIGTERM end a run in order, with its files written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back."""


def raise_terminated(*_: object) -> None:
    """A handler of SIGTERM."""
    raise Terminated


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


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect after the block: what it writes is written to the end.

    By handlers, not by a mask: torch's threads would take the signal in the main one's place.
    """
    late: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):  # neither ignored nor the system's default
                handlers[number] = signal.signal(number, lambda n, _: late.append(n))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if late:
        raise Terminated if signal.SIGTERM in late else KeyboardInterrupt
