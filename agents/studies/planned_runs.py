"""The runs that sweeps and `seeds=N` plan, by name in OUT/sweep.json.

So one that never began is missed too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.studies.run_groups import files_below
from agents.training.atomic_files import write_json
from agents.training.run_folder import RunFolder

__all__ = ["PlannedRun", "add_planned", "find_missing", "read_planned"]

FILE = "sweep.json"


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep was asked for."""

    folder: Path  #: its run folder
    dataset: str  #: as `agents.studies.run_groups.compared_settings` names it


def add_planned(folder: Path, runs: Mapping[str, str]) -> None:
    """Write down data sets by run folder below `folder`, beside those of earlier sweeps there."""
    write_json(folder / FILE, {"runs": {**read_planned(folder), **runs}})


def read_planned(folder: Path) -> dict[str, str]:
    """Data sets by run folder; empty where no sweep has planned any.

    :raises ValueError: the file is not what a sweep writes.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        if not all(isinstance(dataset, str) for dataset in runs.values()):
            raise TypeError("a data set is no text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is not what a sweep writes ({error!r}): remove it, and repeat the sweep"
        ) from error
    return dict(runs)


def find_missing(paths: Iterable[str | Path]) -> list[PlannedRun]:
    """The runs without a result that sweeps at any depth of `paths` have planned, each once.

    Warns of a list that is damaged: its sweep's runs may be incomplete.
    """
    found: dict[Path, PlannedRun] = {}
    for path in map(Path, paths):
        for file in files_below(path, FILE):
            try:
                planned = read_planned(file.parent)
            except ValueError as error:
                warnings.warn(f"{error}; runs of it that never began are not named", stacklevel=2)
                continue
            for name, dataset in planned.items():
                source = Path(dataset)  # it may be a link by now
                run = PlannedRun(
                    file.parent / name, str(source.resolve()) if source.is_file() else dataset
                )
                if not RunFolder(run.folder).result.is_file():
                    found.setdefault(run.folder.resolve(), run)
    return list(found.values())
