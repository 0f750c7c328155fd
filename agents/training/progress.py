"""What a user sees of a running experiment: metrics, time by phase, a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat
from tqdm import tqdm

from agents.training.signals import signals_held

#: Seconds from one plain line of progress to the next.
LINE_EVERY = 15.0


def print_unless_gone(line: str, file: TextIO | None = None) -> None:
    """Print a line (default: to stdout), and go on where nobody reads any more (`... | head`)."""
    with suppress(OSError):  # also where the terminal is gone, or the disk full
        print_now(line, file)


def print_now(line: str, file: TextIO | None = None) -> None:
    """Print a line (default: to stdout); OSError where it cannot be written."""
    try:
        print(line, file=file, flush=True)
    except UnicodeEncodeError:  # a name that the terminal cannot show
        print(line.encode("ascii", "backslashreplace").decode(), file=file, flush=True)


def on_terminal() -> bool:
    """Whether stderr is a terminal, on which bars can be drawn; it may be closed (`2>&-`)."""
    return sys.stderr is not None and sys.stderr.isatty()


class EventFiles(TensorBoardOutputFormat):
    """TensorBoard's events; Ctrl-C and SIGTERM take effect between two of its writes.

    One that broke into the queue of its thread would leave the queue's lock taken, and
    :meth:`close` waiting for it for ever.
    """

    def __init__(self, folder: str) -> None:
        with signals_held():
            super().__init__(folder)

    def write(self, *args: Any, **kwargs: Any) -> None:
        """One step's metrics."""
        with signals_held():
            super().write(*args, **kwargs)


class MetricsHistory(KVWriter):
    """A Stable-Baselines3 logger output that keeps every dumped number in memory, by key.

    A run has thousands of rows with two or three different sets of keys: a row is kept as its
    values alone, behind the number of its set.

    :param packed: dumps before this one was made, from `packed`.
    """

    def __init__(self, packed: Mapping[str, Any] | None = None) -> None:
        before = packed or {"keys": [], "rows": []}
        self._places = {tuple(keys): place for place, keys in enumerate(before["keys"])}
        self._rows: list[list[Any]] = list(before["rows"])

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append the scalars of one dump."""
        numbers = (int, float, np.number)
        kept = {key: value for key, value in key_values.items() if isinstance(value, numbers)}
        place = self._places.setdefault(tuple(kept), len(self._places))
        self._rows.append([place, *(v if isinstance(v, int) else float(v) for v in kept.values())])

    def close(self) -> None:
        """Keep the rows: there is no file to close."""

    def _by_key(self, rows: Iterable[list[Any]]) -> list[dict[str, float]]:
        keys = list(self._places)
        return [dict(zip(keys[place], values, strict=True)) for place, *values in rows]

    @property
    def rows(self) -> list[dict[str, float]]:
        """All dumps, by key."""
        return self._by_key(self._rows)

    @property
    def latest(self) -> dict[str, float]:
        """The last dump; nothing before the first."""
        return next(iter(self._by_key(self._rows[-1:])), {})

    def packed(self) -> dict[str, Any]:
        """All dumps up to now, as JSON can hold them, and as the constructor takes them."""
        return {"keys": [list(keys) for keys in self._places], "rows": list(self._rows)}

    def series(self, key: str) -> list[float]:
        """Return the values of `key` in the order of the dumps that had it."""
        columns = [keys.index(key) + 1 if key in keys else 0 for keys in self._places]
        return [row[column] for row in self._rows if (column := columns[row[0]])]


class PhaseClock:
    """Wall-clock seconds by phase; a phase may come again and adds up.

    :param before: phases that were over when the clock was made.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(before or {})
        now = time.perf_counter()
        self._started, self._last = now - sum(self.seconds.values()), now

    def lap(self, name: str | None) -> None:
        """Count the time since the last lap as `name` (None: as no phase)."""
        now = time.perf_counter()
        if name is not None:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def report(self) -> dict[str, float]:
        """Return the seconds by phase, rounded to ms, and `total`, what lies between included."""
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        return {**seconds, "total": round(time.perf_counter() - self._started, 3)}


class LapCallback(BaseCallback):
    """Tell a `PhaseClock` that the time until this callback's place in the list was `phase`.

    Between two callbacks of one list there is no hook: the seconds that the callbacks before this
    one took at a rollout's start (and at training's end) are those since the last lap. With
    `rollout=True` the end of the rollout closes a lap "rollout" as well.
    """

    def __init__(self, clock: PhaseClock, phase: str, *, rollout: bool = False) -> None:
        super().__init__()
        self._clock = clock
        self._phase = phase
        self._rollout = rollout

    def _on_training_start(self) -> None:
        self._clock.lap(None)

    def _on_rollout_start(self) -> None:
        self._clock.lap(self._phase)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._rollout:
            self._clock.lap("rollout")

    def _on_training_end(self) -> None:
        self._clock.lap(self._phase)


class ProgressCallback(BaseCallback):
    """Show how many iterations are done, the time left and the current return.

    On a terminal that is a bar on stderr; elsewhere (a log file, a CI) one plain line every
    `LINE_EVERY` seconds and one at the end.

    :param total: iterations of the whole run.
    :param finished: returns the number of iterations that are done.
    :param note: returns a short text shown beside the bar, for example the last evaluation.
    """

    def __init__(
        self,
        total: int,
        finished: Callable[[], int],
        note: Callable[[], str],
    ) -> None:
        super().__init__()
        self._total = total
        self._finished = finished
        self._note = note
        self._bar: tqdm[Any] | None = None
        self._before = 0
        self._started = self._last_line = time.monotonic()

    def _on_training_start(self) -> None:
        self._started = self._last_line = time.monotonic()
        self._before = self._finished()
        if on_terminal():
            self._bar = tqdm(
                total=self._total,
                initial=self._before,
                desc="RAMBO",
                unit="it",
                file=sys.stderr,
            )

    def _on_rollout_start(self) -> None:
        self._show(last=False)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._show(last=True)
        self.close()

    def close(self) -> None:
        """Leave the terminal on a fresh line; also after an interrupt. May be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, *, last: bool) -> None:
        done, note = self._finished(), self._note()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.n = done
            self._bar.refresh()
            return
        now = time.monotonic()
        if not last and (done == self._before or now - self._last_line < LINE_EVERY):
            return
        self._last_line = now
        here = max(done - self._before, 1)  # a run that was resumed did the others earlier
        left = (now - self._started) / here * (self._total - done)
        when = "done" if done >= self._total else f"{duration(left)} left"
        print_unless_gone(f"iteration {done}/{self._total}, {when}, {note}", sys.stderr)


def duration(seconds: float) -> str:
    """Return `seconds` as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
