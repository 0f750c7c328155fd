"""Checks and measures the fast path on a GPU, in minutes: ``python -m tests.benchmarks.gpu``.

First that replayed CUDA graphs compute what plain calls compute, and that an iteration waits for
the device only where its metrics are read; then, for both paths, the parts and whole iterations of
the paper's setting, and several processes at once, without and with NVIDIA's MPS. The exit code is
0 if all checks passed, 1 if one did not, was left out for lack of time, or something failed, 2
without a GPU; a goal that is missed is shown, no more.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import json
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents.studies.mps import CONTROL, mps
from tests.benchmarks import gpu_speed, workload
from tests.benchmarks.configuration import Configuration, dimensions
from tests.benchmarks.gpu_checks import Check, Trial, run_checks
from tests.benchmarks.gpu_report import speed_text

STAGES = ("checks", "parts", "iterations", "processes", "mps")
Result = dict[str, Any]
#: Seconds after the budget in which processes that have begun may end.
GRACE = 70.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description="Correctness and speed of RAMBO on a CUDA device.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Configuration)}

    def add(name: str, text: str, **kwargs: Any) -> None:
        p.add_argument(name, help=text, **kwargs)

    add("--device", "cuda, cuda:N, or cpu to try the program itself", default="cuda")
    add(
        "--stages", "what to do; mps: the processes once more, with NVIDIA's MPS if it is here",
        nargs="+", choices=STAGES, default=list(STAGES),
    )  # fmt: skip
    add("--tasks", "names or SxA", nargs="+", default=["hopper", "halfcheetah"])
    add("--rows", "of data", type=int, default=1_000_000)
    add("--starts", "rollouts per iteration", type=int, default=50_000)
    add("--updates", "of agent and adversary per iteration", type=int, default=1000)
    for network in ("agent", "model"):
        key = f"{network}_hidden"
        add(f"--{network}-hidden", "widths", nargs="+", type=int, default=list(defaults[key]))
    add("--seconds", "per part and path", type=float, default=3.0)
    add("--iterations", "timed, with graphs", type=int, default=20)
    add("--plain-iterations", "timed, without; 0: none", type=int, default=2)
    add("--processes", "at once", type=int, default=5)
    add("--process-iterations", "timed in each", type=int, default=4)
    add("--budget", "seconds; nothing new is begun after them", type=float, default=400.0)
    date = datetime.datetime.now().astimezone().date()
    add("--out", "JSON file", type=Path, default=Path(f"runs/bench-gpu-{date}.json"))
    return p


def configuration(options: argparse.Namespace, task: str) -> Configuration:
    """The paper's sizes, unless others are asked for."""
    return Configuration(
        task,
        *dimensions(task),
        options.rows,
        starts=options.starts,
        updates=options.updates,
        agent_hidden=tuple(options.agent_hidden),
        model_hidden=tuple(options.model_hidden),
    )


def unusable(device: str) -> str | None:
    """Why nothing can be run on that device; None if it can."""
    if not device.startswith("cuda"):
        return None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"no CUDA device {device!r} here ({reason}): nothing was checked or measured"
    return None


