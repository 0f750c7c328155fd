"""The agent and the adversary that a configuration describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adv_worldmodel import WorldModel, make_sb3_env
from agents.callbacks import RamboCallback
from agents.rambo import RAMBO

if TYPE_CHECKING:
    from agents.training.config import TrainConfig
    from agents.training.preparation import Preparation

__all__ = ["build_adversary", "build_agent"]


def build_agent(prepared: Preparation, world_model: WorldModel) -> RAMBO:
    """RAMBO in a world model fitted to the data."""
    config, agent = prepared.config, prepared.config.agent
    env = make_sb3_env(
        prepared.dataset,
        config.rollout.starts,
        config.rollout.horizon,
        seed=config.seed,
        world_model=world_model,
        member_per=config.rollout.member_per,
    )
    return RAMBO(
        "MlpPolicy",
        env,
        agent.critic_learning_rate,
        actor_learning_rate=agent.actor_learning_rate,
        entropy_learning_rate=agent.entropy_learning_rate,
        real_ratio=agent.real_ratio,
        retain_iterations=config.rollout.retain_iterations,
        rollout_policy=config.rollout.policy,
        gradient_steps=agent.updates,
        batch_size=agent.batch_size,
        gamma=agent.gamma,
        tau=agent.tau,
        ent_coef=agent.ent_coef,
        target_entropy=agent.target_entropy,
        critic_warmup=agent.critic_warmup,
        entropy_in_target=agent.entropy_in_target,
        fresh_outcomes=agent.fresh_outcomes,
        cloning_weight=agent.cloning_weight,
        policy_kwargs={
            "net_arch": list(agent.hidden_sizes),
            "n_critics": agent.n_critics,
            "layer_norm": agent.layer_norm,
            "greedy_step": agent.greedy_step,
        },
        seed=config.seed,
        device=prepared.device,
    )


def build_adversary(config: TrainConfig) -> RamboCallback:
    """The callback that turns the world model against the agent."""
    adversary = config.adversary
    return RamboCallback(
        adversary.weight,  # type: ignore[arg-type]  # a text is "auto"
        adversary.updates,
        score=adversary.score,
        learning_rate=adversary.learning_rate,
        batch_size=adversary.batch_size,
        continue_fit=adversary.continue_fit,
        xi=adversary.xi,
        max_weight=adversary.max_weight,
        seed=config.seed,
    )
