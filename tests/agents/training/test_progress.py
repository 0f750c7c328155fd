"""What a user sees of a running experiment: metrics, time by phase, the time left."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.studies.processes import RunProcesses
from agents.training import progress
from agents.training.progress import (
    EventFiles,
    MetricsHistory,
    PhaseClock,
    ProgressCallback,
    duration,
    on_terminal,
    print_unless_gone,
)
from agents.training.signals import Terminated, terminated_as_interrupted


def test_a_signal_waits_until_the_events_of_a_step_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the writer it could leave the lock of its queue taken."""
    events = EventFiles(str(tmp_path))
    written: list[str] = []

    def add_scalar(name: str, *_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        written.append(name)

    monkeypatch.setattr(events.writer, "add_scalar", add_scalar)
    with terminated_as_interrupted(), pytest.raises(Terminated):
        events.write({"a": 1.0, "b": 2.0}, {"a": (), "b": ()}, 5)
    assert written == ["a", "b"]
    events.close()


def test_the_history_keeps_numbers_by_key() -> None:
    history = MetricsHistory()
    history.write({"a": 1, "b": np.float32(2.0), "c": "text"}, {})
    history.write({"a": 3}, {})
    assert history.series("a") == [1.0, 3.0]
    assert history.series("b") == [2.0]
    assert history.series("c") == []
    assert history.latest == {"a": 3}
    again = MetricsHistory(json.loads(json.dumps(history.packed())))
    assert again.rows == history.rows == [{"a": 1, "b": 2.0}, {"a": 3}]


def test_the_clock_adds_up_what_comes_again() -> None:
    clock = PhaseClock({"data": 2.0})
    for _ in range(2):
        with clock.phase("fit"):
            pass
    clock.lap(None)
    clock.lap("agent")
    report = clock.report()
    assert set(report) == {"data", "fit", "agent", "total"}
    assert report["data"] == 2.0
    assert report["total"] >= 2.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (0.2, "0:00")]
)
def test_durations_are_read_as_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_reader_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adv-worldmodel train ... 2>&1 | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        bar = ProgressCallback(3, lambda: 3, lambda: "")
        bar._on_training_end()
        RunProcesses({}, 1, progress=True).say("a line")
        with pytest.raises(BrokenPipeError):
            print("a line", flush=True)


def test_without_stderr_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adv-worldmodel train ... 2>&-`."""
    monkeypatch.setattr(sys, "stderr", None)
    assert not on_terminal()
    bar = ProgressCallback(3, lambda: 3, lambda: "")
    bar._on_training_start()
    bar._on_training_end()


def test_the_time_left_is_that_of_the_iterations_since_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was resumed at 1000 of 2000 and does one in a minute needs 990 more."""
    now, done = [0.0], [1000]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressCallback(2000, lambda: done[0], lambda: "")
    bar._on_training_start()
    bar._on_rollout_start()  # nothing is known yet
    now[0], done[0] = 600.0, 1010
    bar._on_rollout_start()
    assert capsys.readouterr().err == "iteration 1010/2000, 16:30:00 left, \n"


class Gone(io.StringIO):
    """A terminal that has been closed, or a disk that is full."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_terminal_that_is_gone_stops_nothing(number: int) -> None:
    print_unless_gone("a line", Gone(number))


def test_a_name_that_the_terminal_cannot_show_is_spelt_out() -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii")
    print_unless_gone("feh\u00fc.npz: 1", terminal)
    assert raw.getvalue() == b"feh\\xfc.npz: 1\n"
