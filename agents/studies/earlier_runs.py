"""What earlier calls of a sweep have left in its folder: runs that are done, runs that go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.studies.planned_runs import read_planned
from agents.studies.processes import folder_of
from agents.studies.run_groups import READ_WITH, compared_settings
from agents.training.checkpoints import has_checkpoints, has_trained
from agents.training.config import TrainConfig, flat_settings, load_config
from agents.training.preparation import read_dataset
from agents.training.resumption import FREE, check_nothing_lost
from agents.training.run_folder import LOCK, RunFolder, check_only_a_run, check_unlocked

__all__ = ["find_earlier"]


def find_earlier(
    folder: Path, configs: Mapping[str, TrainConfig]
) -> tuple[frozenset[str], frozenset[str]]:
    """Which runs are finished, and which go on from a checkpoint, by their names in `configs`.

    :param folder: the sweep's.
    :param configs: of all runs, by the run folder below `folder`.
    :raises ValueError: what no run may replace: one of other settings or data, at work, or without
        its checkpoints; files that are no run.
    """
    data = _Contents()
    read_planned(folder)  # what is wrong with it is said before anything starts
    finished = frozenset(name for name, config in configs.items() if _is_finished(config, data))
    for name in configs.keys() - finished:
        check_unlocked(folder_of(configs[name]).path)
    begun = frozenset(
        name for name, config in configs.items() if name not in finished and _goes_on(config, data)
    )
    for name in configs.keys() - finished - begun:
        check_only_a_run(folder_of(configs[name]))
    return finished, begun


class _Contents:
    """The content hash of the data that configurations name, each read once."""

    def __init__(self) -> None:
        self._read: dict[tuple[Any, ...], str | None] = {}

    def of(self, config: TrainConfig) -> str | None:
        """None if they cannot be read: their own runs say why."""
        settings = flat_settings(config)
        key = tuple(settings[name] for name in ("dataset", *READ_WITH))
        if key not in self._read:
            try:
                self._read[key] = read_dataset(config).content_hash
            except (ValueError, OSError):
                self._read[key] = None
        return self._read[key]


def _goes_on(config: TrainConfig, data: _Contents) -> bool:
    """Whether the run's folder holds a checkpoint of this run; ValueError if of another one."""
    folder = folder_of(config)
    trained = has_trained(folder.checkpoints)
    if not trained and not folder.iterations_logged():  # nothing to lose but the clone
        return False
    what = "a finished run" if _says_finished(folder) else "an unfinished run"
    _check_same(config, folder, what, data, FREE)
    if not has_checkpoints(folder.checkpoints):
        check_nothing_lost(folder)
    return trained


def _check_same(
    config: TrainConfig,
    folder: RunFolder,
    what: str,
    data: _Contents,
    free: Sequence[str] = (),
) -> None:
    """ValueError unless the run in `folder` has the data and settings of `config`, but `free`."""
    there = load_config(folder.config)
    wanted, found = ({"seed": c.seed} | compared_settings(c) for c in (config, there))
    differing = [key for key, value in wanted.items() if found[key] != value and key not in free]
    read = folder.result_or_nothing().get("content_hash")
    if "dataset" in differing and read is not None and data.of(config) == read:
        differing.remove("dataset")  # the file has moved
    if differing:
        raise ValueError(
            f"{folder.path} holds {what} of other settings ({', '.join(differing)}): give another "
            "out=FOLDER"
        )
    if read is not None and data.of(config) not in (None, read):
        raise ValueError(
            f"{folder.path} holds {what} of other data ({config.dataset} has changed since): give "
            "another out=FOLDER, or remove that folder"
        )


def _is_finished(config: TrainConfig, data: _Contents) -> bool:
    """Whether the run's folder holds the finished run; ValueError if it holds something else.

    One of fewer iterations is not finished: it goes on from its checkpoint.
    """
    folder = folder_of(config)
    if not folder.path.exists():
        return False
    written = {path.name for path in folder.path.iterdir()} - {LOCK}
    if written and folder.config.name not in written:
        raise ValueError(f"{folder.path} holds files, but no run: give another out=FOLDER")
    if not _says_finished(folder):
        return False
    longer = config.iterations > load_config(folder.config).iterations
    if longer and has_trained(folder.checkpoints):  # one without is not thrown away to begin anew
        return False
    _check_same(config, folder, "a finished run", data)
    return True


def _says_finished(folder: RunFolder) -> bool:
    """One whose result is damaged says nothing: it goes on, or begins anew."""
    return folder.result_or_nothing().get("status") == "finished"
