"""HDF5 and .npz files: D4RL's layout with and without its optional keys, and broken files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict

from adv_worldmodel.data import load_dataset
from tests.adv_worldmodel.data.three_episodes import COLUMNS, OBSERVATIONS, write


@pytest.mark.parametrize("name", ["set.hdf5", "set.h5", "set.npz"])
def test_a_whole_file_comes_back_as_written(tmp_path: Path, name: str) -> None:
    dataset = load_dataset(write(tmp_path / name))
    for attribute, key in (
        ("observations", "observations"),
        ("actions", "actions"),
        ("rewards", "rewards"),
        ("next_observations", "next_observations"),
        ("terminations", "terminals"),
    ):
        np.testing.assert_array_equal(getattr(dataset, attribute), COLUMNS[key])
    # the last row of a file closes its episode
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [5, 7])
    np.testing.assert_array_equal(dataset.episode_lengths(), [3, 3, 2])
    assert dataset.env_id is None


def test_minaris_names_and_float64_and_column_vectors_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.npz",
        observations=OBSERVATIONS.astype(np.float64),
        rewards=np.arange(8.0)[:, None],
        terminals=None,
        timeouts=None,
        terminations=COLUMNS["terminals"].astype(np.uint8),
        truncations=COLUMNS["timeouts"].astype(np.float32),
    )
    assert (
        load_dataset(str(path)).content_hash
        == load_dataset(write(tmp_path / "set.hdf5")).content_hash
    )


def test_a_column_under_both_names_is_read_where_they_agree(tmp_path: Path) -> None:
    twice = {"truncations": COLUMNS["timeouts"], "terminations": COLUMNS["terminals"][:, None]}
    hashes = {
        load_dataset(write(tmp_path / f"{name}.npz", **more)).content_hash
        for name, more in {"once": {}, "twice": twice}.items()
    }
    assert len(hashes) == 1


def test_time_outs_are_inferred_from_gaps(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path / "set.hdf5", timeouts=None))
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [5, 7])
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminations), [2])


@pytest.mark.parametrize("name", ["set.hdf5", "set.npz"])
def test_time_outs_that_miss_the_gaps_do_not_run_episodes_together(
    tmp_path: Path, name: str
) -> None:
    dataset = load_dataset(write(tmp_path / name, timeouts=np.zeros(8, bool)))
    assert dataset.episode_lengths().tolist() == [3, 3, 2]
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncations), [5, 7])


@pytest.mark.parametrize("following", [COLUMNS["next_observations"], None])
def test_a_large_offset_in_a_file_is_warned_of(tmp_path: Path, following: Any) -> None:
    def far(states: Any) -> Any:
        return None if states is None else 5.4e6 + 0.1 * np.square(states.astype(np.float64))

    columns = {"observations": far(OBSERVATIONS), "next_observations": far(following)}
    path = write(tmp_path / "set.npz", **columns, terminals=np.zeros(8, bool))
    with pytest.warns(UserWarning, match=r"set.npz: 'obs.* 0 is near 5.4.* an offset") as caught:
        load_dataset(path)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("given", "column"), [("next_observation", "next_observations"), ("truncated", "truncations")]
)
def test_a_column_under_nearly_its_name_is_warned_of(
    tmp_path: Path, given: str, column: str
) -> None:
    left_out = {"timeouts": None} if column == "truncations" else {column: None}
    columns = {**left_out, given: np.zeros(8, bool), "infos": np.zeros(8, bool)}
    path = write(tmp_path / "set.npz", **columns)
    with pytest.warns(UserWarning, match=f"'{given}' is not read, and there is no '{column}'"):
        load_dataset(path)


def test_the_environment_that_a_file_names_gives_the_bounds(tmp_path: Path) -> None:
    zeros = np.zeros((8, 3), np.float32)
    for name in ("set.hdf5", "set.npz"):
        path = write(tmp_path / name, "Pendulum-v1", observations=zeros, next_observations=zeros)
        dataset = load_dataset(path)
        assert dataset.env_id == "Pendulum-v1"
        assert dataset.action_space.high == 2.0
    # one that cannot be built here is kept as a name; the bounds are then those of the data
    dataset = load_dataset(write(tmp_path / "other.npz", env_id="Elsewhere-v0"))
    assert dataset.env_id == "Elsewhere-v0"
    assert dataset.action_space.high == 1.0
    with pytest.raises(ValueError, match="'observations' has 1 dimensions per row, but Pendulum"):
        load_dataset(write(tmp_path / "wrong.npz", env_id="Pendulum-v1"))


@pytest.mark.parametrize("stated", [b"Pendulum-v1", "Pendulum-v1", np.array([b"Pendulum-v1"])])
@pytest.mark.parametrize("as_attribute", [True, False])
def test_an_hdf5_file_may_name_its_environment_in_any_form(
    tmp_path: Path, stated: Any, as_attribute: bool
) -> None:
    zeros = np.zeros((8, 3), np.float32)
    path = write(tmp_path / "set.hdf5", observations=zeros, next_observations=zeros)
    with h5py.File(path, "a") as file:
        (file.attrs if as_attribute else file)["env_id"] = stated
    assert load_dataset(path).env_id == "Pendulum-v1"
    with h5py.File(path, "a") as file:
        if "env_id" in file:
            del file["env_id"]
        file.attrs["env_id"] = 3
    with pytest.raises(ValueError, match=r"set.hdf5: 'env_id' is array.* expected one environment"):
        load_dataset(path)


class Composite(PendulumEnv):  # type: ignore[misc]
    """Observations are a dictionary, which a wrapper of whoever recorded may have flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Dict({"angle": self.observation_space})


