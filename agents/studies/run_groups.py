"""Run folders as groups: runs of one data set and configuration, which differ in their seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from adv_worldmodel.errors import one_line
from agents.training.config import TrainConfig, flat_settings, load_config
from agents.training.config_files import absolute_source
from agents.training.run_folder import RunFolder

__all__ = [
    "BESIDE",
    "DamagedRun",
    "Group",
    "Run",
    "compared_settings",
    "files_below",
    "find_readable_runs",
    "find_runs",
    "group_runs",
    "known",
    "setting_text",
    "usual_settings",
]

#: Settings that say where, how and how often a run computes, not what; the seed is not one either.
BESIDE = (
    "name", "seed", "seeds", "checkpoint_every", "on_divergence", "out", "device", "n_threads",
    "model.cache",
)  # fmt: skip
#: From so many groups of a data set on, labels leave out what most of them have.
MANY_GROUPS = 4
#: Of a run that has come to an end: what one that was done again may replace.
_OUTCOMES = ("finished", "diverged")
#: Settings that change what is read of a file.
READ_WITH = ("data.reward_offset", "data.env_id", "evaluation.env_id")


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: RunFolder
    config: TrainConfig
    result: Mapping[str, Any]  #: `result.json`

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def status(self) -> str:
        """ "finished", "diverged", "failed", "interrupted" or "running"."""
        return str(self.result["status"])

    @property
    def content(self) -> str | None:
        """Hash of the data that it read; None if it read none."""
        return self.result.get("content_hash")

    @property
    def written(self) -> float:
        """When `result.json` was written (s since the epoch); a copied file's own date is later."""
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(self.result.get("written") or "").timestamp()
        return self.folder.result.stat().st_mtime

    @property
    def diverged_and_went_on(self) -> bool:
        """Whether it ran away and was told not to stop: its numbers are no values."""
        return self.status == "finished" and self.result.get("divergence") is not None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        return compared_settings(self.config)


@dataclass(frozen=True)
class DamagedRun:
    """A run folder that cannot be read."""

    folder: Path
    error: str  #: why, in one line


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only, one of each seed, in the seeds' order."""

    dataset: str
    settings: Mapping[str, Any]  #: by dotted key, those in which the data set's groups differ
    runs: tuple[Run, ...]
    #: what most of the data set's groups have at these keys, where they are many
    usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def overrides(self) -> str:
        """The configuration as overrides, such as `adversary.weight=0`; its name where alone."""
        return _overrides(self.settings) or self.runs[0].config.name

    @property
    def label(self) -> str:
        """The same without what is usual: no two groups of a data set have one label."""
        own = {k: v for k, v in self.settings.items() if k not in self.usual or v != self.usual[k]}
        return _overrides(own) or ("unchanged" if self.usual else self.overrides)

    def of_status(self, *statuses: str) -> list[Run]:
        return [run for run in self.runs if run.status in statuses]

    @property
    def finished(self) -> list[Run]:
        return self.of_status("finished")

    @property
    def evaluated(self) -> bool:
        """Whether its runs are evaluated in a real environment."""
        return self.runs[0].config.evaluation.episodes > 0

    @property
    def failed(self) -> list[Run]:
        return self.of_status("diverged", "failed")


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read all runs that `paths` are or hold, each once.

    :param paths: run folders, or folders in which to look for them at any depth.
    :raises FileNotFoundError: a path is no folder, or holds no run.
    :raises ValueError: a run's `result.json` or `config.yaml` cannot be read.
    """
    runs, damaged = find_readable_runs(paths)
    if damaged:
        raise ValueError(damaged[0].error)
    return runs


def find_readable_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[DamagedRun]]:
    """The same, with the runs that cannot be read beside the others.

    :param paths: see `find_runs`.
    :raises FileNotFoundError: see `find_runs`.
    """
    found: dict[Path, Run | DamagedRun] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(
                f"no folder at {path}: give folders that 'adv-worldmodel train' or 'sweep' printed"
            )
        folders = [file.parent for file in files_below(path, "result.json")]
        if not folders:
            raise FileNotFoundError(
                f"{path} holds no run (no result.json at any depth): give folders that "
                "'adv-worldmodel train' or 'sweep' printed"
            )
        for folder in folders:
            if folder.resolve() not in found:
                found[folder.resolve()] = _read_or_say(folder)
    runs = [run for run in found.values() if isinstance(run, Run)]
    damaged = [run for run in found.values() if isinstance(run, DamagedRun)]
    return runs, damaged


def files_below(folder: Path, name: str) -> list[Path]:
    """Files of that name at any depth, in linked folders too, each folder once; in order."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # links may lead round in a circle
            folders.clear()
            continue
        seen.add(real)
        if name in files:
            found.append(Path(place, name))
    return sorted(found)


