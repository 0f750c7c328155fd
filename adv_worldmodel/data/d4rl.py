"""D4RL's data sets by name: which file, where it lies, where it comes from."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.files import load_file
from adv_worldmodel.data.scores import evaluation_env
from adv_worldmodel.paths import expanded

_SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


def _gym_mujoco() -> dict[str, str]:
    kinds = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    urls = {}
    for agent in ("halfcheetah", "hopper", "walker2d", "ant"):
        for version in ("v1", "v2"):
            for kind in kinds:
                file = f"{agent}_{kind.replace('-', '_')}-{version}.hdf5"
                urls[f"{agent}-{kind}-{version}"] = f"{_SERVER}/gym_mujoco_{version}/{file}"
        for kind in ("random", "medium", "expert", "medium-replay", "medium-expert"):
            stem = f"{agent}_{kind.replace('-', '_')}"
            if kind == "medium-replay":  # D4RL's -v0 file names differ in these two ways
                stem = ("walker" if agent == "walker2d" else agent) + "_mixed"
            urls[f"{agent}-{kind}-v0"] = f"{_SERVER}/gym_mujoco/{stem}.hdf5"
    return urls


def _antmaze() -> dict[str, str]:
    sets = {
        "umaze": ("u-maze", False, False),
        "umaze-diverse": ("u-maze", True, True),
        "medium-play": ("big-maze", True, False),
        "medium-diverse": ("big-maze", True, True),
        "large-play": ("hardest-maze", True, False),
        "large-diverse": ("hardest-maze", True, True),
    }
    urls = {}
    for name, (maze, starts, goals) in sets.items():
        stem = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse"
        urls[f"antmaze-{name}-v0"] = f"{_SERVER}/ant_maze_new/{stem}.hdf5"
        urls[f"antmaze-{name}-v2"] = f"{_SERVER}/ant_maze_v2/{stem}_fixed.hdf5"
    return urls


def _others() -> dict[str, str]:
    urls = {}
    for maze in ("umaze", "medium", "large"):
        urls[f"maze2d-{maze}-v1"] = f"{_SERVER}/maze2d/maze2d-{maze}-sparse-v1.hdf5"
    for hand in ("pen", "hammer", "door", "relocate"):
        folder = f"{_SERVER}/hand_dapg"
        urls[f"{hand}-human-v0"] = f"{folder}/{hand}-v0_demos_clipped.hdf5"
        urls[f"{hand}-cloned-v0"] = f"{folder}/{hand}-demos-v0-bc-combined.hdf5"
        urls[f"{hand}-expert-v0"] = f"{folder}/{hand}-v0_expert_clipped.hdf5"
    for kind, stem in (
        ("complete", "mini_kitchen_microwave_kettle_light_slider-v0"),
        ("partial", "kitchen_microwave_kettle_light_slider-v0"),
        ("mixed", "kitchen_microwave_kettle_bottomburner_light-v0"),
    ):
        urls[f"kitchen-{kind}-v0"] = f"{_SERVER}/kitchen/{stem}.hdf5"
    return urls


URLS: dict[str, str] = {**_gym_mujoco(), **_antmaze(), **_others()}
"""D4RL name -> public address of its file; the file keeps the address's last part as its name."""


def d4rl_folder() -> Path:
    """Where D4RL keeps its files: `$D4RL_DATASET_DIR`, else `~/.d4rl/datasets`."""
    stated = os.environ.get("D4RL_DATASET_DIR")
    return expanded(stated or "~/.d4rl/datasets")


def d4rl_path(name: str) -> Path:
    """The file that D4RL keeps for the set `name` (such as "hopper-medium-v2"), there or not.

    :raises FileNotFoundError: if D4RL has no set of that name; lists the near ones.
    """
    if name not in URLS:
        near = get_close_matches(name, URLS, n=4, cutoff=0.5) or ["hopper-medium-v2"]
        raise FileNotFoundError(
            f"'d4rl:{name}': D4RL has no data set of that name that is read here. Near ones: "
            f"{', '.join(near)}."
        )
    return d4rl_folder() / URLS[name].rsplit("/", 1)[1]


def has_goal_terminals(file_name: str) -> bool:
    """Whether D4RL's file of that name flags rows at the goal of trajectories that go on.

    AntMaze's flags were set afterwards, wherever a walking ant is at the goal.
    """
    return any(name.startswith("antmaze-") and d4rl_path(name).name == file_name for name in URLS)


def present_sets() -> list[str]:
    """Names of the D4RL sets whose file lies in `d4rl_folder()`."""
    return [name for name in URLS if d4rl_path(name).is_file()]


def load_d4rl(name: str, *, env_id: str | None = None) -> OfflineDataset:
    """The D4RL set `name` from the file that D4RL keeps for it.

    :param name: D4RL's name, such as "hopper-medium-v2".
    :param env_id: environment to evaluate in; None: see `scores.evaluation_env`.
    :raises FileNotFoundError: unknown name, or no file; says what to download to where.
    :raises ValueError: as `files.load_file`.
    """
    path = d4rl_path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"'d4rl:{name}': {path} does not exist. Download {URLS[name]} to {path}, or set "
            "D4RL_DATASET_DIR to the folder that has it."
        )
    return load_file(
        path,
        name=f"d4rl:{name}",
        env_id=env_id or evaluation_env(name)[0],
        goal_terminals=has_goal_terminals(path.name),
    )
