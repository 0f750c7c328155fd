"""Behaviour cloning: maximum likelihood of the data's actions under the squashed Gaussian actor."""

from __future__ import annotations

import math

import torch
from stable_baselines3.sac.policies import Actor
from torch import Tensor
from tqdm import tqdm

from adv_worldmodel.adam import step_of
from adv_worldmodel.dynamics.fitting import FitDivergedError
from adv_worldmodel.graphs import GraphedStep, make_capturable
from agents.updates import cloning_loss, unsquashed


def clone_behaviour(
    actor: Actor,
    obs: Tensor,
    actions: Tensor,
    generator: torch.Generator,
    *,
    epochs: int = 50,
    learning_rate: float = 1e-4,
    batch_size: int = 256,
    progress: bool = False,
) -> float:
    """Fit the actor to the data (P C.4), with an optimiser of its own.

    :param obs: raw states ``(N, S)``.
    :param actions: scaled to [-1, 1], ``(N, A)``.
    :return: mean negative log-likelihood of the last epoch (nats per transition).
    :raises FitDivergedError: it is not finite.
    """
    optimizer = torch.optim.Adam(actor.parameters(), lr=learning_rate, fused=True)
    make_capturable(optimizer, obs.device)
    u = unsquashed(actions)

    def step(rows: Tensor) -> tuple[Tensor]:
        loss = cloning_loss(actor, obs[rows], u[rows])
        optimizer.zero_grad()
        loss.backward()
        step_of(optimizer)
        return (loss.detach(),)

    graphed = GraphedStep(step, obs.device)
    losses = [torch.zeros((), device=obs.device)]  # by epoch, behind that of none
    for _ in tqdm(range(epochs), desc="clone", unit="epoch", disable=None if progress else True):
        order = torch.randperm(len(obs), generator=generator, device=obs.device)
        total, seen = torch.zeros((), device=obs.device), 0
        for rows in order.split(batch_size):
            if len(rows) == 1 < min(batch_size, len(obs)):
                continue  # one row left over has no batch statistics, if an extractor takes some
            (loss,) = (graphed if len(rows) == batch_size else step)(rows)
            total, seen = total + loss * len(rows), seen + len(rows)
        losses.append(total / seen)
    history = torch.stack(losses).tolist()
    if not math.isfinite(history[-1]):
        raise FitDivergedError(
            "the clone diverged: look for outliers in the data, or lower cloning.learning_rate",
            "cloning/nll",
            history[1:],
        )
    return float(history[-1])
