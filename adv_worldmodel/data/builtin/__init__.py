"""The small data sets that ship with the package; each has a card (JSON) beside its `.npz`.

A file holds every observation once: an episode of T transitions has T + 1 of them, the last one the
true successor of its last transition.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from adv_worldmodel.data.dataset import OfflineDataset

NAMES = ("pendulum-random", "halfcheetah-medium-replay")
"""Names that `load_builtin` and `load_dataset` know."""


def load_card(name: str) -> dict[str, Any]:
    """The card of a built-in set: where from, how made, returns, content hash, bounds."""
    if name not in NAMES:
        raise ValueError(f"'{name}' is no built-in data set; there are {', '.join(NAMES)}.")
    text = resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    card: dict[str, Any] = json.loads(text)
    return card


def load_builtin(name: str) -> OfflineDataset:
    """The built-in data set `name`."""
    card = load_card(name)
    packed = resources.files(__name__).joinpath(f"{name}.npz")
    with resources.as_file(packed) as path, np.load(path, allow_pickle=False) as file:
        stored = {key: file[key] for key in file.files}
    return unpack(stored, card)


def pack(dataset: OfflineDataset) -> dict[str, NDArray[Any]]:
    """Arrays that hold `dataset` with each observation once, for `numpy.savez_compressed`.

    :raises ValueError: if an episode has a gap (a successor that is not the next observation) or
        the last one is not closed.
    """
    ends = dataset.episode_ends()
    if ends[-1] != len(dataset) - 1:
        raise ValueError(f"{dataset.name}: rows follow the last episode's end (row {ends[-1]}).")
    inner = np.ones(len(dataset), dtype=np.bool_)
    inner[ends] = False
    rows = np.flatnonzero(inner)
    if not np.array_equal(dataset.next_observations[rows], dataset.observations[rows + 1]):
        raise ValueError(f"{dataset.name}: within an episode a successor is not the next row.")
    final = dataset.next_observations[ends]
    observations = np.insert(dataset.observations, ends + 1, final, axis=0)
    return {
        "observations": observations,
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "episode_lengths": dataset.episode_lengths(),
        "terminations": dataset.terminations[ends],
        "truncations": dataset.truncations[ends],
    }


def unpack(stored: dict[str, NDArray[Any]], card: dict[str, Any]) -> OfflineDataset:
    """The inverse of `pack`; name, environment and bounds come from the card."""
    lengths = stored["episode_lengths"]
    ends = np.cumsum(lengths) - 1
    # Row i of episode e stands behind the e final observations of the episodes before it.
    rows = np.arange(len(stored["actions"])) + np.repeat(np.arange(len(lengths)), lengths)
    flags = {}
    for key in ("terminations", "truncations"):
        flags[key] = np.zeros(len(rows), dtype=np.bool_)
        flags[key][ends] = stored[key]
    width = stored["observations"].shape[1]
    return OfflineDataset(
        observations=stored["observations"][rows],
        actions=stored["actions"],
        rewards=stored["rewards"],
        next_observations=stored["observations"][rows + 1],
        terminations=flags["terminations"],
        truncations=flags["truncations"],
        observation_space=_box(card["observation_bounds"], width),
        action_space=_box(card["action_bounds"], stored["actions"].shape[1]),
        name=card["name"],
        env_id=card["env_id"],
    )


def _box(bounds: dict[str, list[float]] | None, width: int) -> Box:
    if bounds is None:
        return Box(-np.inf, np.inf, (width,), np.float32)
    low, high = (np.asarray(bounds[key], dtype=np.float32) for key in ("low", "high"))
    return Box(low, high, dtype=np.float32)
