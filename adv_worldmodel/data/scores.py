"""Reference returns, normalised scores, and the environment in which a D4RL set is evaluated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adv_worldmodel.data.environments import buildable

REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "kitchen": (0.0, 4.0),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
}
"""D4RL's task -> return of a random policy and of an expert (D4RL `infos.py`, -v2 tables)."""

_MUJOCO = {"HalfCheetah": "halfcheetah", "Hopper": "hopper", "Walker2d": "walker2d", "Ant": "ant"}
_ROBOTICS = {
    "AdroitHandPen": "pen",
    "AdroitHandHammer": "hammer",
    "AdroitHandDoor": "door",
    "AdroitHandRelocate": "relocate",
    "FrankaKitchen": "kitchen",
    "PointMaze_UMaze": "maze2d-umaze",
    "PointMaze_Medium": "maze2d-medium",
    "PointMaze_Large": "maze2d-large",
    "AntMaze_UMaze": "antmaze",
    "AntMaze_Medium": "antmaze",
    "AntMaze_Large": "antmaze",
}


@dataclass(frozen=True)
class Score:
    """A normalised score, 0 for D4RL's random policy and 100 for its expert (P B.6).

    :param value: 100 (R - R_min) / (R_max - R_min).
    :param reference: which reference returns, and what the number may be compared with.
    :param comparable: whether it may stand beside D4RL's published -v2 tables.
    """

    value: float
    reference: str
    comparable: bool


def normalised_score(env_id: str | None, ret: float) -> Score | None:
    """Score of the mean return `ret` in the environment `env_id`; None where no reference is known.

    :param env_id: a Gymnasium id ("Hopper-v4", "module:AntMaze_UMaze-v5"), matched exactly; without
        a version ("Hopper") the latest one. Only those of D4RL's tasks have a score.
    :param ret: mean undiscounted return.
    """
    match = re.fullmatch(r"(?:[\w.]+:)?(\w+)(?:-v(\d+))?", env_id or "")
    if match is None:
        return None
    base, version = match[1], int(match[2]) if match[2] else None  # None: later than -v4
    task = _MUJOCO.get(base) or _ROBOTICS.get(base)
    if task is None:
        return None
    low, high = REFERENCE_RETURNS[task]
    # -v2 to -v4 differ in the simulator's version alone, but Ant-v4 lost its contact forces.
    comparable = base in _MUJOCO and (version in (2, 3) or (version == 4 and base != "Ant"))
    about = f"D4RL {task} (-v2 reference returns {low:.6g} to {high:.6g}), in {env_id}"
    if comparable and version == 2:
        reference = about
    elif comparable:
        reference = f"{about}, the same task on a newer simulator than D4RL's -v2 tables"
    else:
        reference = f"{about}: not comparable with D4RL's -v2 tables"
    return Score(100.0 * (ret - low) / (high - low), reference, comparable)


def evaluation_env(name: str) -> tuple[str | None, str]:
    """Where a D4RL set is evaluated: (Gymnasium id or None, one line that says so and why).

    D4RL's own -v2 environments are gone from Gymnasium; the nearest is -v4 where it runs, else -v5.

    :param name: D4RL's name, with or without "d4rl:", such as "hopper-medium-v2".
    """
    agent = name.removeprefix("d4rl:").split("-")[0]
    base = {task: base for base, task in _MUJOCO.items()}.get(agent)
    if base is None:
        return None, (
            f"{agent} is not part of Gymnasium: name an environment with flat observations "
            "(env_id=, such as module:Name-v0) to evaluate in"
        )
    if base == "Ant":
        return None, (
            "D4RL's ant observes contact forces (111 dimensions), Ant-v4 and Ant-v5 not the same "
            "ones: name an environment that does (env_id=module:Name-v0) to evaluate in"
        )
    version = "v4" if buildable(f"{base}-v4") else "v5"
    note = f"D4RL's {agent} is evaluated in {base}-{version}"
    if version == "v4":
        return f"{base}-v4", f"{note}, the nearest that Gymnasium still has"
    return f"{base}-v5", (
        f"{note}, since {base}-v4 cannot be built here: scores are not comparable with D4RL's"
    )
