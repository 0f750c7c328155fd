"""Rollouts of the agent in its world model, into its buffer, on the device from end to end."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn
from torch import Tensor

from adv_worldmodel.envs.sb3 import AdvWorldModelVecEnv
from agents.values import SquashedPolicy

if TYPE_CHECKING:
    from agents.rambo import RAMBO

ROLLOUT_POLICIES = ("current", "random")


class OnHost(NDArrayOperatorsMixin):
    """Flags on a GPU as an array, for SB3's callbacks; until one reads them nothing waits for them.

    :param tensor: the flags, where they are.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """The flags on the host; waits for the device."""
        found: NDArray[np.bool_] = self.tensor.cpu().numpy()
        return found

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        return np.array(self.array, *args, **kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        arrays = [x.array if isinstance(x, OnHost) else x for x in inputs]
        return getattr(ufunc, method)(*arrays, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # NumPy and copy look for their own
            raise AttributeError(name)
        return getattr(self.array, name)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: Any) -> Any:
        return self.array[rows]


def roll_out(
    agent: RAMBO,
    policy: SquashedPolicy,
    env: AdvWorldModelVecEnv,
    callback: BaseCallback,
    n_steps: int,
) -> RolloutReturn:
    """``n_steps`` steps of every row from fresh data-set states.

    :param policy: the agent's, on tensors.
    :param callback: called once per batched step; its ``on_rollout_start`` has been called.
    :raises ValueError: a callback has stepped or reset the environment itself.
    """
    world, buffer = env.world, agent.replay_buffer
    start = time.perf_counter()
    obs = world.reset_all()  # terminations have put the rows out of step
    total_reward = torch.zeros((), device=agent.device)
    ended = torch.zeros((), device=agent.device)
    for step in range(1, n_steps + 1):
        if world.obs is not obs:
            raise ValueError(
                "a callback has stepped or reset the training environment in the middle of a "
                "rollout: evaluate in one of its own, another make_sb3_env(...), say"
            )
        actions = _act(agent, policy, obs)
        transition = world.advance(actions)
        rewards, dones = transition.reward, transition.done
        buffer.add_tensors(
            obs,
            policy.bounds.scale(actions),
            rewards,
            transition.next_obs,
            transition.terminated,
        )
        obs = world.restart(dones)
        total_reward += rewards.sum()
        if step < n_steps:
            ended += dones.sum()
        agent.num_timesteps += env.num_envs
        found: dict[str, Any] = {
            "actions": actions,
            "new_obs": obs,
            "rewards": rewards,
            "dones": dones,
        }
        if agent.device.type == "cpu":
            found = {name: value.numpy() for name, value in found.items()}
        else:  # each copy would wait for the device
            found["dones"] = OnHost(dones)
        callback.update_locals({"self": agent, "env": env, **found})
        if not callback.on_step():
            return RolloutReturn(step * env.num_envs, 0, continue_training=False)
        agent._update_current_progress_remaining(agent.num_timesteps, agent._total_timesteps)
    n_rows = n_steps * env.num_envs
    reward_sum, n_ended = torch.stack([total_reward, ended]).tolist()  # the one wait
    agent.logger.record("model/reward_mean", reward_sum / n_rows)
    agent.logger.record("model/rollout_length", n_rows / (env.num_envs + n_ended))
    agent.logger.record("time/rollout_s", time.perf_counter() - start)
    callback.on_rollout_end()
    episodes = env.num_envs + int(n_ended)  # all rows end at the horizon
    agent._episode_num += episodes
    return RolloutReturn(n_rows, episodes, continue_training=True)


@torch.no_grad()
def _act(agent: RAMBO, policy: SquashedPolicy, obs: Tensor) -> Tensor:
    """Raw actions of the rollout policy, ``(n_envs, A)``."""
    shape = (len(obs), *agent.action_space.shape)  # type: ignore[misc]
    if agent.rollout_policy == "current":
        noise = torch.randn(shape, generator=agent._generator, device=agent.device)
        return policy.sample(obs, noise)
    uniform = torch.rand(shape, generator=agent._generator, device=agent.device)
    return policy.bounds.unscale(2.0 * uniform - 1.0)
