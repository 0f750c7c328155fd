"""Run folders that no training has written, with the numbers that a test wants, and a log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from adv_worldmodel import load_dataset
from agents.training.atomic_files import write_json
from agents.training.config import dump_config, load_config
from agents.training.evaluation import EvaluationRow
from agents.training.run_folder import RunFolder

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


def write_log(path: Path, first: int = 0) -> None:
    """500 rows of `pendulum-random`, from that one on, as an `.npz`."""
    dataset = load_dataset("pendulum-random")
    columns = ("observations", "actions", "rewards", "next_observations", "terminations")
    rows = slice(first, first + 500)
    np.savez(path, **{column: getattr(dataset, column)[rows] for column in columns})


def evaluation_rows(*returns: float, every: int = 1) -> list[EvaluationRow]:
    """Evaluations number 1, 2 ... with these mean returns, `every` iterations apart."""
    return [
        {
            "iteration": every * i,
            "return_mean": value,
            "return_std": 1.0,
            "length_mean": 10.0,
            "score": None,
        }
        for i, value in enumerate(returns, start=1)
    ]
