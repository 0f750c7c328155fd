"""Files without `next_observations`: what is known of successors, and of an episode's end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adv_worldmodel.data import load_dataset
from tests.adv_worldmodel.data.three_episodes import write


def test_no_successor_is_taken_from_the_next_episode(tmp_path: Path) -> None:
    """D4RL issue 145: without next_observations the last row of each episode has none."""
    with pytest.warns(UserWarning, match=r"not known: all \(1, with rewards that sum to 2\)"):
        dataset = load_dataset(write(tmp_path / "set.hdf5", next_observations=None))
    np.testing.assert_array_equal(dataset.observations[:, 0], [0, 1, 10, 11, 20])
    np.testing.assert_array_equal(dataset.next_observations[:, 0], [1, 2, 11, 12, 21])
    np.testing.assert_array_equal(dataset.rewards, [0, 1, 3, 4, 6])
    # what is now an episode's last row did not terminate: its value goes on
    assert not dataset.terminations.any()
    np.testing.assert_array_equal(dataset.truncations, [False, True, False, True, True])


def test_terminal_rows_without_successors_are_counted(tmp_path: Path) -> None:
    none = {"next_observations": None, "terminals": np.zeros(8, bool)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(write(tmp_path / "set.npz", **none))
    two = {**none, "terminals": np.array([0, 0, 1, 0, 0, 0, 0, 1], bool)}
    with pytest.warns(UserWarning, match=r"all \(2, with rewards that sum to 9\) .* Add") as caught:
        dataset = load_dataset(write(tmp_path / "set.npz", **two))
    assert len(caught) == 1
    assert "no termination is left" in str(caught[0].message)
    assert not dataset.terminations.any()


def test_early_ends_without_successors_are_no_cuts(tmp_path: Path) -> None:
    """Where terminal rows are dropped, episodes that ended early count as whole, not the last.

    Pendulum-v1 ends after 200 steps, which else tells what the recording cut.
    """
    ends = np.cumsum([200, 50, 200, 120]) - 1
    columns: dict[str, Any] = {
        "observations": np.cumsum(np.ones((570, 3), np.float32), axis=0),
        "actions": np.zeros((570, 1), np.float32),
        "rewards": np.ones(570, np.float32),
        "terminals": np.arange(570) == ends[1],
        "timeouts": np.isin(np.arange(570), ends[[0, 2]]),
        "env_id": np.array("Pendulum-v1"),
    }
    np.savez(tmp_path / "set.npz", **columns)
    with pytest.warns(UserWarning, match="a terminal row is not known"):
        dataset = load_dataset(tmp_path / "set.npz")
    assert dataset.terminations_lost
    assert dataset.episode_lengths().tolist() == [199, 49, 199, 119]
    assert dataset.whole_episodes().tolist() == [True, True, True, False]
    assert dataset.behaviour_return == (199 + 49 + 199) / 3
    np.savez(tmp_path / "set.npz", **{**columns, "terminals": np.zeros(570, bool)})
    uncut = load_dataset(tmp_path / "set.npz")
    assert not uncut.terminations_lost
    assert uncut.episode_lengths().tolist() == [199, 249, 119]
    assert uncut.whole_episodes().tolist() == [True, True, False]


@pytest.mark.parametrize("shuffled", [False, True])
def test_shuffled_rows_without_successors_are_warned_of(tmp_path: Path, shuffled: bool) -> None:
    """A random walk beside a column of noise and a constant one."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(500, 2))
    states = np.column_stack([noise[:, 0].cumsum(), noise[:, 1], np.full(500, 0.1)])
    order = rng.permutation(500) if shuffled else np.arange(500)
    columns = {
        "observations": states[order].astype(np.float32),
        "actions": np.zeros((500, 1), np.float32),
        "rewards": np.zeros(500, np.float32),
        "terminals": np.zeros(500, bool),
        "timeouts": np.zeros(500, bool),
        "action_low": -np.ones(1),
        "action_high": np.ones(1),
    }
    np.savez(tmp_path / "walk.npz", **columns)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_dataset(tmp_path / "walk.npz")
    assert len(caught) == shuffled
    assert all("no nearer to the next one than to any other" in str(w.message) for w in caught)


def test_without_both_only_terminals_and_the_end_are_known(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", next_observations=None, timeouts=None)
    with pytest.warns(UserWarning, match="no known time limit"):
        dataset = load_dataset(path)
    np.testing.assert_array_equal(dataset.observations[:, 0], [0, 1, 10, 11, 12, 20])


def test_without_both_the_environment_s_time_limit_ends_episodes(tmp_path: Path) -> None:
    """Pendulum: 200 steps. A terminal at row 249, so that the next limit is at row 449."""
    columns = {
        "observations": np.zeros((460, 3), np.float32),
        "actions": np.zeros((460, 1), np.float32),
        "rewards": np.arange(460, dtype=np.float32),
        "terminals": np.arange(460) == 249,
    }
    np.savez(tmp_path / "set.npz", **columns, env_id=np.array("Pendulum-v1"))
    dataset = load_dataset(tmp_path / "set.npz")
    # the last row of each episode has no successor in the file
    dropped = sorted(set(range(460)) - set(dataset.rewards.astype(int).tolist()))
    assert dropped == [199, 249, 449, 459]
    assert dataset.episode_lengths().tolist() == [199, 49, 199, 9]


def test_rows_that_all_end_their_episode_have_no_successor(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", next_observations=None, timeouts=np.ones(8, bool))
    with pytest.raises(ValueError, match="Add next_observations"):
        load_dataset(path)
