"""HDF5 and `.npz` files to data sets."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from adv_worldmodel.data.columns import from_columns, wanted_keys
from adv_worldmodel.data.dataset import OfflineDataset

SUFFIXES = (".hdf5", ".h5", ".npz")
"""File names that `load_file` reads."""


def load_file(
    path: Path, *, name: str | None = None, env_id: str | None = None, goal_terminals: bool = False
) -> OfflineDataset:
    """The data set in an HDF5 or `.npz` file with D4RL's or Minari's keys (see `from_columns`).

    Args:
        path: the file. Its attribute (HDF5) or string (`.npz`) `env_id` names its environment.
        name: name of the data set; None: the path.
        env_id: overrides the environment that the file names.
        goal_terminals: see `from_columns`.

    Raises:
        FileNotFoundError: no such file; names near ones in its folder.
        ValueError: unreadable or truncated file, or wrong content.
    """
    where = str(path)
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{where}: unknown file type '{path.suffix}'; expected one of {', '.join(SUFFIXES)}."
        )
    arrays, stated = _read_npz(path) if path.suffix == ".npz" else _read_hdf5(path)
    # An id such as "module:Name-v0" would import a module of the file's choice.
    if env_id is None and stated is not None and ":" not in stated:
        env_id = stated
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


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(
        f"{path}: cannot be read as {path.suffix[1:]} ({reason}; {path.stat().st_size} bytes). "
        "It is truncated or of another kind: copy or download it again."
    )


def _read_hdf5(path: Path) -> tuple[dict[str, NDArray[Any]], str | None]:
    try:
        with h5py.File(path, "r") as file:
            if any(key.startswith("episode_") for key in file):
                raise ValueError(
                    f"{path}: holds one group per episode, Minari's own storage. Load it by its "
                    "Minari id (minari:ID, with MINARI_DATASETS_PATH set to the ids' folder)."
                )
            present = [key for key in file if isinstance(file[key], h5py.Dataset)]
            keys = wanted_keys(present, str(path)).values()
            arrays = {key: np.asarray(file[key][()]) for key in keys}
            stated = file.attrs.get("env_id")
    except (OSError, RuntimeError, KeyError) as error:  # h5py's for damaged files
        raise _unreadable(path, error) from None
    if isinstance(stated, bytes):
        stated = stated.decode("utf-8", "replace")
    return arrays, stated if isinstance(stated, str) and stated else None


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], str | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("a single array, not an archive")
            stored = file.files
            keys = [*wanted_keys(stored, str(path)).values()]
            arrays = {key: file[key] for key in keys}
            stated = str(file["env_id"]) if "env_id" in stored else None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        if "is missing; found" in str(error):
            raise
        raise _unreadable(path, error) from None
    return arrays, stated