class Bench:
    """The stages in their order, and what they have found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, str(options.device)
        self.started = time.perf_counter()
        self.checks: list[Check] = []
        self.speed: list[Result] = []
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.cuda = self.device.startswith("cuda")
        self.machine = {
            "device": torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        }

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def attempt(self, name: str, stage: Callable[[], Any]) -> Any:
        """The stage's result; None, and a note, where it failed or no time was left for it."""
        if self.elapsed() > self.options.budget:
            self.left_out.append(name)
            return None
        self.write()
        print(f"{self.elapsed():4.0f} s  {name}", file=sys.stderr, flush=True)
        try:
            gc.collect()  # graphs and trials of the stage before are cycles
            if self.cuda:
                torch.cuda.empty_cache()
            return stage()
        except Exception as error:  # no stage takes the others with it: a GPU is there for minutes
            self.failed.append(name)
            print(f"failed: {name}: {error}", file=sys.stderr, flush=True)
            traceback.print_exc()
            return None

    def run(self) -> None:
        """Every stage asked for, on each task; what is right comes before how fast it is."""
        tasks = {task: configuration(self.options, task) for task in self.options.tasks}
        if "checks" in self.options.stages:
            for task, c in tasks.items():
                self.attempt(
                    f"checks, {task}",
                    partial(self.check, c),
                )
        for task, c in tasks.items():
            dataset = workload.gaussian_data(c)
            result: Result = {"task": task, "configuration": dataclasses.asdict(c)}
            self.speed.append(result)
            for path, graphs in (("graphs", True), ("plain", False)):
                if "parts" in self.options.stages:
                    result[f"parts_{path}"] = self.attempt(
                        f"parts, {task}, {path}",
                        partial(
                            gpu_speed.measure_parts,
                            *(c, dataset, self.device),
                            graphs=graphs,
                            seconds=self.options.seconds,
                        ),
                    )
                n = self.options.iterations if graphs else self.options.plain_iterations
                if "iterations" in self.options.stages and n > 0:
                    result[f"iterations_{path}"] = self.attempt(
                        f"iterations, {task}, {path}",
                        partial(self.iterations, c, dataset, graphs, n),
                    )
            if "iterations" in self.options.stages:
                result["beside"] = self.attempt(
                    f"evaluation and checkpoint, {task}",
                    partial(
                        gpu_speed.measure_beside,
                        *(c, dataset, self.device),
                        seconds=self.options.seconds,
                    ),
                )
            for stage, around in (("processes", nullcontext), ("mps", mps)):
                if stage == "mps" and not (self.cuda and shutil.which(CONTROL)):
                    continue
                if stage in self.options.stages and task == self.options.tasks[0]:
                    result[stage] = self.attempt(
                        f"{stage}, {task}",
                        partial(self.processes, c, around),
                    )
            print(speed_text(result), end="\n\n", flush=True)

    def iterations(self, c: Configuration, dataset: Any, graphs: bool, n: int) -> Result:
        """Whole ones, of a new trial."""
        return gpu_speed.measure_iterations(
            Trial.build(c, dataset, self.device, graphs), self.device, n
        )

    def processes(self, c: Configuration, around: Callable[[], Any]) -> Result:
        """Several at once, in such a context."""
        o = self.options
        with around():
            return gpu_speed.measure_processes(
                *(c, self.device),
                processes=o.processes,
                iterations=o.process_iterations,
                limit=o.budget + GRACE - self.elapsed(),
            )

    def check(self, c: Configuration) -> None:
        """Print each check when it is done."""
        for check in run_checks(c, workload.gaussian_data(c), self.device):
            named = dataclasses.replace(check, name=f"{c.task}: {check.name}")
            self.checks.append(named)
            print(f"{'passed' if named.passed else 'FAILED'}  {named.name}: {named.detail}")
        print(flush=True)

    def write(self) -> None:
        """All that was found up to now, as JSON: a run that is cut off loses nothing of it."""
        found = {
            "format": 1,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "machine": self.machine,
            "seconds": self.elapsed(),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "speed": self.speed,
            "failed": self.failed,
            "left_out": self.left_out,
        }
        self.options.out.write_text(json.dumps(found, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    p = parser()
    options = p.parse_args(argv)
    if reason := unusable(options.device):
        print(f"bench-gpu: {reason}", file=sys.stderr)
        return 2
    gpu_speed.make_current(options.device)
    try:
        for task in options.tasks:
            configuration(options, task)
    except ValueError as error:
        p.error(str(error))
    bench = Bench(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        bench.run()
    finally:  # an error loses nothing of what was found before it
        bench.write()
    passed = sum(check.passed for check in bench.checks)
    print(f"checks: {passed} of {len(bench.checks)} passed; {bench.elapsed():.0f} s")
    if bench.left_out:
        print(f"left out for lack of time: {', '.join(bench.left_out)}")
    print(f"written: {options.out}")
    unchecked = any(name.startswith("checks") for name in bench.left_out)
    return int(bool(bench.failed) or unchecked or passed < len(bench.checks))


if __name__ == "__main__":
    raise SystemExit(main())
