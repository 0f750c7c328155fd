"""Many small iterations in one process: does memory stay flat, do files and threads stay bounded?

``python -m tests.soak --iterations 2000`` (also ``make soak``) trains a tiny run with checkpoints
and evaluations, samples this process four times a second, and prints the slope of its memory after
the first quarter, the size of the checkpoints, and the threads before and after. It reads /proc,
which Linux has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agents.cli import main as train_main
from tests.agents.tiny import TINY

SETTINGS = ("agent.updates=5", "adversary.updates=2", "evaluation.every=50")
SAMPLED_EVERY = 0.25  #: seconds


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    iteration: int
    resident_kib: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Soak:
    """What a soak found."""

    iterations: int
    slope_kib: float  #: of resident memory, KiB per iteration, after the first quarter
    resident_mib: float  #: at the end
    checkpoint_mib: float  #: largest size of `checkpoints/`
    threads: tuple[int, int]  #: before and after


def status(key: str) -> int:
    """A number of /proc/self/status, such as VmRSS (KiB) or Threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise KeyError(key)


def threads_left(expected: int, seconds: float = 5.0) -> int:
    """Threads of this process, once the ones that have ended are no longer counted.

    Linux counts a thread for an instant after it was joined, longer on a busy machine.
    """
    deadline = time.monotonic() + seconds
    while (found := status("Threads")) > expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def size_of(folder: Path) -> int:
    """Bytes in a folder, whose files may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


@contextmanager
def sampled(run: Path) -> Iterator[list[Sample]]:
    """Sample this process, and the run that it writes, as long as the block lasts."""
    samples: list[Sample] = []
    done = threading.Event()

    def sample() -> None:
        progress = run / "progress.csv"
        while not done.wait(SAMPLED_EVERY):
            if progress.is_file():
                iteration = progress.read_bytes().count(b"\n") - 1
                checkpoints = size_of(run / "checkpoints")
                samples.append(Sample(iteration, status("VmRSS"), checkpoints))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def train(run: Path, iterations: int) -> None:
    """A tiny run; its output is of no interest."""
    settings = (*TINY, *SETTINGS, f"iterations={iterations}", f"out={run}")
    if code := train_main(["train", "pendulum-random", *settings]):
        raise SystemExit(f"the run failed with exit code {code}")


def soak(iterations: int, folder: Path) -> Soak:
    """Train for that many iterations; a run of a few iterations before it warms up."""
    train(folder / "first", 20)
    before = status("Threads")
    with sampled(folder / "run") as samples:
        train(folder / "run", iterations)
    settled = [s for s in samples if s.iteration > iterations / 4]
    slope, _ = statistics.linear_regression(
        [s.iteration for s in settled], [s.resident_kib for s in settled]
    )
    return Soak(
        iterations,
        slope,
        status("VmRSS") / 1024,
        max(s.checkpoint_bytes for s in samples) / 2**20,
        (before, threads_left(before)),
    )


def main() -> None:
    """Print what was found, and as the last line the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(options.iterations, Path(folder))
    print(f"iterations         {found.iterations}")
    print(f"memory slope       {found.slope_kib:.2f} KiB per iteration")
    print(f"memory at the end  {found.resident_mib:.0f} MiB")
    print(f"checkpoints        {found.checkpoint_mib:.2f} MiB at most")
    print(f"threads            {found.threads[0]} before, {found.threads[1]} after")
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
