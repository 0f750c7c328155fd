"""Runs at the same time, each in a process of its own that writes an ordinary run folder.

`concurrent.futures` has no such pool: when one of its processes is killed (for its memory, say), it
fails all runs that are left, and it cannot ask a run to write its checkpoint and end.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from adv_worldmodel.errors import one_line
from agents.studies.mps import mps_if_possible
from agents.studies.run_groups import setting_text
from agents.training.atomic_files import write_json, write_text
from agents.training.config import TrainConfig, dump_config
from agents.training.config_files import absolute_source
from agents.training.divergence import DivergenceError
from agents.training.experiment import prepare, run
from agents.training.preparation import Preparation
from agents.training.progress import LINE_EVERY, duration, print_unless_gone
from agents.training.resumption import FREE, Resumption, prepare_resumption
from agents.training.run_folder import FolderInUseError, RunFolder

__all__ = ["ON_ONE_GPU", "RunProcesses", "folder_of", "shared_out"]

#: Runs that share a GPU unless more are asked for: each has its own context and data there.
ON_ONE_GPU = 5
#: Seconds that an interrupted run has to write its files.
GRACE = 120.0
#: Seconds after which a run that has not ended is asked once more.
ASK_AGAIN = 15.0


class RunProcesses:
    """The processes of several runs, from the first start to the last end.

    A run that fails does not stop the others; why it failed stands in its `result.json`, also where
    it could not say so itself.

    :param configs: of one run each, by the name under which it is reported; `out` is its run
        folder.
    :param at_once: how many run at the same time.
    :param progress: print what the runs do.
    :param on_cuda: they share an NVIDIA GPU, side by side where its MPS can be had.
    """

    def __init__(
        self,
        configs: Mapping[str, TrainConfig],
        at_once: int,
        progress: bool,
        *,
        on_cuda: bool = False,
    ) -> None:
        self.configs, self.at_once, self.progress = configs, at_once, progress
        self.share_a_gpu = on_cuda and min(at_once, len(configs)) > 1
        self.processes: dict[str, SpawnProcess] = {}
        self._receivers: dict[str, Connection] = {}
        self._began: dict[str, float] = {}  # by the clock of files
        self._refused: dict[str, str] = {}  # why a run could not begin or go on
        self.reported: set[str] = set()
        self.stopping = False
        self.started = self.last_line = time.monotonic()

    def say(self, line: str) -> None:
        if self.progress:
            print_unless_gone(line)

    def run(self) -> None:
        """Run them all, in their order; on Ctrl-C let them write their files, and pass it on."""
        with mps_if_possible() if self.share_a_gpu else nullcontext() as reason:
            if self.share_a_gpu:
                how = "side by side, by MPS" if reason is None else f"in turn: no MPS ({reason})"
                self.say(f"GPU          shared {how}")
            self._run_all()

    def _run_all(self) -> None:
        try:
            waiting = list(self.configs)
            while waiting or self._running():
                while waiting and len(self._running()) < self.at_once:
                    self._start(waiting.pop(0))
                wait([process.sentinel for process in self._running().values()], timeout=1.0)
                self._report()
            self._report()  # on a process that ended since
        except BaseException:  # also an error of this process: they have hours to lose
            self.stopping = True
            self._stop()
            raise
        finally:
            self._kill()

    def results(self) -> dict[str, dict[str, Any]]:
        """`result.json` by name; empty where there is none."""
        return {name: self._result(name) for name in self.configs}

    def errors(self) -> dict[str, str]:
        """Why runs did not finish, by name."""
        errors = {name: self._error(name) for name in self.configs}
        return {name: error for name, error in errors.items() if error is not None}

    def _running(self) -> dict[str, SpawnProcess]:
        return {name: process for name, process in self.processes.items() if process.is_alive()}

    def _start(self, name: str) -> None:
        # spawn: a fork would share what CUDA has set up in this process
        context = multiprocessing.get_context("spawn")
        self._receivers[name], sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_one, args=(self.configs[name], sender), name=name)
        self._began[name] = time.time()
        with _ctrl_c_is_for_this_process():
            process.start()
        sender.close()
        self.processes[name] = process

    def _report(self) -> None:
        """Say who has ended since, and now and then how far the others are."""
        for name, process in self.processes.items():
            if name in self.reported or process.is_alive():
                continue
            self.reported.add(name)
            self._receive(name, process.exitcode)
            self.say(f"{name:<12} {self._error(name) or 'finished'}")
        now = time.monotonic()
        if self.progress and now - self.last_line >= LINE_EVERY and (left := self._running()):
            self.last_line = now
            done = ", ".join(f"{name} {self._iterations(name)}" for name in left)
            print_unless_gone(f"iterations: {done}; {duration(now - self.started)}", sys.stderr)

    def _receive(self, name: str, exit_code: int | None) -> None:
        """Take down why a run did not end as it should, where it could not write that itself."""
        status = self._result(name).get("status", "running")
        error, in_use = None, False
        with suppress(EOFError, OSError), self._receivers.pop(name) as receiver:
            error, in_use = receiver.recv()
        if error is not None and (in_use or status == "finished"):
            self._refused[name] = error  # what lies there is not this run's to change
            return
        killed = f"its process ended with exit code {exit_code}"  # or it ran out of memory
        if error is None and exit_code != 0 and status == "finished" and self._is_old(name):
            self._refused[name] = killed
            return
        if error is None and status == "running":
            error = killed
        if error is not None:
            with suppress(OSError):  # a full disk, a folder that is gone: the others go on
                _record_failure(self.configs[name], error)

    def _is_old(self, name: str) -> bool:
        """Whether the result is that of a run before this process, which was to go on with it."""
        return folder_of(self.configs[name]).result.stat().st_mtime < self._began[name]

    def _iterations(self, name: str) -> str:
        """How many of the run's iterations are done."""
        rows = folder_of(self.configs[name]).iterations_logged()
        iterations = self.configs[name].iterations
        return f"{min(rows, iterations)}/{iterations}"  # the last evaluation has a row of its own

    def _result(self, name: str) -> dict[str, Any]:
        return folder_of(self.configs[name]).result_or_nothing()

    def _error(self, name: str) -> str | None:
        """Why the run of an ended process did not finish; None if it did."""
        if name not in self.processes:
            return "not started"
        if name in self._refused:
            return self._refused[name]
        result = self._result(name)
        status = result.get("status", "running")
        if status == "running":
            return "interrupted" if self.stopping else "running"
        return None if status == "finished" else f"{status}: {result['error']}"

    def _stop(self) -> None:
        """Ask the runs to write their files and end; a second Ctrl-C does not wait for them."""
        until = time.monotonic() + GRACE
        while self._running() and time.monotonic() < until:
            for process in self._running().values():
                process.terminate()  # again, where Python lost the first (raised in a destructor)
            again = time.monotonic() + ASK_AGAIN
            while (left := self._running()) and time.monotonic() < again:
                wait([process.sentinel for process in left.values()], timeout=1.0)

    def _kill(self) -> None:
        """End what has not ended by itself."""
        for process in self._running().values():
            process.kill()
            process.join()


