"""Several seeds of one experiment at the same time, each a run in a process of its own.

The processes share the GPU, or the cores: on a CPU each gets `cores // seeds` threads (at least
one) and no more run at once than there are cores. Each writes an ordinary run folder
`<out>/seed-<s>`, whose `config.yaml` reruns that seed alone.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.divergence import DivergenceError
from agents.experiment import train
from agents.preparation import prepare
from agents.progress import duration
from agents.results import seeds_table
from agents.run_folder import RunFolder, new_run_folder

__all__ = ["SeedRuns", "SeedsPlan", "prepare_seeds", "run_seeds", "train_seeds"]

#: Seconds from one line of progress to the next.
LINE_EVERY = 15.0
#: Seconds that an interrupted run has to write its files.
GRACE = 120.0
#: Seconds after which a run that has not ended is asked once more.
ASK_AGAIN = 15.0


@dataclass(frozen=True)
class SeedsPlan:
    """What `run_seeds` does; nothing in it depends on the user's input being right any more."""

    config: TrainConfig  #: as the user gave it
    seeds: range
    n_threads: int  #: torch's CPU threads of each process
    at_once: int  #: processes that run at the same time

    def of_seed(self, seed: int, folder: Path) -> TrainConfig:
        """The configuration of one run inside `folder`."""
        out, n_threads = str(folder / f"seed-{seed}"), self.n_threads
        return dataclasses.replace(self.config, seed=seed, seeds=None, out=out, n_threads=n_threads)


@dataclass(frozen=True)
class SeedRuns:
    """What came of it."""

    folder: Path  #: holds the run folders `seed-<s>`
    results: dict[int, dict[str, Any]]  #: `result.json`; empty for a run that wrote none
    errors: dict[int, str]  #: why a run did not finish


def train_seeds(config: TrainConfig, *, progress: bool = True) -> SeedRuns:
    """Train `config.seeds` runs, seeds `config.seed` and up, at the same time.

    A script that calls this needs the guard `if __name__ == "__main__":`, as always where Python
    starts processes: each imports the script anew.

    Prints, unless `progress` is False, what the runs do, a table at the end, and the folder.

    Raises:
        ValueError, FileNotFoundError: as `agents.experiment.train`, before anything is written.
        KeyboardInterrupt: passed on when all runs have ended and their files are written.
    """
    return run_seeds(prepare_seeds(config), progress=progress)


