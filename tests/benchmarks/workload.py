"""Data, world model and agents of a configuration's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from adv_worldmodel.building import make_quietly
from adv_worldmodel.dynamics import Ensemble, make_termination
from agents import RAMBO
from agents.agent_step import AgentStep
from agents.updates import sac_update
from tests.benchmarks.configuration import Configuration

SCALED_ROWS = 100_000  #: rows that the world model's scales are taken from


def gaussian_data(
    c: Configuration, observation_space: Box | None = None, action_space: Box | None = None
) -> OfflineDataset:
    """Independent standard normal states, small changes, uniform actions; no episode ends.

    :param observation_space: by default unbounded.
    :param action_space: by default [-1, 1].
    """
    if observation_space is None:
        observation_space = Box(-np.inf, np.inf, (c.obs_dim,), np.float32)
    if action_space is None:
        action_space = Box(-1.0, 1.0, (c.action_dim,), np.float32)
    generator = np.random.default_rng(0)
    shape = (c.rows, c.obs_dim)
    obs = generator.standard_normal(shape, dtype=np.float32)
    next_obs = generator.standard_normal(shape, dtype=np.float32)
    next_obs *= 0.1
    next_obs += obs
    share = generator.random((c.rows, c.action_dim), dtype=np.float32)
    low, high = (bound.astype(np.float32) for bound in (action_space.low, action_space.high))
    return OfflineDataset(
        observations=obs,
        actions=low + share * (high - low),
        rewards=generator.standard_normal(c.rows, dtype=np.float32),
        next_observations=next_obs,
        terminations=np.zeros(c.rows, dtype=bool),
        truncations=np.zeros(c.rows, dtype=bool),
        observation_space=observation_space,
        action_space=action_space,
        name=f"gaussian-{c.obs_dim}x{c.action_dim}-{c.rows}",
    )


def first_rows(dataset: OfflineDataset, n: int) -> OfflineDataset:
    """The first n transitions."""
    keys = ("observations", "actions", "rewards", "next_observations")
    arrays = {key: getattr(dataset, key)[:n] for key in (*keys, "terminations", "truncations")}
    return replace(dataset, **arrays)


def world_model(
    c: Configuration, dataset: OfflineDataset, termination: str = "never", device: str = "cpu"
) -> WorldModel:
    """The elites as they are before a fit, on the data's scales."""
    generator = torch.Generator().manual_seed(0)
    ensemble = Ensemble(
        c.n_members, c.obs_dim + c.action_dim, c.obs_dim + 1, c.model_hidden, generator
    )
    spaces = (dataset.observation_space, dataset.action_space)
    model = WorldModel(ensemble, make_termination(termination, None), *spaces)
    few = first_rows(dataset, SCALED_ROWS)
    columns = (few.observations, few.actions, few.next_observations, few.rewards)
    obs, action, next_obs, reward = (torch.tensor(column) for column in columns)
    model.set_scales(torch.cat([obs, action], -1), model.raw_targets(obs, next_obs, reward))
    return model.to(device)


def rambo(
    c: Configuration,
    dataset: OfflineDataset,
    model: WorldModel,
    networks: Mapping[str, Any] | None = None,
    kind: type[RAMBO] = RAMBO,
    **settings: Any,
) -> RAMBO:
    """The agent in that world model, on its device, logging to nowhere.

    :param networks: more of ``policy_kwargs``.
    :param kind: its class.
    :param settings: of the agent.
    """
    env = make_sb3_env(dataset, c.starts, c.horizon, world_model=model, seed=0)
    agent = kind(
        "MlpPolicy",
        env,
        gradient_steps=c.updates,
        batch_size=c.batch,
        policy_kwargs={
            "net_arch": list(c.agent_hidden),
            "n_critics": c.n_critics,
            **(networks or {}),
        },
        seed=0,
        device=model.device,
        **settings,
    )
    agent.set_logger(Logger(None, []))
    return agent


def evaluated_agent(c: Configuration, env_id: str, device: str = "cpu") -> RAMBO:
    """An agent that has learnt nothing, of a real environment's spaces."""
    env = make_quietly(env_id)
    spaces = cast(Box, env.observation_space), cast(Box, env.action_space)
    env.close()
    dataset = gaussian_data(c, *spaces)
    return rambo(c, dataset, world_model(c, dataset, device=device))


class SpacesOnly(gym.Env[NDArray[Any], NDArray[Any]]):
    """All that SB3's constructor needs of an environment, for an agent that never acts."""

    def __init__(self, dataset: OfflineDataset) -> None:
        self.observation_space = dataset.observation_space
        self.action_space = dataset.action_space


def stock_sac(c: Configuration, dataset: OfflineDataset) -> SAC:
    """SB3's own SAC, networks, batch and learning rate as RAMBO's; its buffer holds the data."""
    agent = SAC(
        "MlpPolicy",
        SpacesOnly(dataset),
        3e-4,
        buffer_size=c.rows,
        batch_size=c.batch,
        policy_kwargs={"net_arch": list(c.agent_hidden), "n_critics": c.n_critics},
        seed=0,
        device="cpu",
    )
    agent.set_logger(Logger(None, []))
    buffer = agent.replay_buffer
    assert buffer is not None
    for theirs, ours in (
        (buffer.observations, dataset.observations),
        (buffer.next_observations, dataset.next_observations),
        (buffer.actions, dataset.actions),
        (buffer.rewards, dataset.rewards),
        (buffer.dones, dataset.terminations),
    ):
        theirs[:] = ours.reshape(theirs.shape)
    buffer.full = True
    return agent


def roll_out(agent: RAMBO) -> RolloutReturn:
    """Rollouts into the buffer, with nothing called back."""
    callback = CallbackList([])
    callback.init_callback(agent)
    env, buffer, frequency = agent.env, agent.replay_buffer, agent.train_freq
    assert env is not None
    assert buffer is not None
    assert isinstance(frequency, TrainFreq)
    return agent.collect_rollouts(env, callback, frequency, buffer)


def autograd_step(agent: RAMBO, batch_size: int) -> AgentStep:
    """The agent's step with autograd's gradients, the reference of those written out."""
    step = AgentStep(agent, batch_size)
    parts = step.parts()
    step.update = lambda batch, noise: sac_update(parts, batch, noise[0], noise[1])
    return step
