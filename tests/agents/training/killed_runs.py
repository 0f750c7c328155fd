"""Kills training processes at random instants and goes on with them, until as many have died.

python killed_runs.py FOLDER KILLS SIGNAL SEED: FOLDER/whole is a run that was left alone, the other
folders are runs that were not. Children are forked, since importing torch takes longer than a run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from agents.cli import main
from tests.agents.tiny import TINY

LONGEST = 3.0  #: seconds that a process lives at most, about as long as a run takes
SETTINGS = (
    "iterations=8", "checkpoint_every=2", "agent.updates=40", "adversary.updates=20",
    "cloning.epochs=1", "model.max_steps=100",
)  # fmt: skip


def command(folder: Path) -> list[str]:
    if (folder / "config.yaml").is_file():
        return ["train", "--resume", str(folder)]
    shutil.rmtree(folder, ignore_errors=True)  # killed before it wrote anything
    return ["train", "pendulum-random", *TINY, *SETTINGS, f"out={folder}"]


def start(folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(folder.with_suffix(".log"), "a")  # noqa: SIM115, PTH123
        os._exit(main(command(folder)))
    return pid


def finish(folder: Path) -> None:
    """Go on to the end."""
    _, status = os.waitpid(start(folder), 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(folder.with_suffix(".log").read_text())


def run(root: Path, kills: int, number: int, seed: int) -> None:
    import agents.training.experiment  # noqa: F401  so that children need not

    rng = random.Random(seed)
    finish(root / "whole")
    codes: list[int] = []
    n_runs = 0
    while len(codes) < kills:
        folder = root / f"killed-{n_runs}"
        n_runs += 1
        for _ in range(4):  # of one run
            pid = start(folder)
            time.sleep(rng.uniform(0.0, LONGEST))
            os.kill(pid, number)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == 0:  # it was faster
                break
            codes.append(code)
        finish(folder)
    print(*codes)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), getattr(signal, sys.argv[3]), int(sys.argv[4]))
