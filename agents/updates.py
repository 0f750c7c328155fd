"""One SAC update on a batch, as functions of tensors (Haarnoja et al. 2018, as in SB3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from stable_baselines3.common.utils import get_parameters_by_name
from stable_baselines3.sac.policies import Actor
from torch import Tensor
from torch.nn import functional as F

from adv_worldmodel.adam import step_of
from agents.buffers import Batch
from agents.policies import StackedCritic

LOG_2PI = math.log(2.0 * math.pi)
LOG_2 = math.log(2.0)
#: Actions are clipped to this inside (-1, 1): the density of tanh has no value on the bound.
LARGEST_ACTION = 1.0 - 1e-4
#: Names, SB3's where it has one, and order of the numbers that :func:`sac_update` returns.
METRICS = ("actor_loss", "critic_loss", "ent_coef_loss", "ent_coef", "q_mean", "entropy")


def squashed_log_density(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log pi(tanh u) of the squashed Gaussian, ``(B,)``.

    log(1 - tanh^2 u) in the form that neither overflows nor needs an epsilon.
    """
    gaussian = -0.5 * (((u - mean) * torch.exp(-log_std)).square() + 2.0 * log_std + LOG_2PI)
    return (gaussian - 2.0 * (LOG_2 - u - F.softplus(-2.0 * u))).sum(-1)


def unsquashed(action: Tensor) -> Tensor:
    """u of actions tanh u in [-1, 1], those on the bound a little inside it."""
    return torch.atanh(action.clamp(-LARGEST_ACTION, LARGEST_ACTION))


def cloning_loss(actor: Actor, obs: Tensor, u: Tensor) -> Tensor:
    """Mean negative log-likelihood of actions tanh u, ``(B, A)``; nats per transition."""
    mean, log_std, _ = actor.get_action_dist_params(obs)
    return -squashed_log_density(u, mean, log_std).mean()


def sample_action(actor: Actor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparametrised actions in [-1, 1], ``(B, A)``, and their log-densities ``(B,)``."""
    mean, log_std, _ = actor.get_action_dist_params(obs)
    u = mean + noise * log_std.exp()
    return torch.tanh(u), squashed_log_density(u, mean, log_std)


@dataclass
class SACParts:
    """What one update reads and changes."""

    actor: Actor
    critic: StackedCritic
    critic_target: StackedCritic
    log_alpha: Tensor | None  #: learned log entropy coefficient, or None where it is fixed
    fixed_alpha: Tensor  #: the fixed coefficient
    entropy_optimizer: torch.optim.Optimizer | None
    gamma: float
    tau: float
    target_entropy: float
    entropy_in_target: bool = True  #: whether the critics learn the soft value, or the plain one
    actor_frozen: bool = False  #: evaluate the policy: actor and entropy coefficient stay
    cloning_weight: float = 0.0  #: of the data rows' likelihood in the actor's loss
    n_real: int = 0  #: rows of data in a batch; they come first
    #: A learned log entropy coefficient rises no further. The clone's weight holds the policy as
    #: narrow as the data, and is in units of |Q|: where that is below the target entropy, alpha
    #: would rise against it, |Q| with alpha, the weight with |Q|.
    log_alpha_limit: Tensor | None = None

    def __post_init__(self) -> None:
        self.online: list[Tensor] = list(self.critic.parameters())
        self.target: list[Tensor] = list(self.critic_target.parameters())
        self.actor_parameters = list(self.actor.parameters())
        #: of batch normalisation in a features extractor: the targets take them as they are
        self.statistics = get_parameters_by_name(self.critic, ["running_"])
        self.target_statistics = get_parameters_by_name(self.critic_target, ["running_"])


def sac_update(
    parts: SACParts,
    batch: Batch,
    noise: Tensor,
    next_noise: Tensor,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Entropy coefficient, critics, actor, then target networks: SB3's order.

    :param noise: standard normal ``(B, A)`` for the actions at s.
    :param next_noise: at s'.
    :param penalty: added to the critics' loss, a function of their Q ``(C, B)`` of the batch.
    :return: the values named in :data:`METRICS`, on the device.
    """
    action, log_prob = sample_action(parts.actor, batch.obs, noise)
    alpha = parts.fixed_alpha if parts.log_alpha is None else parts.log_alpha.detach().exp()
    entropy_loss = torch.zeros_like(alpha)
    if parts.entropy_optimizer is not None and not parts.actor_frozen:
        assert parts.log_alpha is not None
        gap = (log_prob.detach() + parts.target_entropy).mean()
        entropy_loss = -parts.log_alpha.detach() * gap
        parts.log_alpha.grad = -gap.reshape(1)  # its derivative, without a graph for one number
        step_of(parts.entropy_optimizer)
        if parts.log_alpha_limit is not None:
            with torch.no_grad():
                parts.log_alpha.clamp_(max=parts.log_alpha_limit)

    with torch.no_grad():
        next_action, next_log_prob = sample_action(parts.actor, batch.next_obs, next_noise)
        next_q = parts.critic_target.q_values(batch.next_obs, next_action).amin(0)
        if parts.entropy_in_target:
            next_q = next_q - alpha * next_log_prob
        target = batch.reward + parts.gamma * batch.continues * next_q
    q = parts.critic.q_values(batch.obs, batch.action)
    critic_loss = 0.5 * (q - target).square().mean(dim=1).sum()
    penalised = critic_loss if penalty is None else critic_loss + penalty(q)
    parts.critic.optimizer.zero_grad()
    penalised.backward()
    step_of(parts.critic.optimizer)

    q_pi = parts.critic.q_values(batch.obs, action, frozen=True).amin(0)
    actor_loss = (alpha * log_prob - q_pi).mean()
    if parts.cloning_weight > 0.0 and parts.n_real > 0:
        rows = slice(0, parts.n_real)
        cloning = cloning_loss(parts.actor, batch.obs[rows], unsquashed(batch.action[rows]))
        actor_loss = actor_loss + parts.cloning_weight * q_pi.detach().abs().mean() * cloning
    if not parts.actor_frozen and actor_loss.requires_grad:  # a user may freeze it as well
        parts.actor.optimizer.zero_grad()
        actor_loss.backward()
        step_of(parts.actor.optimizer)

    with torch.no_grad():
        torch._foreach_lerp_(parts.target, parts.online, parts.tau)
        if parts.statistics:
            torch._foreach_copy_(parts.target_statistics, parts.statistics)
    return torch.stack(
        [
            actor_loss.detach(),
            critic_loss.detach(),
            entropy_loss.sum(),
            alpha.sum(),
            q.detach().mean(),
            -log_prob.detach().mean(),
        ]
    )