def _read_or_say(folder: Path) -> Run | DamagedRun:
    try:
        return _read(RunFolder(folder))
    except (ValueError, OSError) as error:
        return DamagedRun(folder, one_line(error))


def _read(folder: RunFolder) -> Run:
    result = folder.read_result()
    if "status" not in result:
        raise ValueError(
            f"{folder.result} has no key 'status': it is not a run's; give the run folders"
        )
    for key, value in result.items():
        fits, expected = _KINDS.get(key, _ANYTHING)
        if not fits(value):
            raise ValueError(
                f"{folder.result}: {key} is {reprlib.repr(value)}, expected {expected}: the file "
                "is damaged; leave the run out, or train again"
            )
    if not folder.config.is_file():
        raise ValueError(
            f"{folder.path} holds a result.json but no config.yaml, so its settings are unknown: "
            "leave it out, or train again"
        )
    return Run(folder, load_config(folder.config), result)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


_NUMBER, _TEXT = (_is_number_or_null, "a number or null"), (_is_text_or_null, "a text or null")
_ANYTHING: tuple[Callable[[Any], bool], str] = (lambda _: True, "anything")
#: What `results` and `select` read of `result.json`.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (lambda value: isinstance(value, str), "a text"),
    "error": _TEXT,
    "content_hash": _TEXT,
    "divergence": (
        lambda value: value is None or isinstance(value, dict),
        "an object or null",
    ),
    "score_reference": _TEXT,
    "iterations": (_is_number, "a number"),
    "return_mean": _NUMBER,
    "score": _NUMBER,
    "q_avg": _NUMBER,
    "q_var": _NUMBER,
    "q_ceiling": _NUMBER,
    "behaviour_return": _NUMBER,
    "cloning_return": _NUMBER,
    "written": _TEXT,
    "versions": (
        lambda value: isinstance(value, dict) and all(map(_is_text_or_null, value.values())),
        "versions by package",
    ),
    "wall_s": (
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
        "seconds by phase",
    ),
}


def compared_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings by dotted key, without those of `BESIDE`: equal ones make equal experiments.

    A data set that is a file here is named by its absolute path, as in a run's `config.yaml`.
    """
    flat = flat_settings(config) | {"dataset": absolute_source(config.dataset)}
    return {key: value for key, value in flat.items() if key not in BESIDE}


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by data set and configuration, in the order of names and settings.

    Of several runs with the same settings and seed, only the one whose result is the newest
    stays: a run done again replaces the one before, once it has finished or diverged. A file whose
    content has changed between runs counts as another data set; equal content in several places is
    one, by the newest run's name.
    """
    by_dataset: dict[tuple[str, str | None], dict[tuple[Any, ...], dict[int, Run]]] = {}
    in_time = sorted(runs, key=lambda run: run.written)
    datasets = _datasets(in_time)
    for run, dataset in zip(in_time, datasets, strict=True):
        configurations = by_dataset.setdefault(dataset, {})
        own = run.settings | {"dataset": dataset[0]}
        by_seed = configurations.setdefault(tuple(own.items()), {})
        before = by_seed.get(run.seed)
        if before is None or run.status in _OUTCOMES or before.status not in _OUTCOMES:
            by_seed[run.seed] = run
    names = _short_names(list(by_dataset))
    groups = []
    for dataset in sorted(by_dataset, key=lambda dataset: names[dataset]):
        members = [
            tuple(by_seed[seed] for seed in sorted(by_seed))
            for by_seed in by_dataset[dataset].values()
        ]
        settings = [dict(items) for items in by_dataset[dataset]]
        differing = [key for key in settings[0] if len({of[key] for of in settings}) > 1]
        usual = _usual(settings, differing) if len(settings) >= MANY_GROUPS else {}
        of_dataset = [
            Group(names[dataset], {key: of[key] for key in differing}, of_seeds, usual)
            for of, of_seeds in zip(settings, members, strict=True)
        ]
        groups += sorted(of_dataset, key=lambda group: [_rank(v) for v in group.settings.values()])
    return groups


