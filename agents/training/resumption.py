"""Going on with a run: its configuration, what may change in it, and its last checkpoint."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.training.checkpoints import Snapshot, latest_checkpoint
from agents.training.config import flat_settings, load_config
from agents.training.preparation import Preparation, load_world_model, prepare
from agents.training.results import versions
from agents.training.run_folder import RunFolder, check_unlocked

__all__ = ["Resumption", "prepare_resumption"]

#: Settings that may differ: how long, how often written, what it is called. (Another device or
#: number of threads rounds otherwise.)
FREE = ("name", "iterations", "checkpoint_every", "on_divergence", "n_threads", "device")
#: Settings that say where things lie: files may have been moved; the data's content is compared.
ELSEWHERE = ("out", "dataset", "model.cache")


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    folder: RunFolder
    changed: dict[str, tuple[Any, Any]]  #: settings that differ, before and now
    snapshot: Snapshot | None  #: None: it stopped before the first checkpoint, and starts anew


def prepare_resumption(
    run: str | Path, overrides: Iterable[str] = ()
) -> tuple[Preparation, Resumption]:
    """Read a run folder and check that the run can go on.

    :param run: what `adv-worldmodel train` printed.
    :param overrides: `key=value`, of settings in `FREE`; `dataset` too, for equal data elsewhere.
    :raises FileNotFoundError, ValueError: no run there, a setting or the data have changed, or no
        checkpoint can be read.
    """
    folder = RunFolder(Path(run))
    check_unlocked(folder.path)
    began = folder.config.is_file()  # a kill may come between the first two files
    if not began and folder.result.is_file():
        raise FileNotFoundError(
            f"{run} cannot go on: it holds no config.yaml; put a good copy there, or train into "
            "another folder"
        )
    result = _read_result(folder, began)
    written = load_config(folder.config)
    wanted = load_config(folder.config, overrides)
    before, now = flat_settings(written), flat_settings(wanted)
    changed = {key: (before[key], now[key]) for key in now if before[key] != now[key]}
    known = result.get("content_hash") or _content_of_fit(folder)
    free = FREE if known is None else (*FREE, "dataset")
    if refused := [key for key in changed if key not in free]:
        raise ValueError(
            f"{', '.join(refused)} cannot change where {run} goes on: train into another folder, "
            f"or resume without (what may differ: {', '.join(free)})"
        )
    prepared = prepare(dataclasses.replace(wanted, out=None, seeds=None), resumed=True)
    if known not in (None, prepared.dataset.content_hash):
        raise ValueError(
            f"{wanted.dataset} is not what {run} was trained on (its content has changed): bring "
            "the data back (dataset=FILE says where they are), or train into another folder"
        )
    snapshot = latest_checkpoint(folder.checkpoints)
    if snapshot is None:
        check_nothing_lost(folder)
    if snapshot is not None and snapshot.iteration > wanted.iterations:
        raise ValueError(
            f"{run} has done {snapshot.iteration} iterations already: give iterations="
            f"{snapshot.iteration} or more"
        )
    if snapshot is not None:
        _check_settings(folder, now, snapshot)
        _check_world_model(folder, prepared)
    _warn_of_versions(result.get("versions"))
    return prepared, Resumption(folder, changed, snapshot)


def _read_result(folder: RunFolder, began: bool) -> dict[str, Any]:
    """What the run has said of itself; nothing where a kill has left no result, or half of one."""
    if began and not folder.result.is_file():
        return {}
    try:
        return folder.read_result()
    except ValueError as error:
        if not began:
            raise
        warnings.warn(f"{error}; the run goes on from its checkpoint", stacklevel=3)
        return {}


def _content_of_fit(folder: RunFolder) -> str | None:
    """The hash of the data that the run's model was fitted to; None where there is no model yet."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        description = json.loads((folder.world_model / "model.json").read_text(encoding="utf-8"))
        content = description["fit_info"]["content_hash"]
        return content if isinstance(content, str) else None
    return None


def check_nothing_lost(folder: RunFolder) -> None:
    """ValueError where a run that has no checkpoint has trained: to begin anew would replace it."""
    if folder.iterations_logged():
        raise ValueError(
            f"{folder.path} has trained, but its checkpoints are gone: put them back, train into "
            "another folder, or remove that one"
        )


def _check_settings(folder: RunFolder, now: Mapping[str, Any], snapshot: Snapshot) -> None:
    """ValueError if the run's `config.yaml` is not what its checkpoint was trained with."""
    trained = snapshot.numbers["experiment"]["settings"]
    plain = json.loads(json.dumps(now))
    changed = [k for k, v in trained.items() if plain.get(k) != v and k not in (*FREE, *ELSEWHERE)]
    if changed:
        was = ", ".join(f"{key}={json.dumps(trained[key])}" for key in changed)
        raise ValueError(
            f"{folder.config} has changed since the run's checkpoint was written, which was "
            f"trained with {was}: put that back, or train into another folder"
        )


def _warn_of_versions(before: Mapping[str, str] | None) -> None:
    changed = [
        f"{package} {before[package]} -> {version}"
        for package, version in versions().items()
        if before and before.get(package, version) != version
    ]
    if changed:
        warnings.warn(
            f"the run began with other versions ({', '.join(changed)}): it may not end as it would "
            "have",
            stacklevel=3,
        )


def _check_world_model(folder: RunFolder, prepared: Preparation) -> None:
    """ValueError unless the run's fitted model can be read and is one of these data."""
    try:
        model = load_world_model(folder.world_model, prepared.termination, "cpu")
        dims = prepared.dataset.observations.shape[1], prepared.dataset.actions.shape[1]
        if (model.obs_dim, model.action_dim) != dims:
            raise ValueError(
                f"{folder.world_model} has {model.obs_dim}-dimensional observations and "
                f"{model.action_dim}-dimensional actions, {prepared.dataset.name} has {dims[0]} "
                f"and {dims[1]}"
            )
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the run cannot go on: {error}; put a good copy there, or train again with --overwrite"
        ) from error
