"""D4RL sets by name, and where they are evaluated."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from adv_worldmodel.data import evaluation_env, load_dataset, scores
from adv_worldmodel.data.d4rl import URLS, d4rl_path, present_sets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def write(path: Path, state_dim: int, action_dim: int, terminals: list[int]) -> None:
    n = len(terminals)
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(n * state_dim, dtype=np.float32).reshape(n, state_dim)
        file["actions"] = np.zeros((n, action_dim), np.float32)
        file["rewards"] = np.array(terminals, np.float32)
        file["terminals"] = np.array(terminals, bool)
        file["timeouts"] = np.zeros(n, bool)


def test_files_have_the_names_that_d4rl_gives_them(folder: Path) -> None:
    for name, file in (
        ("hopper-medium-v2", "hopper_medium-v2.hdf5"),
        ("walker2d-medium-replay-v2", "walker2d_medium_replay-v2.hdf5"),
        ("walker2d-medium-replay-v0", "walker_mixed.hdf5"),
        (
            "antmaze-umaze-v0",
            "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5",
        ),
        (
            "antmaze-large-diverse-v2",
            "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        ),
    ):
        assert d4rl_path(name) == folder / file


def test_the_default_folder_is_d4rls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    expected = Path.home() / ".d4rl" / "datasets" / "hopper_medium-v2.hdf5"
    assert d4rl_path("hopper-medium-v2") == expected


def test_no_two_sets_share_a_file() -> None:
    assert len(set(URLS.values())) == len(URLS)


def test_a_set_is_read_and_evaluated_in_the_nearest_environment(folder: Path) -> None:
    write(folder / "hopper_medium-v2.hdf5", 11, 3, [0, 0, 0, 1, 0, 0])
    dataset = load_dataset("d4rl:hopper-medium-v2")
    assert dataset.name == "d4rl:hopper-medium-v2"
    assert dataset.env_id == evaluation_env("d4rl:hopper-medium-v2")[0]
    assert len(dataset) == 4
    assert present_sets() == ["hopper-medium-v2"]


def test_antmaze_keeps_its_rows_at_the_goal(folder: Path) -> None:
    """Its flags mark a walking ant at the goal; dropped as episode ends they would take all reward
    with them (the trajectory goes on, so the next row is the true successor)."""
    write(d4rl_path("antmaze-umaze-v0"), 29, 8, [0, 0, 1, 1, 0])
    dataset = load_dataset("d4rl:antmaze-umaze-v0", reward_offset=-1.0)
    np.testing.assert_array_equal(dataset.rewards, [-1.0, -1.0, 0.0, 0.0])
    np.testing.assert_array_equal(dataset.terminations, [False, False, True, True])
    assert not dataset.truncations.any()  # a row ends once
    np.testing.assert_array_equal(dataset.next_observations[:-1], dataset.observations[1:])


def test_antmaze_is_known_by_the_name_of_its_file(folder: Path) -> None:
    path = d4rl_path("antmaze-umaze-v0")
    write(path, 29, 8, [0, 0, 1, 1, 0])
    by_name, by_path = load_dataset("d4rl:antmaze-umaze-v0"), load_dataset(path)
    assert by_path.goal_terminals
    assert by_path.content_hash == by_name.content_hash
    path.rename(folder / "mine.hdf5")
    with pytest.warns(UserWarning, match=r"all \(2, with rewards that sum to 2\) are dropped"):
        assert not load_dataset(folder / "mine.hdf5").rewards.any()


def test_a_missing_file_says_what_goes_where(folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("d4rl:hopper-medium-v2")
    assert str(folder / "hopper_medium-v2.hdf5") in str(error.value)
    assert "gym_mujoco_v2/hopper_medium-v2.hdf5" in str(error.value)
    assert "D4RL_DATASET_DIR" in str(error.value)


@pytest.mark.usefixtures("folder")
def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"Near ones: .*hopper-medium-v2"):
        load_dataset("d4rl:hoper-medium-v2")


def test_evaluation_says_which_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "buildable", lambda env_id: True)
    env_id, note = evaluation_env("halfcheetah-medium-v2")
    assert env_id == "HalfCheetah-v4"
    assert "HalfCheetah-v4" in note
    monkeypatch.setattr(scores, "buildable", lambda env_id: False)
    env_id, note = evaluation_env("walker2d-random-v2")
    assert env_id == "Walker2d-v5"
    assert "not comparable" in note
    env_id, note = evaluation_env("antmaze-umaze-v0")  # not Ant's
    assert env_id is None
    assert "antmaze" in note
