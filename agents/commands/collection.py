"""Data from the real environment: policies act, every row is kept.

D4RL's kinds of data set are made of these parts: random (no policy), medium (`train_sac`, stopped
early), medium-replay (the replay buffer of that training), medium-expert (rows of two policies).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

from adv_worldmodel.data import OfflineDataset, from_replay_buffer
from adv_worldmodel.data.validation import flat_box
from adv_worldmodel.errors import one_line
from agents.training.real_env import check_spaces, full_id, make_real_env


def make_box_env(env_id: str) -> gym.Env[NDArray[Any], NDArray[Any]]:
    """The real environment, whose observations and actions are flat vectors of real numbers.

    :raises ValueError: other spaces (a discrete one), unbounded actions, or as `make_real_env`.
    """
    env = make_real_env(env_id)
    try:
        flat_box(env.observation_space, "observation", env_id)
        flat_box(env.action_space, "action", env_id)
    except ValueError:
        env.close()
        raise
    return env


def train_sac(env_id: str, steps: int, *, seed: int = 0) -> SAC:
    """Stable-Baselines3's SAC with its default settings after `steps` steps in the environment.

    On the CPU and one thread: at this size more threads cost time. The replay buffer keeps every
    step (see `replayed`). Seeds NumPy's and Python's global generators, as SB3 does.

    :raises ValueError: no step, or as `make_box_env`.
    """
    if steps < 1:
        raise ValueError(f"SAC cannot train for {steps} steps; give at least 1 (sac:10000).")
    bar = tqdm(total=steps, desc="SAC", unit="step", disable=None)
    with _apart(seed), make_box_env(env_id) as env, bar:
        model = SAC("MlpPolicy", env, buffer_size=steps, seed=seed, device="cpu")
        model.learn(steps, callback=lambda *_: bar.update() or True)
    return model


def replayed(model: SAC, env_id: str) -> OfflineDataset:
    """All that `model` saw in its training in `env_id`, in order of time."""
    buffer = cast(ReplayBuffer, model.replay_buffer)
    return from_replay_buffer(buffer, actions="scaled", name="replay", env_id=full_id(env_id))


def load_policy(path: str | Path) -> BasePolicy:
    """The policy in a file that the `save` of any SB3 algorithm wrote (RAMBO's too), on the CPU.

    Such a file holds pickled objects: loading one runs what its author put there.

    :raises FileNotFoundError: no such file.
    :raises ValueError: it cannot be read as one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Policy {path} does not exist; expected random, sac:STEPS or a Stable-Baselines3 .zip."
        )
    try:
        data, params, _ = cast(Any, load_from_zip_file(path, device="cpu"))
        settings = dict(data["policy_kwargs"])
        if data.get("use_sde"):  # on-policy algorithms keep it beside the other settings
            settings["use_sde"] = True
        kind = data["policy_class"]
        parameters = inspect.signature(kind).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if takes_any or "lr_schedule" in parameters:  # ARS has none
            settings["lr_schedule"] = lambda _: 0.0
        policy: BasePolicy = kind(data["observation_space"], data["action_space"], **settings)
        policy.load_state_dict(params["policy"])
    except Exception as error:  # unpickling what is no agent raises whatever it likes
        raise ValueError(
            f"{path} cannot be read as a Stable-Baselines3 agent ({one_line(error)}): give a "
            "file that its save() wrote."
        ) from error
    return policy


def collect(
    env_id: str,
    policies: Sequence[PolicyPredictor | None],
    rows: int,
    *,
    seed: int = 0,
    deterministic: bool = False,
    noise: float = 0.0,
) -> OfflineDataset:
    """Exactly `rows` transitions of the policies, one policy after the other, in equal shares.

    Each policy begins a new episode; its last one counts as truncated where it is unfinished. A
    policy with state-dependent exploration (gSDE) draws it anew for each episode.
    The first episode starts from `reset(seed=seed)`, and equal arguments give equal rows.

    :param env_id: Gymnasium id or `module:ID`.
    :param policies: anything with SB3's `predict`, for raw observations `(S,)`; None: uniform
        actions.
    :param rows: of all policies together.
    :param seed: of the environment, the policies' samples and the noise.
    :param deterministic: the policy's deterministic actions instead of sampled ones.
    :param noise: standard deviation of Gaussian noise on a policy's actions, as a share of half of
        each action's range; clipped to the range.
    :raises ValueError: fewer rows than policies, a policy of other spaces, or as `make_box_env`.
    """
    if not 0 < len(policies) <= rows:
        raise ValueError(f"{rows} rows of {len(policies)} policies: each needs at least one row.")
    bar = tqdm(total=rows, desc="data", unit="row", disable=None)
    rng = np.random.default_rng(seed)
    with make_box_env(env_id) as env, _apart(seed), bar:
        observation_space, space = cast(Box, env.observation_space), cast(Box, env.action_space)
        scale = noise * (space.high - space.low) / 2.0
        # as they come: the data set makes them float32, and warns where that is too coarse
        observations: NDArray[Any] = np.empty(
            (rows, *observation_space.shape), observation_space.dtype
        )
        next_observations = np.empty_like(observations)
        actions = np.empty((rows, *space.shape), np.float32)
        rewards = np.empty(rows, np.float32)
        terminations, truncations = np.zeros((2, rows), np.bool_)
        start: int | None = seed  # later episodes go on with the environment's own generator
        for policy, share in zip(policies, np.array_split(range(rows), len(policies)), strict=True):
            if policy is not None:
                check_spaces(policy, env, env_id)
            over = True
            for row in share:
                if over:
                    observation, memory = env.reset(seed=start)[0], None
                    start = None
                    _explore_anew(policy)
                if policy is None:
                    action = rng.uniform(space.low, space.high)
                else:
                    action, memory = policy.predict(
                        observation, memory, deterministic=deterministic
                    )
                    if noise:
                        action = action + scale * rng.standard_normal(space.shape)
                observations[row] = observation
                actions[row] = np.clip(action, space.low, space.high)
                observation, rewards[row], terminated, truncated, _ = env.step(actions[row].copy())
                next_observations[row] = observation
                terminations[row], truncations[row] = terminated, truncated
                over = terminated or truncated
                bar.update()
            truncations[share[-1]] |= not over
    return OfflineDataset(
        observations=observations,
        actions=actions,
        rewards=rewards,
        next_observations=next_observations,
        terminations=terminations,
        truncations=truncations,
        observation_space=observation_space,
        action_space=space,
        name="collected",
        env_id=full_id(env_id),
    )


def _explore_anew(policy: PolicyPredictor | None) -> None:
    """Draw the exploration matrix of a policy with gSDE, which otherwise keeps its first one."""
    for part in (policy, getattr(policy, "actor", None)):  # on-policy algorithms, SAC and its kin
        if getattr(part, "use_sde", False) and hasattr(part, "reset_noise"):
            cast(Any, part).reset_noise()


@contextmanager
def _apart(seed: int) -> Iterator[None]:
    """Seed torch and give it one thread, and leave both as they were found.

    Gymnasium's remarks about the environment are for its author: they are not shown.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="gymnasium")
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
