"""HDF5 files whose arrays lie elsewhere are refused; what they name is not opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from adv_worldmodel import OfflineDataset
from adv_worldmodel.data import load_dataset
from adv_worldmodel.data.links import stored_elsewhere
from adv_worldmodel.data.minari_io import to_minari

Place = Callable[[h5py.Group, str, Path], None]


def external_link(group: h5py.Group, key: str, other: Path) -> None:
    group[key] = h5py.ExternalLink(str(other), "/secret")


def soft_link(group: h5py.Group, key: str, other: Path) -> None:
    group.file["aside"] = h5py.ExternalLink(str(other), "/secret")
    group[key] = h5py.SoftLink("/aside")


def link_within(group: h5py.Group, key: str, other: Path) -> None:
    group.file["aside"] = np.arange(8.0)
    group[key] = h5py.SoftLink("/aside")


def external_storage(group: h5py.Group, key: str, other: Path) -> None:
    group.create_dataset(key, (8,), np.float64, external=[(str(other), 0, 64)])


def virtual(group: h5py.Group, key: str, other: Path) -> None:
    layout = h5py.VirtualLayout((8,), np.float64)
    layout[:] = h5py.VirtualSource(str(other), "secret", (8,))
    group.create_virtual_dataset(key, layout)


PLACES = [external_link, soft_link, link_within, external_storage, virtual]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that only the reader can see."""
    path = tmp_path / "private" / "secret.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["secret"] = np.arange(8.0)
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["rewards", "remarks/mine"])
def test_an_array_elsewhere_is_refused(
    place: Place, key: str, secret: Path, tmp_path: Path
) -> None:
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions"):
            file[name] = np.zeros((8, 1))
        file["terminals"] = np.zeros(8, bool)
        if key != "rewards":
            file["rewards"] = np.zeros(8)
        place(file, key, secret)
    with pytest.raises(ValueError, match=r"set\.hdf5: '\w+(/mine)?' (is a|lies in).* new file\.$"):
        load_dataset(path)


@pytest.mark.parametrize("place", PLACES)
def test_an_array_of_a_minari_set_elsewhere_is_refused(
    place: Place,
    secret: Path,
    line: OfflineDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    to_minari(line, "mine/line-v0")
    with h5py.File(tmp_path / "minari/mine/line-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        place(file["episode_0"], "rewards", secret)
    with pytest.raises(ValueError, match=r"minari:mine/line-v0: '.*' (is a link|lies in)"):
        load_dataset("mine/line-v0")


def test_a_link_is_told_without_opening_its_target(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        file["there"] = h5py.ExternalLink(str(tmp_path / "nowhere"), "/secret")
        assert stored_elsewhere(file) == "'there' is a link"


def test_groups_and_names_for_one_array_are_no_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.hdf5", "w") as file:
        file["a/b/c"] = np.zeros(3)
        file["same"] = file["a/b/c"]  # a hard link
        file["type"] = np.dtype("f8")
        assert stored_elsewhere(file) is None


def test_the_copied_array_is_read(tmp_path: Path, secret: Path) -> None:
    """The remedy that the message names works."""
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file, h5py.File(secret) as other:
        for name in ("observations", "actions"):
            file[name] = np.zeros((8, 1))
        file["terminals"] = file["timeouts"] = np.zeros(8, bool)
        file["rewards"] = other["secret"][()]
    shutil.rmtree(secret.parent)
    np.testing.assert_array_equal(load_dataset(path).rewards, np.arange(7.0))
