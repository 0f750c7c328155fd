"""HDF5 and `.npz` files to data sets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from adv_worldmodel.data.columns import from_columns, wanted_keys
from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.environments import with_flat_spaces, without_module
from adv_worldmodel.data.links import stored_elsewhere
from adv_worldmodel.data.validation import freeze
from adv_worldmodel.errors import first_line

SUFFIXES = (".hdf5", ".h5", ".npz")
"""File names that `load_file` reads."""


def load_file(
    path: Path, *, name: str | None = None, env_id: str | None = None, goal_terminals: bool = False
) -> OfflineDataset:
    """The data set in an HDF5 or `.npz` file with D4RL's or Minari's keys (see `from_columns`).

    :param path: the file. A string `env_id` in it, with HDF5 also an attribute, names its
        environment.
    :param name: name of the data set; None: the path.
    :param env_id: overrides the environment that the file names.
    :param goal_terminals: see `from_columns`.
    :raises FileNotFoundError: no such file; names near ones in its folder.
    :raises ValueError: unreadable or truncated file, or wrong content.
    """
    where = str(path)
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    if path.suffix not in SUFFIXES:
        pickled = " Load a replay buffer with SB3, and give that." if path.suffix == ".pkl" else ""
        raise ValueError(
            f"{where}: unknown file type '{path.suffix}'; expected one of {', '.join(SUFFIXES)}."
            f"{pickled}"
        )
    arrays, stated = _read_npz(path) if path.suffix == ".npz" else _read_hdf5(path)
    for array in arrays.values():
        freeze(array)  # else the data set would copy them
    if env_id is None and stated is not None:
        env_id = with_flat_spaces(without_module(stated, where), where)
    return from_columns(
        arrays, where, name=name or where, env_id=env_id, goal_terminals=goal_terminals
    )


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder; expected a file ({', '.join(SUFFIXES)}). Name the file in it."
    if not path.parent.is_dir():
        return f"{path} does not exist (nor does the folder {path.parent}). Check the path."
    files = sorted(p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES)
    listed = f"Data files there: {', '.join(files[:8])}." if files else "No data file is there."
    return f"{path} does not exist. {listed} Check the path."


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Any failure to read `path` as a ValueError; damaged files raise all kinds."""
    try:
        yield
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        reason = first_line(error)
        if reason.startswith("Object arrays"):
            raise ValueError(
                f"{path}: holds pickled objects, which are not opened since that can run code; "
                "expected arrays of numbers. Save each column as float32."
            ) from None
        raise ValueError(
            f"{path}: cannot be read as {path.suffix[1:]} ({reason}; {path.stat().st_size} bytes). "
            "It is truncated or of another kind: copy or download it again."
        ) from None


def _read_hdf5(path: Path) -> tuple[dict[str, NDArray[Any]], str | None]:
    with _reading(path), h5py.File(path, "r") as file:
        elsewhere = stored_elsewhere(file)
    if elsewhere is not None:
        raise ValueError(
            f"{path}: {elsewhere}; expected all arrays in the file itself. Read them and write "
            "them into a new file."
        )
    with _reading(path), h5py.File(path, "r") as file:
        names = [key for key in file if isinstance(key, str)]  # bytes where a file is damaged
        present = [key for key in names if isinstance(file[key], h5py.Dataset)]
        of_minari = not present and any(key.startswith("episode_") for key in names)
        stated = file.attrs.get("env_id", file["env_id"][()] if "env_id" in present else None)
    if of_minari:
        raise ValueError(
            f"{path}: holds one group per episode, Minari's own storage. Load it by its "
            "Minari id (minari:ID, with MINARI_DATASETS_PATH set to the ids' folder)."
        )
    keys = chain.from_iterable(wanted_keys(present, str(path)).values())
    with _reading(path), h5py.File(path, "r") as file:
        arrays = {key: np.asarray(file[key][()]) for key in keys}
    return arrays, None if stated is None else _env_id_of(np.asarray(stated), path)


def _env_id_of(stated: NDArray[Any], path: Path) -> str | None:
    """Text or bytes, alone or as the one entry of an array; None where it is empty."""
    value = stated.item() if stated.size == 1 else None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        raise ValueError(f"{path}: 'env_id' is {stated!r:.80}; expected one environment id.")
    return value or None


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], str | None]:
    with _reading(path):
        if not zipfile.is_zipfile(
            path
        ):  # np.load would take it for a pickle, and advise to open it
            raise ValueError("no zip archive")
    with _reading(path), np.load(path, allow_pickle=False) as file:
        present = list(file.files)
        stated = _env_id_of(file["env_id"], path) if "env_id" in present else None
    keys = chain.from_iterable(wanted_keys(present, str(path)).values())
    with _reading(path), np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in keys}
    return arrays, stated
