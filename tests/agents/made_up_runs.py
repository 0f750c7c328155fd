"""Run folders that no training has written, with the numbers that a test wants."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agents.atomic_files import write_json
from agents.config import dump_config, load_config
from agents.run_folder import RunFolder

_CLOCK = iter(range(1, 1_000_000))  # seconds; each run is newer than those made before it


def make_run(path: Path, *overrides: str, status: str = "finished", **result: Any) -> RunFolder:
    """A run of `pendulum-random` with `overrides`, and `result.json` with `result` in it."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.config.write_text(dump_config(load_config("pendulum-random", overrides)))
    known = {"status": status, "error": None, "iterations": 200, "return_mean": None, "score": None}
    write_json(folder.result, known | result)
    time = next(_CLOCK)
    os.utime(folder.result, (time, time))
    return folder
