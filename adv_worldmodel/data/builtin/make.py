"""Makes the built-in data sets and their cards; for maintenance, no part of the library imports it.

Run as `python -m adv_worldmodel.data.builtin.make pendulum-random`, or with
`halfcheetah-medium-replay SOURCE.hdf5`, the file that the second one is made of.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from adv_worldmodel.data.builtin import NAMES, pack
from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.sources import load_dataset

FOLDER = Path(__file__).parent


def pendulum_random(rows: int = 20_000, seed: int = 0) -> OfflineDataset:
    """`rows` transitions of uniform random actions in Pendulum-v1 (episodes of 200 steps)."""
    env = gym.make("Pendulum-v1")
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    keys = "observations actions rewards next_observations terminations truncations"
    columns: dict[str, list[Any]] = {key: [] for key in keys.split()}
    observation, _ = env.reset(seed=seed)
    for _ in range(rows):
        action = rng.uniform(low, high).astype(np.float32)
        successor, reward, terminated, truncated, _ = env.step(action)
        row = (observation, action, reward, successor, terminated, truncated)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        observation = env.reset()[0] if terminated or truncated else successor
    dataset = OfflineDataset.from_arrays(
        *map(np.asarray, columns.values()),
        observation_space=env.observation_space,
        action_space=env.action_space,
        name="pendulum-random",
        env_id="Pendulum-v1",
    )
    env.close()
    return dataset


def card(dataset: OfflineDataset, origin: str, made: str, licence: str) -> dict[str, Any]:
    """What is told about a built-in set."""
    returns = dataset.episode_returns()
    return {
        "name": dataset.name,
        "env_id": dataset.env_id,
        "origin": origin,
        "made": made,
        "licence": licence,
        "transitions": len(dataset),
        "episodes": len(returns),
        "returns": {
            "mean": round(float(returns.mean()), 3),
            "std": round(float(returns.std()), 3),
            "min": round(float(returns.min()), 3),
            "max": round(float(returns.max()), 3),
            "last_ten": round(float(returns[-10:].mean()), 3),
        },
        "observation_bounds": bounds(dataset.observation_space),
        "action_bounds": bounds(dataset.action_space),
        "content_hash": dataset.content_hash,
    }


def bounds(space: Box) -> dict[str, list[float]] | None:
    """Bounds as lists; None for an unbounded space."""
    if not np.isfinite([space.low, space.high]).all():
        return None
    return {"low": space.low.tolist(), "high": space.high.tolist()}


def main() -> None:
    """Writes `NAME.npz` and `NAME.json` beside this file (or into `--out`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("source", nargs="?", type=Path, help="HDF5 file of the replay buffer")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    if arguments.name == "pendulum-random":
        dataset = pendulum_random()
        origin = "Pendulum-v1 of Gymnasium (default settings, episodes of 200 steps)."
        made = "Uniform random actions in [-2, 2], numpy's default_rng(0); environment seed 0."
        licence = "MIT, as this package."
    else:
        if arguments.source is None:
            parser.error("halfcheetah-medium-replay is made of a file: give SOURCE.hdf5")
        dataset = replace(load_dataset(arguments.source), name=arguments.name)
        origin = "HalfCheetah-v5 of Gymnasium (default settings, episodes of 1000 steps)."
        made = (
            "Everything that a Stable-Baselines3 SAC saw in its first 70,000 steps, from its first "
            "random actions on; D4RL-style, but not D4RL: scores do not compare with -v2 tables."
        )
        licence = "MIT, as this package."
    path = arguments.out / f"{arguments.name}.npz"
    np.savez_compressed(path, allow_pickle=False, **pack(dataset))
    text = json.dumps(card(dataset, origin, made, licence), indent=2)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
