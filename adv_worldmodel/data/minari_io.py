"""Minari data sets to `OfflineDataset` and back."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from adv_worldmodel.data import validation
from adv_worldmodel.data.dataset import OfflineDataset, infer_truncations
from adv_worldmodel.data.links import stored_elsewhere
from adv_worldmodel.data.minari_environment import environment_of, name_to_write, with_bounds
from adv_worldmodel.errors import first_line
from adv_worldmodel.paths import expanded

if TYPE_CHECKING:
    from minari import MinariDataset  # type: ignore[import-untyped]

_ID = re.compile(r"(?:[-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")  # Minari's own rule, version required

#: In a set's metadata: the data set's own `terminations_lost`.
TERMINATIONS_LOST = "terminations_lost"


def minari_folder() -> Path:
    """Where Minari keeps its data sets: `$MINARI_DATASETS_PATH`, else `~/.minari/datasets`."""
    stated = os.environ.get("MINARI_DATASETS_PATH")
    return Path(stated) if stated else expanded("~/.minari/datasets")


def local_ids() -> list[str]:
    """Ids of the Minari data sets on this machine, sorted."""
    folder = minari_folder()
    # Minari's own listing creates the folder; looking should leave nothing behind.
    found = (path.parent.relative_to(folder) for path in folder.rglob("data") if path.is_dir())
    return sorted(path.as_posix() for path in found if _ID.fullmatch(path.as_posix()))


def load_minari(dataset_id: str, *, env_id: str | None = None) -> OfflineDataset:
    """The Minari set `dataset_id`: the local copy, else downloaded where the machine can.

    :raises FileNotFoundError: not there and not to be had; lists the near local ids.
    :raises ValueError: no Minari id, damaged files, or as `from_minari`.
    """
    if _ID.fullmatch(dataset_id) is None:
        near = _near(dataset_id)
        raise FileNotFoundError(
            f"'{dataset_id}' is no data set here and no Minari id (such as "
            f"mujoco/hopper/medium-v0).{near}"
        )
    import minari

    if not (minari_folder() / dataset_id / "data").is_dir():
        _download(dataset_id)
    try:
        _check_metadata(minari_folder() / dataset_id / "data" / "metadata.json")
        dataset = minari.load_dataset(dataset_id)
    except Exception as error:  # storage formats raise their own kinds
        raise ValueError(
            f"minari:{dataset_id}: cannot be read ({first_line(error)}). Delete "
            f"{minari_folder() / dataset_id} and fetch or make the data set again."
        ) from None
    return from_minari(dataset, env_id=env_id)


def from_minari(dataset: MinariDataset, *, env_id: str | None = None) -> OfflineDataset:
    """All episodes of a `MinariDataset` (of those it is filtered to).

    An episode of T steps has T + 1 observations, so every transition has its true successor. An
    episode with neither flag at its end counts as truncated; where terminations stand inside an
    episode they are goals that end none (`goal_terminals`).

    :param dataset: with flat Box observations and actions.
    :param env_id: environment to evaluate in; None: the one the data set names.
    :raises ValueError: other spaces, wrong lengths, damaged files, or as `OfflineDataset`.
    """
    where = f"minari:{dataset.spec.dataset_id}"
    observation_space = validation.flat_box(dataset.observation_space, "observation", where)
    action_space = validation.flat_box(dataset.action_space, "action", where, bounded=False)
    _refuse_links(dataset, where)
    parts: list[tuple[Any, ...]] = []
    goals = False
    for episode in _episodes(dataset, where):
        label = f"{where}: episode {episode.id}"
        observations = validation.numeric(episode.observations, "observations", label)
        actions = validation.numeric(episode.actions, "actions", label)
        if len(observations) != len(actions) + 1:
            raise ValueError(
                f"{label}: 'observations' has {len(observations)} rows for {len(actions)} "
                "actions; expected one more than actions."
            )
        terminations = validation.flag_vector(episode.terminations, "terminations", label)
        truncations = validation.flag_vector(episode.truncations, "truncations", label)
        if len(truncations) and len(terminations):
            truncations[-1] |= not terminations[-1]
        goals |= bool(terminations[:-1].any())
        states, successors = observations[:-1], observations[1:]
        parts.append((states, actions, episode.rewards, successors, terminations, truncations))
    if not parts:
        raise ValueError(f"{where}: the data set is empty (no episodes); expected at least 1.")
    spec = dataset.env_spec
    if env_id is None:
        env_id = environment_of(spec, (observation_space.shape[0], action_space.shape[0]), where)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    columns[1], action_space = with_bounds(columns[1], action_space, spec, env_id, where)
    return OfflineDataset(
        observations=columns[0],
        actions=columns[1],
        rewards=columns[2],
        next_observations=columns[3],
        terminations=columns[4],
        truncations=columns[5],
        observation_space=observation_space,
        action_space=action_space,
        name=where,
        env_id=env_id,
        goal_terminals=goals,
        terminations_lost=bool(dataset.storage.metadata.get(TERMINATIONS_LOST, False)),
    )


def to_minari(
    dataset: OfflineDataset, dataset_id: str, *, description: str | None = None
) -> MinariDataset:
    """Writes `dataset` as the Minari set `dataset_id` into `minari_folder()`.

    Where a successor is not the next row's observation (but for rounding) an episode is closed as
    truncated, since Minari stores each observation once. Rewards are written as they are (with
    `reward_offset`). An environment that cannot be built here, or was registered with a class or
    function in place of its name, is not named in the set, of which a warning tells.

    :raises ValueError: no Minari id, or a set of that id exists.
    """
    if _ID.fullmatch(dataset_id) is None:
        raise ValueError(
            f"'{dataset_id}' is no Minari id; expected namespace/name-vN, such as "
            "mine/pendulum/random-v0."
        )
    folder = minari_folder() / dataset_id
    if folder.exists():
        raise ValueError(f"{folder} exists already. Choose another id or version, or delete it.")
    import minari
    from minari.data_collector import EpisodeBuffer  # type: ignore[import-untyped]

    truncations = dataset.truncations | infer_truncations(
        dataset.observations, dataset.next_observations, dataset.terminations
    )
    ends = np.union1d(dataset.episode_ends(), np.flatnonzero(truncations)) + 1
    buffers = []
    for index, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows = slice(int(start), int(end))
        final = dataset.next_observations[end - 1 : end]
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=np.concatenate([dataset.observations[rows], final]),
                actions=dataset.actions[rows],
                rewards=dataset.rewards[rows],
                terminations=dataset.terminations[rows],
                truncations=truncations[rows],
            )
        )
    if not dataset.in_order:
        warnings.warn(
            f"{dataset.name}: rows do not follow one another, so that each becomes an episode, of "
            "which Minari writes and reads a hundred in a second: an .npz file serves them better",
            stacklevel=2,
        )
    environment = name_to_write(dataset.env_id, f"minari:{dataset_id}")
    with warnings.catch_warnings():
        # Minari warns once for each of author, algorithm, link and description that is not given.
        warnings.simplefilter("ignore")
        try:
            written = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=environment,
                observation_space=dataset.observation_space,
                action_space=dataset.action_space,
                description=description or f"Converted from {dataset.name}.",
                data_format="hdf5",
            )
            if dataset.terminations_lost:
                written.storage.update_metadata({TERMINATIONS_LOST: True})
            return written
        except BaseException:  # half a set would block its id
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _check_metadata(path: Path) -> None:
    """ValueError where Minari would take a space from the environment that the file describes.

    It builds that one by calling what the file names as its entry point, be it `os:system`.
    """
    metadata = json.loads(path.read_text(encoding="utf-8"))
    for key in ("observation_space", "action_space"):
        if not isinstance(metadata.get(key), str):
            raise ValueError(
                f"{path.name} does not state the {key}, and to find out Minari would run code that "
                "the file names"
            )


def _refuse_links(dataset: MinariDataset, where: str) -> None:
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    if not path.is_file():  # another storage format
        return
    try:
        with h5py.File(path, "r") as file:
            elsewhere = stored_elsewhere(file)
    except Exception as error:  # HDF5 raises all kinds
        raise ValueError(_unreadable(where, error)) from None
    if elsewhere is not None:
        raise ValueError(
            f"{where}: {elsewhere} in {path}; expected all arrays in the file itself. Make the "
            "data set again."
        )


def _unreadable(where: str, error: Exception) -> str:
    return (
        f"{where}: an episode cannot be read ({first_line(error)}). The files are truncated: "
        "delete the data set and fetch or make it again."
    )


def _episodes(dataset: MinariDataset, where: str) -> Iterator[Any]:
    try:
        yield from dataset.iterate_episodes()
    except Exception as error:  # storage formats raise their own kinds
        raise ValueError(_unreadable(where, error)) from None


def _download(dataset_id: str) -> None:
    import minari

    with suppress(ImportError):  # when it is first imported, it sets the level of its logger
        importlib.import_module("huggingface_hub.utils.logging")
    # Its remarks on each retry would bury the one line that says what to do.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # whatever the network, the hub or a missing package raises
        raise FileNotFoundError(
            f"minari:{dataset_id}: not in {minari_folder()}, and downloading failed "
            f"({first_line(error)}).{_near(dataset_id)} Fetch it where there is a network "
            f"(minari download {dataset_id}) or set MINARI_DATASETS_PATH to the folder that has it."
        ) from None
    finally:
        logger.setLevel(level)


def _near(dataset_id: str) -> str:
    ids = local_ids()
    if not ids:
        return f" No Minari data set is in {minari_folder()}."
    near = get_close_matches(dataset_id, ids, n=5, cutoff=0.3) or ids[:5]
    return f" Near local ids: {', '.join(near)}."
