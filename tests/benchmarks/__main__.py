"""Measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.configuration import (
    EVALUATION_ENVS,
    PARTS,
    SCORES,
    TASKS,
    Configuration,
    dimensions,
)

# This process imports neither torch nor numpy: a child's peak memory counts its parent's.
ROOT = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Throughput, share of the machine's matrix-product rate and peak memory of "
        "every part of RAMBO, beside SB3's SAC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Configuration)}

    def add(name: str, text: str, **kwargs: Any) -> None:
        p.add_argument(name, help=text, **kwargs)

    tasks = f"{', '.join(TASKS)}, or lengths of state and action such as 11x3"
    add("--tasks", tasks, nargs="+", default=list(TASKS))
    add("--rows", "of data", nargs="+", type=int, default=[100_000, 2_000_000])
    everything = [*PARTS, "evaluation"]
    add("--parts", "to be timed", nargs="*", choices=everything, default=everything)
    add("--threads", "of PyTorch", type=int, default=defaults["threads"])
    add("--seconds", "per part", type=float, default=defaults["seconds"])
    add("--rounds", "stretches per part", type=int, default=defaults["rounds"])
    add("--no-iteration", "leave the whole iteration out", action="store_true")
    add("--iteration-starts", "rollouts per iteration", type=int, default=defaults["starts"])
    add("--iteration-updates", "of agent and adversary", type=int, default=defaults["updates"])
    add("--score", "of the iteration's adversary", choices=SCORES, default=defaults["score"])
    for network in ("agent", "model"):
        key = f"{network}_hidden"
        add(f"--{network}-hidden", "widths", nargs="+", type=int, default=list(defaults[key]))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    add("--max-memory", "GiB; what needs more is left out", type=float, default=0.4 * physical)
    date = datetime.datetime.now().astimezone().date()
    add("--out", "JSON file", type=Path, default=Path(f"runs/bench-{date}.json"))
    return p


def configurations(options: argparse.Namespace) -> list[Configuration]:
    """All that is asked for; the evaluations last."""
    timed = tuple(part for part in PARTS if part in options.parts)
    common: dict[str, Any] = {
        "parts": timed,
        "iteration": not options.no_iteration,
        "threads": options.threads,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "starts": options.iteration_starts,
        "updates": options.iteration_updates,
        "score": options.score,
        "agent_hidden": tuple(options.agent_hidden),
        "model_hidden": tuple(options.model_hidden),
    }
    found = []
    if timed or not options.no_iteration:
        for task in options.tasks:
            sizes = dimensions(task)
            found += [Configuration(task, *sizes, rows, **common) for rows in options.rows]
    if "evaluation" in options.parts:
        few = {**common, "parts": (), "iteration": False, "starts": 8, "rounds": 2}
        for env_id, sizes in EVALUATION_ENVS.items():
            found.append(Configuration("evaluation", *sizes, 1000, env_id=env_id, **few))
    return found


def run(c: Configuration) -> dict[str, Any]:
    """Measure in a fresh process.

    :raises subprocess.CalledProcessError: it failed; it has said why on standard error.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(c.threads))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tests.benchmarks.process", c.to_json(), str(out)]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **threads})
        result: dict[str, Any] = json.loads(out.read_text())
    return result


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 where a configuration failed."""
    p = parser()
    options = p.parse_args(argv)
    try:
        wanted = configurations(options)
    except ValueError as error:
        p.error(str(error))
    limit = options.max_memory * 2**30
    written: dict[str, Any] = {
        "format": 1,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "configurations": [],
        "left_out": [],
        "failed": [],
    }
    results = written["configurations"]
    for c in wanted:
        name = c.env_id or f"{c.task}, {c.rows:,} rows"
        if c.bytes_needed > limit:
            written["left_out"].append(name)
            print(f"left out: {name} would need about {c.bytes_needed / 2**30:.0f} GiB\n")
            continue
        try:
            results.append(run(c))
        except subprocess.CalledProcessError as error:
            written["failed"].append(name)
            print(f"failed: {name} (exit status {error.returncode})\n", file=sys.stderr)
            continue
        print(report.configuration_text(results[-1]), end="\n\n", flush=True)
    if by_rows := report.by_rows_text(results):
        print(by_rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(written, indent=2) + "\n")
    print(f"written: {options.out}")
    return 1 if written["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
