"""What ends an episode in the tasks of Gymnasium and D4RL, as specs for `termination.py`.

A spec is data: `never`; `outside` / `inside` with bounds on parts of the next observation;
`tip_height` for the double pendulum. It is read from the environment itself where Gymnasium can
build it; the tables below stand in for environments that cannot be built (D4RL's -v2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from adv_worldmodel.building import check_id, make_quietly
from adv_worldmodel.errors import first_line


def bound(
    start: int, stop: int | None, low: float, high: float, *, closed: bool = False
) -> dict[str, Any]:
    """Bounds on `next_obs[:, start:stop]`; infinite limits are kept as null (strict JSON)."""
    return {
        "start": start,
        "stop": stop,
        "low": float(low) if math.isfinite(low) else None,
        "high": float(high) if math.isfinite(high) else None,
        "closed": closed,
    }


# `env` below is an unwrapped environment; None means the task's default settings.
_HEALTHY_DEFAULTS: dict[str, dict[str, tuple[float, float]]] = {
    "hopper": {"state": (-100.0, 100.0), "z": (0.7, math.inf), "angle": (-0.2, 0.2)},
    "walker2d": {"z": (0.8, 2.0), "angle": (-1.0, 1.0)},
    "ant": {"z": (0.2, 1.0)},
    "humanoid": {"z": (1.0, 2.0)},
}


def _healthy(task: str, env: Any) -> dict[str, Any]:
    """Hopper, Walker2d, Ant, Humanoid: unhealthy states end the episode."""
    if env is not None and not env._terminate_when_unhealthy:
        return {"kind": "never"}

    def limits(name: str) -> tuple[float, float]:
        default = _HEALTHY_DEFAULTS[task][name]
        low, high = default if env is None else getattr(env, f"_healthy_{name}_range")
        return float(low), float(high)

    excluded = env is None or bool(env._exclude_current_positions_from_observation)
    planar = task in ("hopper", "walker2d")
    # The observation begins with qpos = (x, z, angle, ...) in the plane, (x, y, z, ...) in space,
    # less the excluded horizontal positions.
    z = 0 if excluded else 1 if planar else 2
    # Only Ant counts the limits themselves as healthy, and asks for a finite state.
    bounds = [bound(z, z + 1, *limits("z"), closed=task == "ant")]
    if planar:
        bounds.append(bound(z + 1, z + 2, *limits("angle")))
    if task == "hopper":
        # Every component past z. Velocities in the observation are clipped at 10, so for real
        # states this reads the positions only; a model's runaway velocity is caught as well.
        bounds.append(bound(z + 1, None, *limits("state")))
    return {"kind": "outside", "bounds": bounds, "finite": task == "ant"}


def _inverted_pendulum(task: str, env: Any) -> dict[str, Any]:
    return {"kind": "outside", "bounds": [bound(1, 2, -0.2, 0.2, closed=True)], "finite": True}


def _double_pendulum(task: str, env: Any) -> dict[str, Any]:
    links = [0.6, 0.6]
    if env is not None:
        links = [float(env.model.body("pole2").pos[2]), float(env.model.site("tip").pos[2])]
    return {"kind": "tip_height", "links": links, "height": 1.0}


def _mountain_car(task: str, env: Any) -> dict[str, Any]:
    position, velocity = (0.45, 0.0) if env is None else (env.goal_position, env.goal_velocity)
    bounds = [
        bound(0, 1, position, math.inf, closed=True),
        bound(1, 2, velocity, math.inf, closed=True),
    ]
    return {"kind": "inside", "bounds": bounds}


def _never(task: str, env: Any) -> dict[str, Any]:
    return {"kind": "never"}


TASKS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "hopper": _healthy,
    "walker2d": _healthy,
    "ant": _healthy,
    "humanoid": _healthy,
    "halfcheetah": _never,
    "swimmer": _never,
    "reacher": _never,
    "pusher": _never,
    "humanoidstandup": _never,
    "pendulum": _never,
    "invertedpendulum": _inverted_pendulum,
    "inverteddoublependulum": _double_pendulum,
    "mountaincarcontinuous": _mountain_car,
}

# Gymnasium classes whose `step` was read for the rules above: (module, class) -> task.
_CLASSES: dict[tuple[str, str], str] = {
    (f"gymnasium.envs.mujoco.{module}_{version}", name): task
    for module, name, task in (
        ("hopper", "HopperEnv", "hopper"),
        ("walker2d", "Walker2dEnv", "walker2d"),
        ("ant", "AntEnv", "ant"),
        ("humanoid", "HumanoidEnv", "humanoid"),
        ("half_cheetah", "HalfCheetahEnv", "halfcheetah"),
        ("swimmer", "SwimmerEnv", "swimmer"),
        ("reacher", "ReacherEnv", "reacher"),
        ("pusher", "PusherEnv", "pusher"),
        ("humanoidstandup", "HumanoidStandupEnv", "humanoidstandup"),
        ("inverted_pendulum", "InvertedPendulumEnv", "invertedpendulum"),
        ("inverted_double_pendulum", "InvertedDoublePendulumEnv", "inverteddoublependulum"),
    )
    for version in ("v4", "v5")
} | {
    ("gymnasium.envs.classic_control.pendulum", "PendulumEnv"): "pendulum",
    (
        "gymnasium.envs.classic_control.continuous_mountain_car",
        "Continuous_MountainCarEnv",
    ): "mountaincarcontinuous",
}

_D4RL_LOCOMOTION = re.compile(
    r"(hopper|walker2d|halfcheetah|ant)-"
    r"(random|medium|expert|medium-replay|medium-expert|full-replay)"
)
# P's AntMaze tasks end only with the time limit. The pattern is anchored: a maze is no ant.
_ANTMAZE = re.compile(r"antmaze([-_](open|umaze|medium|large|ultra)([-_][a-z]+)*)?")


def task_of_name(name: str) -> str | None:
    """Task of an environment or D4RL name by its exact base name, `antmaze`, or None."""
    base = re.sub(r"-v\d+$", "", name.rsplit(":", 1)[-1].rsplit("/", 1)[-1]).lower()
    if _ANTMAZE.fullmatch(base):
        return "antmaze"
    match = _D4RL_LOCOMOTION.fullmatch(base)
    task = match.group(1) if match else base
    return task if task in TASKS else None


def spec_of_task(task: str) -> dict[str, Any]:
    return _never(task, None) if task == "antmaze" else TASKS[task](task, None)


def _untouched(env: Any, wrapped: Any) -> bool:
    """No wrapper between `wrapped` and `env` changes observations or ends episodes itself."""
    import gymnasium as gym
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    harmless_steps = (gym.Wrapper.step, gym.ActionWrapper.step, gym.RewardWrapper.step)
    while wrapped is not env:
        known = isinstance(wrapped, (OrderEnforcing, PassiveEnvChecker, TimeLimit))
        if not known and type(wrapped).step not in harmless_steps:
            return False
        wrapped = wrapped.env
    return True


def read_environment(env_id: str) -> tuple[dict[str, Any] | None, str]:
    """The rule of the environment itself, or None and the reason why it cannot be read.

    :raises ValueError: `env_id` is no string.
    """
    check_id(env_id)
    try:
        wrapped = make_quietly(env_id)
    except Exception as error:  # an environment's own constructor may raise anything
        return None, f"it cannot be built here ({first_line(error)})"
    try:
        env: Any = wrapped.unwrapped
        for cls in type(env).__mro__:
            task = _CLASSES.get((cls.__module__, cls.__name__))
            if task is None:
                continue
            # A subclass may change reward or body, but not what the rule was read from.
            own = [
                name
                for name in ("step", "is_healthy", "terminated", "_get_obs")
                if getattr(type(env), name, None) is not getattr(cls, name, None)
            ]
            if own:
                return None, f"class {type(env).__name__} overrides {', '.join(own)}"
            if not _untouched(env, wrapped):
                return None, "a wrapper changes its observations or its end of episode"
            return TASKS[task](task, env), ""
        return None, f"the end of its episodes is not known for class {type(env).__name__}"
    finally:
        wrapped.close()
