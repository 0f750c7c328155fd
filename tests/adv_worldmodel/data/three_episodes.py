"""Three episodes on a line as a file: D4RL's keys, some of them left out or changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

# Three episodes on a line: 0 1 2 (terminal at its last row), 10 11 12 (time-out) and 20 21 (the
# file ends); the true successors are one further.
OBSERVATIONS = np.array([[0.0], [1], [2], [10], [11], [12], [20], [21]], np.float32)
COLUMNS: dict[str, Any] = {
    "observations": OBSERVATIONS,
    "actions": np.linspace(-0.9, 0.9, 8, dtype=np.float32)[:, None],
    "rewards": np.arange(8, dtype=np.float32),
    "next_observations": OBSERVATIONS + 1,
    "terminals": np.array([0, 0, 1, 0, 0, 0, 0, 0], bool),
    "timeouts": np.array([0, 0, 0, 0, 0, 1, 0, 0], bool),
}


def write(path: Path, env_id: str | None = None, **changes: Any) -> Path:
    """COLUMNS with `changes` (None: left out) as HDF5 or .npz."""
    columns = {key: array for key, array in (COLUMNS | changes).items() if array is not None}
    if path.suffix == ".npz":
        if env_id:
            columns["env_id"] = np.array(env_id)
        np.savez(path, **columns)
        return path
    with h5py.File(path, "w") as file:
        for key, array in columns.items():
            file[key] = array
        if env_id:
            file.attrs["env_id"] = env_id
    return path
