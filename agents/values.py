"""Policy and value function of an SB3 algorithm, as the adversary sees them.

On raw observations and raw actions. V(s) = min_j Q_j(s, mean action) with the online critics and
no entropy term; PPO has no Q, its V(s) serves as the baseline too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor

from adv_worldmodel.graphs import Branches
from adv_worldmodel.protocols import Policy, ValueFunction
from agents.actions import ActionBounds
from agents.policies import StackedCritic, is_plain, outputs_of

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class SquashedPolicy:
    """Tanh-Gaussian actor of SAC, TQC, CrossQ and RAMBO."""

    def __init__(self, model: Any) -> None:
        self.actor = model.policy.actor
        self.bounds = ActionBounds(model.action_space, model.device)

    @property
    def plain(self) -> bool:
        """Whether there is a faster way to what SB3 computes."""
        return is_plain(self.actor)

    def mean_action(self, obs: Tensor) -> Tensor:
        """tanh(mu(s)), scaled ``(B, A)``."""
        if self.plain:
            return torch.tanh(outputs_of(self.actor, obs, mean_only=True))
        mean, _, _ = self.actor.get_action_dist_params(obs)
        return torch.tanh(mean)

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """One raw action per row, of standard normals ``(B, A)``."""
        if self.plain:
            mean, log_std = outputs_of(self.actor, obs).chunk(2, dim=-1)
            std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
            return self.bounds.unscale(torch.tanh(torch.addcmul(mean, noise, std)))
        mean, log_std, latent = self.actor.get_action_dist_params(obs)
        if getattr(self.actor, "use_sde", False):  # gSDE: log_std is of the last layer's weights
            gaussian = self.actor.action_dist.proba_distribution(mean, log_std, **latent)
            std = gaussian.distribution.stddev
        else:
            std = log_std.exp()
        return self.bounds.unscale(torch.tanh(mean + noise * std))


class DeterministicPolicy:
    """Actor of TD3 and DDPG; exploration noise is no part of the policy."""

    def __init__(self, model: Any) -> None:
        self.actor = model.policy.actor
        self.bounds = ActionBounds(model.action_space, model.device)

    def mean_action(self, obs: Tensor) -> Tensor:
        """The action, scaled ``(B, A)``."""
        scaled: Tensor = self.actor(obs)
        return scaled

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The raw action of each row."""
        return self.bounds.unscale(self.mean_action(obs))


class OnPolicyPolicy:
    """Gaussian actor of PPO and A2C, clipped to the action space as SB3 does."""

    def __init__(self, model: Any) -> None:
        self.policy = model.policy
        self.bounds = ActionBounds(model.action_space, model.device)

    def _moments(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        policy = self.policy
        own = any(
            getattr(type(policy), name) is not getattr(ActorCriticPolicy, name)
            for name in ("get_distribution", "_get_action_dist_from_latent")
        )
        if policy.use_sde or own:
            found = policy.get_distribution(obs)
            if type(found) not in (DiagGaussianDistribution, StateDependentNoiseDistribution):
                raise ValueError(
                    f"{type(policy).__name__} acts by a {type(found).__name__}: an adversary can "
                    "sample a DiagGaussianDistribution or a StateDependentNoiseDistribution"
                )
            return found.distribution.mean, found.distribution.stddev
        # not by SB3's distribution, which checks its arguments and so waits for a GPU
        # as get_distribution does; ActorCriticPolicy's gives two where they are not shared
        features = BaseModel.extract_features(policy, obs, policy.pi_features_extractor)
        latent = policy.mlp_extractor.forward_actor(features)
        return policy.action_net(latent), policy.log_std.exp()

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """One raw action per row, of standard normals ``(B, A)``."""
        mean, std = self._moments(obs)
        action = mean + std * noise
        if self.policy.squash_output:
            return self.bounds.unscale(torch.tanh(action))
        return torch.clamp(action, self.bounds.low, self.bounds.high)


class CriticValue:
    """V and Q of an algorithm with Q-networks."""

    def __init__(self, model: Any, policy: SquashedPolicy | DeterministicPolicy) -> None:
        self.critic, self.policy, self.bounds = model.policy.critic, policy, policy.bounds
        # TQC: quantiles per network, of which it drops the highest
        self.dropped = getattr(model, "top_quantiles_to_drop_per_net", 0)

    def _lowest(self, obs: Tensor, scaled: Tensor) -> Tensor:
        if isinstance(self.critic, StackedCritic):
            return self.critic.q_values(obs, scaled).amin(0)
        q = self._with_gradient(obs, scaled)
        if isinstance(q, tuple):
            return torch.cat(q, dim=1).amin(1)
        quantiles: Tensor = q.flatten(1).sort(dim=1).values
        return quantiles[:, : quantiles.shape[1] - self.dropped * q.shape[1]].mean(1)

    def _with_gradient(self, obs: Tensor, scaled: Tensor) -> Any:
        """The critics' output; SB3's pass no gradient through an extractor that is shared."""
        shared = getattr(self.critic, "share_features_extractor", False)
        if not shared or not torch.is_grad_enabled():
            return self.critic(obs, scaled)
        self.critic.share_features_extractor = False
        try:
            return self.critic(obs, scaled)
        finally:
            self.critic.share_features_extractor = shared

    def v(self, obs: Tensor) -> Tensor:
        """min_j Q_j(s, mean action), ``(B,)``."""
        if torch.is_grad_enabled() or not isinstance(self.critic, StackedCritic):
            return self._lowest(obs, self.policy.mean_action(obs))
        branches = Branches(obs.device)
        with branches.beside():
            features = self.critic.features(obs)
        action = self.policy.mean_action(obs)
        branches.join()
        return self.critic.q_of_features(features, action).amin(0)

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """min_j Q_j(s, a), ``(B,)``."""
        return self._lowest(obs, self.bounds.scale(action))


class StateValue:
    """V of an on-policy algorithm, which is its own baseline."""

    def __init__(self, model: Any) -> None:
        self.policy = model.policy

    def v(self, obs: Tensor) -> Tensor:
        """V(s), ``(B,)``."""
        value: Tensor = self.policy.predict_values(obs)
        return value.squeeze(-1)

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """V(s): the algorithm has no Q."""
        return self.v(obs)


def policy_and_value(model: BaseAlgorithm) -> tuple[Policy, ValueFunction]:
    """Policy and value function of SAC, TD3, TQC, CrossQ, PPO, A2C and their subclasses.

    They read the networks at each call, so that they stay true while the algorithm learns.

    :raises ValueError: the algorithm has neither critics nor a state value.
    """
    policy = model.policy
    if hasattr(policy, "critic") and hasattr(policy, "actor"):
        squashed = hasattr(policy.actor, "get_action_dist_params")
        actor = SquashedPolicy(model) if squashed else DeterministicPolicy(model)
        return actor, CriticValue(model, actor)
    if hasattr(policy, "predict_values") and not hasattr(policy, "lstm_actor"):
        return OnPolicyPolicy(model), StateValue(model)
    raise ValueError(
        f"{type(model).__name__} has no value function of the state alone that an adversary "
        "could lower; use SAC, TD3, TQC, CrossQ, PPO, A2C or RAMBO"
    )