def shared_out(
    n_runs: int, *, on_gpu: bool, jobs: int | None = None, n_threads: int | None = None
) -> tuple[int, int]:
    """How many of `n_runs` run at once, and torch's CPU threads of each.

    :param on_gpu: whether they share a GPU.
    :param jobs: runs at once, if the user says; else one per core, on a GPU at most `ON_ONE_GPU`.
    :param n_threads: threads, if the user says; else the cores by the runs at once.
    """
    available = cores()
    most = min(available, ON_ONE_GPU) if on_gpu else available
    at_once = min(jobs or most, n_runs)
    return at_once, n_threads or max(1, available // at_once)


def cores() -> int:
    """Cores that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def folder_of(config: TrainConfig) -> RunFolder:
    """The run folder that `out` names."""
    assert config.out is not None
    return RunFolder(Path(config.out))


@contextmanager
def _ctrl_c_is_for_this_process() -> Iterator[None]:
    """Processes started here do not hear a terminal's Ctrl-C: this process ends them in order."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_one(config: TrainConfig, sender: Connection) -> None:
    """The process of one run; what goes wrong stands in its `result.json`.

    :param sender: told of a run that cannot begin or go on, or whose files cannot be written: why,
        and whether another process is at work in its folder.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = multiprocessing.current_process().name
    warnings.formatwarning = lambda message, *_, **__: f"warning: {name}: {one_line(message)}\n"
    try:
        try:
            prepared, resumption = _prepare(config)
        except (ValueError, OSError) as error:  # a data set that is not there, and the like
            sender.send((one_line(error), isinstance(error, FolderInUseError)))
            raise SystemExit(1) from None
        try:
            run(prepared, progress=False, resumption=resumption)
        except (OSError, FolderInUseError) as error:  # a full disk, another run at work there
            sender.send((one_line(error), isinstance(error, FolderInUseError)))
            raise SystemExit(1) from None
    except (DivergenceError, FloatingPointError):
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(130) from None


def _prepare(config: TrainConfig) -> tuple[Preparation, Resumption | None]:
    """A run that its folder holds already goes on."""
    folder = folder_of(config)
    if folder.config.is_file():
        changing = [key for key in FREE if key != "name"]
        now = [f"{key}={setting_text(getattr(config, key))}" for key in changing]
        dataset = absolute_source(config.dataset)  # it may have moved since
        now.append(f"dataset={json.dumps(dataset, ensure_ascii=False)}")
        return prepare_resumption(folder.path, now)
    return prepare(config), None


def _record_failure(config: TrainConfig, error: str) -> None:
    """Give a run that could not do it a `result.json` that says why it failed."""
    folder = folder_of(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    written = folder.result_or_nothing()
    if not folder.config.is_file():
        own = dataclasses.replace(config, dataset=absolute_source(config.dataset), out=None)
        write_text(folder.config, dump_config(own))
    unknown = {"env_id": None, "iterations": 0, "return_mean": None, "score": None}
    known = {"dataset": config.dataset, "seed": config.seed}
    write_json(folder.result, {**unknown, **known, **written, "status": "failed", "error": error})