@pytest.mark.parametrize("name", ["set.hdf5", "set.npz"])
def test_flat_rows_of_a_composite_environment_have_no_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = EnvSpec("Composite-v0", entry_point=Composite)
    monkeypatch.setitem(gym.registry, "Composite-v0", spec)
    path = write(tmp_path / name, "Composite-v0")
    with pytest.warns(UserWarning, match=f"{name} names the environment Composite-v0, of other"):
        assert load_dataset(path).env_id is None
    with pytest.raises(ValueError, match="Composite-v0: the observation space is Dict"):
        load_dataset(path, env_id="Composite-v0")


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "set.npz")
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(PermissionError):
        load_dataset(path)


@pytest.mark.parametrize("stated", [b"Pendulum-v1", ["Pendulum-v1"], np.array([[b"Pendulum-v1"]])])
def test_an_npz_may_name_its_environment_in_any_form(tmp_path: Path, stated: Any) -> None:
    zeros = np.zeros((8, 3), np.float32)
    states = {"observations": zeros, "next_observations": zeros}
    np.savez(tmp_path / "set.npz", **(COLUMNS | states), env_id=stated)
    assert load_dataset(tmp_path / "set.npz").env_id == "Pendulum-v1"
    np.savez(tmp_path / "set.npz", **(COLUMNS | states), env_id=["Pendulum-v1", "Hopper-v5"])
    with pytest.raises(ValueError, match=r"set.npz: 'env_id' is array.* expected one environment"):
        load_dataset(tmp_path / "set.npz")


@pytest.mark.parametrize("name", ["set.hdf5", "set.npz"])
def test_a_file_states_the_bounds_of_its_actions(tmp_path: Path, name: str) -> None:
    bounds = {"action_low": np.array([-1.5]), "action_high": np.array([3.0])}
    narrow = {"actions": 0.3 * COLUMNS["actions"]}
    with pytest.warns(UserWarning, match=rf"{name}: .* guessed \[-1, 1\].* action_low"):
        assert load_dataset(write(tmp_path / name, **narrow)).action_bounds_guessed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_dataset(write(tmp_path / name, **narrow, **bounds))
    assert dataset.action_space == Box(-1.5, 3.0, (1,), np.float32)
    assert not dataset.action_bounds_guessed
    # beside an environment that has others
    zeros = np.zeros((8, 3), np.float32)
    states = {"observations": zeros, "next_observations": zeros}
    dataset = load_dataset(write(tmp_path / name, "Pendulum-v1", **bounds, **states))
    assert dataset.action_space == Box(-1.5, 3.0, (1,), np.float32)
    assert dataset.observation_space.is_bounded()


def test_a_file_cannot_make_us_import_a_module(tmp_path: Path) -> None:
    assert load_dataset(write(tmp_path / "set.npz", env_id="antigravity:X-v0")).env_id is None


def test_env_id_and_reward_offset_of_the_caller(tmp_path: Path) -> None:
    zeros = np.zeros((8, 3), np.float32)
    path = write(tmp_path / "set.npz", observations=zeros, next_observations=zeros)
    dataset = load_dataset(path, env_id="Pendulum-v1", reward_offset=-1.0)
    assert dataset.env_id == "Pendulum-v1"
    assert dataset.action_space.high == 2.0
    np.testing.assert_array_equal(dataset.rewards, np.arange(8) - 1.0)
    with pytest.raises(ValueError, match=r"'Pendulm-v1' cannot be built.*Near ids: Pendulum-v1"):
        load_dataset(path, env_id="Pendulm-v1")