def _usual(settings: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> dict[str, Any]:
    """Values that more than half of `settings` have at `keys`."""
    found = {}
    for key in keys:
        values = [of[key] for of in settings]
        most = max(values, key=values.count)
        if 2 * values.count(most) > len(values):
            found[key] = most
    return found


def usual_settings(groups: Iterable[Group]) -> list[str]:
    """A line for each data set whose groups' labels leave out what is usual."""
    usual = {group.dataset: _overrides(group.usual) for group in groups if group.usual}
    return [f"Where it is not named, on {name}: {text}." for name, text in usual.items()]


def _overrides(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={setting_text(value)}" for key, value in settings.items())


def _datasets(runs: Sequence[Run]) -> list[tuple[str, str | None]]:
    """Name of each run's data set, the runs being in time; with its content where that changed."""
    changed = _contents(runs)
    own = []
    for run in runs:
        name = run.settings["dataset"]
        # a run that never read its data counts as one on the newest
        own.append((name, (run.content or changed[name]) if name in changed else None))
    name_of = {dataset: dataset for dataset in own}  # equal content: that of the newest run
    first: dict[str, tuple[str, str | None]] = {}
    for run, dataset in zip(runs, own, strict=True):
        if run.content:
            alike = {name_of[first.setdefault(run.content, dataset)], name_of[dataset]}
            name_of |= dict.fromkeys((d for d, name in name_of.items() if name in alike), dataset)
    return [name_of[dataset] for dataset in own]


def _contents(runs: Iterable[Run]) -> dict[str, str]:
    """The last content by name of those data sets whose file has changed between runs.

    What a run has read is not the file alone: an offset is added to its rewards, and its actions
    are held within an environment's bounds. Only runs that read it alike tell of a change.
    """
    found: dict[str, dict[tuple[Any, ...], list[str]]] = {}
    for run in runs:
        if run.content:
            alike = tuple(run.settings[key] for key in READ_WITH)
            by_reading = found.setdefault(run.settings["dataset"], {})
            by_reading.setdefault(alike, []).append(run.content)
    return {
        name: list(by_reading.values())[-1][-1]
        for name, by_reading in found.items()
        if any(len(set(of_alike)) > 1 for of_alike in by_reading.values())
    }


def known(runs: Sequence[Run], key: str) -> list[float]:
    """The numbers that `result.json` of `runs` has at `key`, without those that are null."""
    return [value for run in runs if (value := run.result.get(key)) is not None]


def setting_text(value: Any) -> str:
    """A setting as it is written in an override: `0.0003`, `[256, 256]`, `true`, `null`, `auto`."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)  # two close values are two
    return value if isinstance(value, str) else json.dumps(value)


def _short_names(
    datasets: Sequence[tuple[str, str | None]],
) -> dict[tuple[str, str | None], str]:
    """Names of data sets by name and content hash: file names instead of whole paths, where no two
    are alike, and the head of the hash where only that tells them apart.
    """
    paths = {name for name, _ in datasets}
    short = {name: Path(name).name if Path(name).is_absolute() else name for name in paths}
    given, contents = list(short.values()), [name for name, _ in datasets]
    names = {}
    for name, content in datasets:
        text = short[name] if given.count(short[name]) == 1 else name
        names[name, content] = (
            text if contents.count(name) == 1 else f"{text} (content {str(content)[:8]})"
        )
    return names


def _rank(value: Any) -> tuple[int, float, str]:
    """Numbers in their order, then texts and lists in theirs."""
    number = isinstance(value, int | float)
    return (0, value, "") if number else (1, 0.0, setting_text(value))
