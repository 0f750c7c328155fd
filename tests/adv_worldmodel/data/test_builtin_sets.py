"""The data sets in the wheel: what their cards say is what they hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adv_worldmodel.data import OfflineDataset, builtin, load_dataset
from adv_worldmodel.data.builtin import make

ROWS = {"pendulum-random": 20_000, "halfcheetah-medium-replay": 70_000}


@pytest.mark.parametrize("name", builtin.NAMES)
def test_cards_tell_the_truth(name: str) -> None:
    dataset, card = load_dataset(name), builtin.load_card(name)
    returns = dataset.episode_returns()
    assert dataset.content_hash == card["content_hash"]
    assert len(dataset) == card["transitions"] == ROWS[name]
    assert len(returns) == card["episodes"]
    for key, value in (("mean", returns.mean()), ("min", returns.min()), ("max", returns.max())):
        assert card["returns"][key] == pytest.approx(value, abs=1e-3)
    assert dataset.name == card["name"] == name
    assert dataset.env_id == card["env_id"]
    assert card["origin"]
    assert card["made"]


def test_returns_are_the_ones_they_are_known_for() -> None:
    assert load_dataset("pendulum-random").behaviour_return == pytest.approx(-1200, abs=50)
    replay = load_dataset("halfcheetah-medium-replay")
    assert replay.behaviour_return == pytest.approx(1741, abs=1)
    assert replay.episode_returns().max() == pytest.approx(5058, abs=1)
    np.testing.assert_array_equal(replay.episode_lengths(), np.full(70, 1000))


def test_pendulum_rows_follow_its_dynamics() -> None:
    """Angular velocity by Pendulum-v1's formula: v + (15 sin + 3 u) dt with g 10, l 1, m 1."""
    data = load_dataset("pendulum-random")
    sine, velocity = data.observations[:, 1], data.observations[:, 2]
    expected = np.clip(velocity + (15.0 * sine + 3.0 * data.actions[:, 0]) * 0.05, -8.0, 8.0)
    np.testing.assert_allclose(data.next_observations[:, 2], expected, atol=1e-4)


def test_pendulum_actions_are_uniform() -> None:
    actions = load_dataset("pendulum-random").actions[:, 0]
    counts, _ = np.histogram(actions, bins=4, range=(-2.0, 2.0))
    np.testing.assert_allclose(counts / len(actions), 0.25, atol=0.02)


@pytest.mark.parametrize("name", builtin.NAMES)
def test_files_are_small_hold_each_observation_once_and_no_pickle(name: str) -> None:
    path = Path(builtin.__file__).parent / f"{name}.npz"
    assert path.stat().st_size <= 7_000_000
    with np.load(path, allow_pickle=False) as file:
        episodes = len(file["episode_lengths"])
        assert len(file["observations"]) == len(file["actions"]) + episodes
        assert "next_observations" not in file.files


def test_a_small_set_is_remade_equal() -> None:
    again = make.pendulum_random(rows=450)
    stored = load_dataset("pendulum-random")
    np.testing.assert_array_equal(again.actions, stored.actions[:450])
    np.testing.assert_allclose(again.observations, stored.observations[:450], atol=1e-4)


def test_pack_refuses_what_it_cannot_hold() -> None:
    states = np.array([[0.0], [1.0]])
    cut = OfflineDataset.from_arrays(
        observations=states,
        actions=np.zeros((2, 1)),
        rewards=np.zeros(2),
        next_observations=states + 5,
        terminations=np.zeros(2),
    )
    gap = replace(cut, truncations=np.array([False, True]))
    with pytest.raises(ValueError, match="a successor is not the next row"):
        builtin.pack(gap)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="there are pendulum-random"):
        builtin.load_card("pendulum")
