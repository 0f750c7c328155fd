"""One door to every kind of data: `load_dataset`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

from adv_worldmodel.building import check_id
from adv_worldmodel.data import builtin, minari_io
from adv_worldmodel.data.d4rl import URLS, has_goal_terminals, load_d4rl
from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.environments import check_fit
from adv_worldmodel.data.files import SUFFIXES, load_file
from adv_worldmodel.data.replay_buffer import from_replay_buffer, is_replay_buffer
from adv_worldmodel.paths import expanded

if TYPE_CHECKING:
    from minari import MinariDataset  # type: ignore[import-untyped]
    from stable_baselines3.common.buffers import ReplayBuffer


def load_dataset(
    source: OfflineDataset | MinariDataset | ReplayBuffer | str | Path,
    *,
    reward_offset: float = 0.0,
    env_id: str | None = None,
) -> OfflineDataset:
    """The data set that `source` is or names.

    :param source: an `OfflineDataset`, a `MinariDataset`, an SB3 `ReplayBuffer`, or a string:
        a built-in name ("pendulum-random", "halfcheetah-medium-replay"),
        a file (.hdf5, .h5, .npz) with D4RL's or Minari's keys,
        "d4rl:NAME" for the file that D4RL keeps ("d4rl:hopper-medium-v2"),
        "minari:ID" or a plain Minari id ("mujoco/hopper/medium-v0").
    :param reward_offset: added to every reward (AntMaze: -1).
    :param env_id: Gymnasium id ("Hopper-v5", "module:Name-v0") of the environment to evaluate in,
        in place of the one the source names; action bounds are taken from it unless the source
        states them.
    :raises FileNotFoundError: no such file or id; lists the near ones.
    :raises ValueError: unfit content (names key and row), or an environment that does not fit.
    """
    if env_id is not None:
        check_id(env_id)
    dataset = _load(source, env_id)
    if env_id is not None:
        check_fit(env_id, dataset.observations.shape[1], dataset.actions.shape[1], dataset.name)
        dataset = dataset.with_env_id(env_id)
    return dataset.with_reward_offset(reward_offset)


def _load(source: object, env_id: str | None) -> OfflineDataset:
    if isinstance(source, OfflineDataset):
        return source
    if is_replay_buffer(source):
        return from_replay_buffer(cast("ReplayBuffer", source), env_id=env_id)
    if any(cls.__name__ == "MinariDataset" for cls in type(source).__mro__):
        return minari_io.from_minari(cast("MinariDataset", source), env_id=env_id)
    if isinstance(source, Path):
        return _load_file(expanded(source), str(source), env_id)
    if not isinstance(source, str):
        raise ValueError(
            f"A {type(source).__name__} is no data set; expected an OfflineDataset, a "
            "MinariDataset, a Stable-Baselines3 ReplayBuffer, a file or an id. Arrays go through "
            "OfflineDataset.from_arrays."
        )
    if source in builtin.NAMES:
        return builtin.load_builtin(source)
    kind, colon, name = source.partition(":")
    if colon and kind == "d4rl":
        return load_d4rl(name, env_id=env_id)
    if colon and kind == "minari":
        return minari_io.load_minari(name, env_id=env_id)
    path = expanded(source)
    if path.suffix in SUFFIXES or path.is_file():
        return _load_file(path, source, env_id)
    if source in URLS and source not in minari_io.local_ids():
        # Minari would look for it on the network, where its ids are others.
        raise FileNotFoundError(
            f"'{source}' is a D4RL data set: name it d4rl:{source}, or minari:{source} if a Minari "
            "set of that id is meant."
        )
    near = get_close_matches(source, [*builtin.NAMES, *(f"d4rl:{set_}" for set_ in URLS)], n=3)
    try:
        return minari_io.load_minari(source, env_id=env_id)
    except FileNotFoundError as error:
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        built_in = f" Built in: {', '.join(builtin.NAMES)}."
        raise FileNotFoundError(f"{error}{hint}{built_in}") from None


def _load_file(path: Path, name: str, env_id: str | None) -> OfflineDataset:
    """A file, by D4RL's own reading of its flags where it is called as one of D4RL's."""
    goal_terminals = has_goal_terminals(path.name)
    return load_file(path, name=name, env_id=env_id, goal_terminals=goal_terminals)
