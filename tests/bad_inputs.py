"""Makers of inputs with one thing wrong: each writes into a folder of its own and names the file.

`npz(rewards=...)`, `of_run("evaluate", flipped("policy/policy.json"))`: cases read as a list.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium.spaces import Box

from adv_worldmodel import WorldModel
from adv_worldmodel.dynamics import Ensemble, make_termination

ROWS = 20


@dataclass(frozen=True)
class Place:
    """Where a case works: an empty folder, and a finished run to copy from."""

    path: Path
    finished: Path


Make = Callable[[Place], str]  #: writes something, returns its path
Words = Callable[[Place], list[str]]  #: the same, returns the command line
Damage = Callable[[Path], object]  #: changes what is in a folder


# --- data ---------------------------------------------------------------------------------------


def columns(**changes: Any) -> dict[str, Any]:
    """Twenty rows with the shapes and bounds of Pendulum-v1; None drops a column."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {
        "observations": rng.uniform(-1, 1, (ROWS, 3)),
        "actions": rng.uniform(-1, 1, (ROWS, 1)),
        "rewards": rng.uniform(-1, 0, ROWS),
        "terminals": np.zeros(ROWS, bool),
        "next_observations": rng.uniform(-1, 1, (ROWS, 3)),
    }
    return {key: value for key, value in (found | changes).items() if value is not None}


def cell(column: str, row: int, value: float) -> dict[str, Any]:
    """The column with one number changed."""
    array = columns()[column].astype(float)
    array[row] = value
    return {column: array}


def cart(**changes: Any) -> dict[str, Any]:
    """Columns with the shapes of InvertedPendulum-v5, whose observations have no bounds."""
    rng = np.random.default_rng(1)
    states = {key: rng.uniform(-1, 1, (ROWS, 4)) for key in ("observations", "next_observations")}
    return columns(**states) | changes


def first_rows(n: int) -> dict[str, Any]:
    return {key: array[:n] for key, array in columns().items()}


def npz_bytes(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npz(**changes: Any) -> Make:
    return content("set.npz", lambda: npz_bytes(**columns(**changes)))


def hdf5_bytes(change: Callable[[h5py.File], object] = lambda file: None, **changes: Any) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for key, array in columns(**changes).items():
            file[key] = array
        change(file)
    return memory.getvalue()


def hdf5(change: Callable[[h5py.File], object] = lambda file: None, **changes: Any) -> Make:
    return content("set.hdf5", lambda: hdf5_bytes(change, **changes))


def content(name: str, given: bytes | str | Callable[[], bytes]) -> Make:
    def make(place: Place) -> str:
        path = place.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found = given() if callable(given) else given
        path.write_bytes(found if isinstance(found, bytes) else found.encode())
        return str(path)

    return make


def folder(name: str) -> Make:
    def make(place: Place) -> str:
        (place.path / name).mkdir()
        return str(place.path / name)

    return make


def named(name: str, make: Make) -> Make:
    """Another name for what is made."""
    return lambda place: name if make(place) else ""


def below(make: Make) -> Make:
    return lambda place: f"{make(place)}/more.npz"


def out(make: Make) -> Make:
    return lambda place: f"out={make(place)}"


def half(make: Make) -> Make:
    """The first half of a file."""

    def cut(place: Place) -> str:
        path = Path(make(place))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return str(path)

    return cut


def linked(link: Any, key: str = "rewards") -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = link

    return change


def stored_in_another_file(file: h5py.File) -> None:
    del file["rewards"]
    file.create_dataset("rewards", (ROWS,), "f4", external=[("other.bin", 0, ROWS * 4)])


def in_groups(file: h5py.File) -> None:
    for key in list(file):
        file.move(key, f"episode_0/{key}")


def minari_set(damage: Damage) -> Make:
    """A Minari set mine/set-v0 in the folder `minari`."""

    def make(place: Place) -> str:
        from adv_worldmodel import load_dataset
        from adv_worldmodel.data.minari_io import to_minari

        to_minari(load_dataset(npz()(place)), "mine/set-v0")
        damage(place.path / "minari" / "mine" / "set-v0" / "data")
        return "mine/set-v0"

    return make


# --- damage -------------------------------------------------------------------------------------


def removed(name: str) -> Damage:
    def damage(path: Path) -> None:
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def rewritten(name: str, given: str | bytes) -> Damage:
    return lambda path: (path / name).write_bytes(
        given if isinstance(given, bytes) else given.encode()
    )


def cut(name: str) -> Damage:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-9])


def flipped(name: str) -> Damage:
    """One bit of the file's last byte but nine: a number in JSON, a weight in safetensors."""

    def damage(path: Path) -> None:
        whole = bytearray((path / name).read_bytes())
        whole[-10] ^= 1
        (path / name).write_bytes(bytes(whole))

    return damage


def changed(name: str, **changes: Any) -> Damage:
    """Keys of a JSON file; None removes one."""

    def damage(path: Path) -> None:
        found = json.loads((path / name).read_text()) | changes
        kept = {key: value for key, value in found.items() if value is not None}
        (path / name).write_text(json.dumps(kept))

    return damage


def unchanged(path: Path) -> None:
    """No damage."""


def each_checkpoint(damage: Damage) -> Damage:
    return lambda path: [damage(folder) for folder in (path / "checkpoints").iterdir()]


def other_world_model(path: Path) -> None:
    """A model of a state on a line in place of the run's."""
    ensemble = Ensemble(2, input_dim=2, output_dim=2, hidden_sizes=(4,))
    space = Box(-1.0, 1.0, (1,), np.float32)
    WorldModel(ensemble, make_termination("never", None), space, space).save(path / "world_model")


def all_of(*damages: Damage) -> Damage:
    return lambda path: [damage(path) for damage in damages]


# --- command lines ------------------------------------------------------------------------------


def words(*given: str | Make) -> Words:
    """A command line, in which makers stand for what they make."""
    return lambda place: [word if isinstance(word, str) else word(place) for word in given]


def info(source: str | Make, *options: str) -> Words:
    return words("data", "info", source, *options)


def train(*overrides: str) -> Words:
    return words("train", "pendulum-random", *overrides)


def train_on(source: Make, *overrides: str) -> Words:
    return lambda place: ["train", "base", f"dataset={source(place)}", *overrides]


def sweep(*options: str) -> Words:
    return words("sweep", "pendulum-random", *options)


def config(text: str | bytes) -> Words:
    return words("train", content("mine.yaml", text))


def run(damage: Damage = unchanged, name: str = "run") -> Make:
    """A copy of the finished run, damaged."""

    def make(place: Place) -> str:
        path = place.path / name
        shutil.copytree(place.finished, path)
        damage(path)
        return str(path)

    return make


def evaluate(damage: Damage, *options: str) -> Words:
    return words("evaluate", run(damage), "--episodes", "1", *options)


def of_sweep(damage: Damage) -> Make:
    """The folder of a sweep over no settings, of which one run is done."""

    def make(place: Place) -> str:
        run(damage, "sweep/pendulum-random/seed-0")(place)
        (place.path / "sweep" / ".lock").touch()
        return str(place.path / "sweep")

    return make


def results(damage: Damage, *options: str) -> Words:
    return words("results", run(damage), *options)


def resume(damage: Damage, *overrides: str) -> Words:
    return words("train", "--resume", run(damage), *overrides)