@pytest.mark.parametrize("name", ["set.hdf5", "set.npz"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "key 'actions' is missing; found: next_observations, observations"),
        ({"terminals": None}, "key 'terminals' or 'terminations' is missing"),
        ({"rewards": None, "reward": np.zeros(8)}, "Rename 'reward'"),
        # not next_observations
        ({"observations": None, "states": np.zeros((8, 1))}, r"observations, .*states.* Expected"),
        ({"rewards": np.zeros(7)}, "'rewards' has 7 rows but 'observations' has 8"),
        ({"timeouts": np.zeros(9)}, "'timeouts' has 9 rows"),
        ({"timeouts": np.full(8, 3)}, "'timeouts' row 0 is 3"),
        (
            {"truncations": np.arange(8) == 3},
            r"'timeouts' and 'truncations' are two names of one column, .* \(first in row 3\)",
        ),
        ({"truncations": np.zeros(7)}, r"differ \(8 and 7 rows\). Delete"),
        ({"terminations": np.zeros(8)}, r"'terminals' and 'terminations' .* \(first in row 2\)"),
        ({"observations": np.zeros((8, 2, 2))}, r"'observations' has shape \(8, 2, 2\)"),
        ({"next_observations": np.zeros((8, 2))}, "'next_observations' has 2 dimensions"),
        ({"actions": np.eye(8)[:, :1] * np.nan}, "'actions' row 0 dimension 0 is nan"),
        ({"actions": np.zeros(8, int)}, "'actions' has dtype int64, .*cast them to float"),
        ({"actions": np.zeros((8, 1), bool)}, "'actions' has dtype bool, .*cast them to float"),
        ({"action_low": [-1.0]}, "'action_low' stands alone; expected both"),
        (
            {"action_low": [-1.0], "action_high": 1.0},
            r"'action_high' has shape \(\); expected",
        ),
        ({"action_low": [1.0], "action_high": [1.0]}, "expected finite numbers, low < high"),
        ({"action_low": [-1.0], "action_high": [np.inf]}, "expected finite numbers, low < high"),
        ({"action_low": [-0.5], "action_high": [1.0]}, "'actions' row 0 .* outside the bounds"),
        ({key: COLUMNS[key][:0] for key in COLUMNS}, "the data set is empty"),
    ],
)
def test_wrong_content_names_file_and_key(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        load_dataset(write(tmp_path / name, **changes))


@pytest.mark.parametrize("name", ["set.hdf5", "set.npz"])
def test_truncated_and_foreign_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    whole = path.read_bytes()
    cuts = [whole[: len(whole) * part // 8] for part in range(8)]
    for content in (*cuts, b"not a data file"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot be read.*truncated or of another"):
            load_dataset(path)


def test_a_damaged_compressed_column_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **COLUMNS)
    damaged = bytearray(path.read_bytes())
    damaged[60:200] = bytes(140)
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="cannot be read as npz"):
        load_dataset(path)


def test_pickles_in_an_npz_are_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", rewards=np.array([object()] * 8))
    with pytest.raises(ValueError, match="holds pickled objects, which are not opened"):
        load_dataset(path)


def test_missing_files_folders_and_other_types(tmp_path: Path) -> None:
    write(tmp_path / "set.hdf5")
    with pytest.raises(FileNotFoundError, match=r"sat.hdf5 does not exist.*set.hdf5"):
        load_dataset(tmp_path / "sat.hdf5")
    with pytest.raises(FileNotFoundError, match="nor does the folder"):
        load_dataset(tmp_path / "no" / "set.hdf5")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_dataset(tmp_path)
    other = tmp_path / "set.csv"
    other.write_text("1,2")
    with pytest.raises(ValueError, match=r"unknown file type '.csv'"):
        load_dataset(str(other))


def test_minaris_own_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "main_data.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("episode_0")
    with pytest.raises(ValueError, match="Minari's own storage"):
        load_dataset(path)


def test_other_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"A dict is no data set.*from_arrays"):
        load_dataset({})


@pytest.mark.parametrize("env_id", ["brief_lines:Brief-v0", "Pendulum"])
def test_time_limits_are_found_by_any_name_of_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str
) -> None:
    (tmp_path / "brief_lines.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "gym.register('Brief-v0', PendulumEnv, max_episode_steps=2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = {"next_observations": None, "timeouts": None, "terminals": np.zeros(8, bool)}
    file = write(tmp_path / "set.npz", observations=np.ones((8, 3), np.float32), **plain)
    dataset = load_dataset(file, env_id=env_id)
    assert dataset.episode_lengths().tolist() == ([1, 1, 1, 1] if "Brief" in env_id else [7])


def test_a_file_may_have_a_tilde_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    write(tmp_path / "~nosuch.npz")
    write(tmp_path / "home" / "set.npz", rewards=COLUMNS["rewards"] + 1)
    np.testing.assert_array_equal(load_dataset("~nosuch.npz").rewards, COLUMNS["rewards"])
    np.testing.assert_array_equal(load_dataset("~/set.npz").rewards, COLUMNS["rewards"] + 1)