def prepare_seeds(config: TrainConfig) -> SeedsPlan:
    """Read and check, once, all that `config` names; see `agents.preparation.prepare`."""
    n = config.seeds or 1
    prepared = prepare(dataclasses.replace(config, seeds=None))
    cores = _cores()
    return SeedsPlan(
        config,
        range(config.seed, config.seed + n),
        config.n_threads or max(1, cores // n),
        min(n, cores) if prepared.device.type == "cpu" else n,
    )


def run_seeds(plan: SeedsPlan, *, progress: bool = True) -> SeedRuns:
    """Run a checked plan; see `train_seeds`."""
    folder = new_run_folder(plan.config.out, plan.config.name, "seeds").path
    runs = _Runs(plan, folder, progress)
    try:
        runs.run()
    except KeyboardInterrupt:
        runs.stop()
        raise
    finally:
        runs.kill()
        found = runs.found()
        for line in [*seeds_table(found.results, found.errors), str(folder)]:
            runs.say(line)
    return found


class _Runs:
    """The processes, from the first start to the last end."""

    def __init__(self, plan: SeedsPlan, folder: Path, progress: bool) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.processes: dict[int, SpawnProcess] = {}
        self.reported: set[int] = set()
        self.started = self.last_line = time.monotonic()

    def say(self, line: str) -> None:
        if self.progress:
            print(line, flush=True)

    def running(self) -> dict[int, SpawnProcess]:
        return {seed: p for seed, p in self.processes.items() if p.is_alive()}

    def run(self) -> None:
        """Start them as places become free, until the last has ended."""
        plan = self.plan
        threads = f"{plan.n_threads} thread" + ("s" if plan.n_threads > 1 else "")
        self.say(f"seeds        {plan.seeds[0]} to {plan.seeds[-1]}, {plan.at_once} at once,")
        self.say(f"             each in a process of its own on {threads}")
        waiting = list(plan.seeds)
        while waiting or self.running():
            while waiting and len(self.running()) < plan.at_once:
                self.start(waiting.pop(0))
            wait([p.sentinel for p in self.running().values()], timeout=1.0)
            self.report()

    def start(self, seed: int) -> None:
        # spawn: a fork would share what CUDA has set up in this process
        process = multiprocessing.get_context("spawn").Process(
            target=_run_one, args=(self.plan.of_seed(seed, self.folder),), name=f"seed-{seed}"
        )
        with _ctrl_c_is_for_this_process():
            process.start()
        self.processes[seed] = process

    def report(self) -> None:
        """Say who has ended since, and now and then how far the others are."""
        for seed, process in self.processes.items():
            if seed in self.reported or process.is_alive():
                continue
            self.reported.add(seed)
            error = self.error(seed)
            self.say(f"seed {seed:<7} {'finished' if error is None else error}")
        now = time.monotonic()
        if self.progress and now - self.last_line >= LINE_EVERY and (left := self.running()):
            self.last_line = now
            total = self.plan.config.iterations
            done = ", ".join(f"seed {s} {_rows(self.folder_of(s).progress)}" for s in left)
            line = f"iterations of {total}: {done}; {duration(now - self.started)}"
            print(line, file=sys.stderr, flush=True)

    def folder_of(self, seed: int) -> RunFolder:
        return RunFolder(self.folder / f"seed-{seed}")

    def error(self, seed: int) -> str | None:
        """Why the run of an ended process did not finish; None if it did."""
        process, result = self.processes.get(seed), self.result(seed)
        if process is None:
            return "not started"
        status = result.get("status", "running")
        if process.exitcode == 0 and status == "finished":
            return None
        if status == "running":  # it could not say so itself: killed, or out of memory
            return f"failed: its process ended with exit code {process.exitcode}"
        return f"{status}: {result['error']}"

    def result(self, seed: int) -> dict[str, Any]:
        try:
            return self.folder_of(seed).read_result()
        except (FileNotFoundError, ValueError):
            return {}

    def stop(self) -> None:
        """Ask the runs to write their files and end; a second Ctrl-C does not wait for them."""
        until = time.monotonic() + GRACE
        while self.running() and time.monotonic() < until:
            for process in self.running().values():
                process.terminate()  # again, where Python lost the first (raised in a destructor)
            again = time.monotonic() + ASK_AGAIN
            while (left := self.running()) and time.monotonic() < again:
                wait([process.sentinel for process in left.values()], timeout=1.0)

    def kill(self) -> None:
        """End what has not ended by itself."""
        for process in self.running().values():
            process.kill()
            process.join()

    def found(self) -> SeedRuns:
        errors = {seed: self.error(seed) for seed in self.plan.seeds}
        return SeedRuns(
            self.folder,
            {seed: self.result(seed) for seed in self.plan.seeds},
            {seed: error for seed, error in errors.items() if error is not None},
        )


def _rows(path: Path) -> int:
    """Rows of a CSV file with a header, 0 before there is one."""
    with suppress(OSError), path.open(encoding="utf-8") as file:
        return max(0, sum(1 for _ in file) - 1)
    return 0


def _cores() -> int:
    """Cores that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


@contextmanager
def _ctrl_c_is_for_this_process() -> Iterator[None]:
    """Processes started here do not hear a terminal's Ctrl-C: this process ends them in order."""
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_one(config: TrainConfig) -> None:
    """The process of one seed; what goes wrong stands in its `result.json`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        train(config, progress=False)
    except (DivergenceError, FloatingPointError):
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(130) from None
