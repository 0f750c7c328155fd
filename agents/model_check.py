"""What a policy is worth in its world model, beside what its critics say: no simulator needed.

Rollouts of a few steps from the data never reach the states that a policy comes to later, and
critics can believe anything there. Whole episodes in the model show it: where the critics promise
more than the model gives, they are wrong, whatever the world is like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adv_worldmodel import OfflineDataset, WorldModel
from adv_worldmodel.data.environments import time_limit
from adv_worldmodel.seeding import make_generator
from agents.rambo import RAMBO
from agents.updates import sample_action
from agents.values import CriticValue, SquashedPolicy

__all__ = ["ModelCheck", "check_in_model"]


@dataclass(frozen=True, eq=False)
class ModelCheck:
    """Episodes of the deterministic policy in a world model; each array is (episodes,)."""

    returns: NDArray[np.float64]  #: undiscounted, in the environment's own reward
    #: in the reward that was trained on, as the critics count: with the entropy that is in their
    #: targets; theirs too is what comes after the last step of an episode that was cut
    discounted: NDArray[np.float64]
    lengths: NDArray[np.int64]  #: steps
    values: NDArray[np.float64]  #: min_j Q_j(s, mean action) at the starts
    max_steps: int  #: after which an episode is cut


@torch.no_grad()
def check_in_model(
    agent: RAMBO,
    model: WorldModel,
    dataset: OfflineDataset,
    *,
    episodes: int = 100,
    gamma: float | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> ModelCheck:
    """Run whole episodes in the model, from states in which the data's episodes start.

    :param agent: its policy acts, by its mean action.
    :param model: the fit, or what the adversary has made of it; with its noise, its members drawn
        anew each step.
    :param dataset: gives the starts, and by its longest episode the steps after which one is cut.
        Where rows are not in order these are the environment's time limit or, where that is not
        known, as many steps as leave 5 % of the discount.
    :param gamma: discount of what is compared with the critics; default the agent's.
    :param alpha: entropy coefficient of the soft values that the critics learnt; 0: plain ones. By
        default what the agent's is at present, 0 without ``entropy_in_target``. The policy's
        entropy is that of one draw per state of the episode.
    :param seed: of starts, members and noise.
    :raises ValueError: the model's observations or actions are not the agent's or the data's; the
        agent is from ``load_weights``, which knows neither gamma nor alpha, and they are not given.
    """
    if agent.weights_only and (gamma is None or alpha is None):
        raise ValueError(
            f"gamma = {gamma}, alpha = {alpha}, and an agent from load_weights knows neither: give "
            "both as in its training (alpha=0.0 where the critics learnt no entropy)"
        )
    gamma = float(agent.gamma) if gamma is None else gamma
    alpha = agent.alpha_in_target if alpha is None else alpha
    width = dataset.observations.shape[1]
    sizes = {
        "agent": (agent.observation_space.shape, agent.action_space.shape),
        "world model": ((model.obs_dim,), (model.action_dim,)),
        "data": ((width,), (dataset.actions.shape[1],)),
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"observations and actions differ in their shapes: {sizes}")
    agent.policy.set_training_mode(False)
    starts = dataset.episode_starts()
    max_steps = _longest(dataset, gamma)
    generator = make_generator(seed, "model check", model.device)
    rows = torch.randint(len(starts), (episodes,), generator=generator, device=model.device)
    obs = torch.as_tensor(dataset.observations[starts], device=model.device)[rows]
    policy = SquashedPolicy(agent)
    values = CriticValue(agent, policy).v(obs)

    def entropy(obs: torch.Tensor) -> torch.Tensor:
        shape = (episodes, model.action_dim)
        noise = torch.randn(shape, generator=generator, device=model.device)
        return -sample_action(agent.actor, obs, noise)[1]

    going = torch.ones(episodes, dtype=torch.bool, device=model.device)
    returns, discounted = (
        torch.zeros(episodes, dtype=torch.float64, device=model.device) for _ in range(2)
    )
    lengths = torch.zeros(episodes, dtype=torch.int64, device=model.device)
    for step in range(max_steps):
        action = policy.bounds.unscale(policy.mean_action(obs))
        obs, reward, terminated = model.step(obs, action, generator=generator)
        reward = torch.where(going, reward, 0.0)
        returns += reward - dataset.reward_offset * going
        discounted += gamma**step * reward
        if alpha > 0.0:  # from the second action on: the first is given to Q
            bonus = torch.where(going & ~terminated, entropy(obs), 0.0)
            discounted += alpha * gamma ** (step + 1) * bonus
        lengths += going
        going &= ~terminated
        if not bool(going.any()):
            break
    rest = torch.where(going, CriticValue(agent, policy).v(obs), 0.0)
    discounted += gamma**max_steps * rest
    return ModelCheck(
        returns=returns.cpu().numpy(),
        discounted=discounted.cpu().numpy(),
        lengths=lengths.cpu().numpy(),
        values=values.double().cpu().numpy(),
        max_steps=max_steps,
    )


def _longest(dataset: OfflineDataset, gamma: float) -> int:
    if dataset.in_order:
        return int(dataset.episode_lengths().max())
    return time_limit(dataset.env_id) or math.ceil(3.0 / max(1.0 - gamma, 1e-3))
