"""Each setting of a configuration reaches the agent, its environment or the adversary."""

from __future__ import annotations

import dataclasses

from adv_worldmodel import OfflineDataset, WorldModel
from adv_worldmodel.dynamics import AdversarySettings
from agents.training.assembly import build_adversary, build_agent
from agents.training.config import AdversaryConfig, AgentConfig, RolloutConfig, TrainConfig
from agents.training.config import load_config as load
from agents.training.preparation import prepare

OVERRIDES = (
    "seed=7", "device=cpu",
    "rollout.starts=12", "rollout.horizon=3", "rollout.policy=random",
    "rollout.retain_iterations=2", "rollout.member_per=rollout",
    "agent.updates=4", "agent.batch_size=20", "agent.real_ratio=0.25", "agent.gamma=0.9",
    "agent.tau=0.02", "agent.critic_learning_rate=2e-3", "agent.actor_learning_rate=3e-3",
    "agent.entropy_learning_rate=4e-3", "agent.ent_coef=auto_0.3", "agent.target_entropy=-2.5",
    "agent.hidden_sizes=[6, 5]", "agent.n_critics=3", "agent.layer_norm=true",
    "agent.critic_warmup=2", "agent.entropy_in_target=false", "agent.fresh_outcomes=true",
    "agent.cloning_weight=0.1", "agent.greedy_step=0.05",
    "adversary.weight=auto", "adversary.updates=6", "adversary.score=pathwise",
    "adversary.learning_rate=5e-3", "adversary.batch_size=30", "adversary.continue_fit=true",
    "adversary.xi=0.2", "adversary.max_weight=0.7",
)  # fmt: skip


def test_every_setting_here_differs_from_its_default() -> None:
    """Otherwise one that gets lost on the way would not be missed below."""
    config, default = load("pendulum-random", OVERRIDES), TrainConfig(dataset="x")
    for section in ("rollout", "agent", "adversary"):
        mine, theirs = (dataclasses.asdict(getattr(one, section)) for one in (config, default))
        assert [key for key in mine if mine[key] == theirs[key]] == []
    kinds = (RolloutConfig, AgentConfig, AdversaryConfig)
    n_fields = sum(len(dataclasses.fields(kind)) for kind in kinds)
    assert n_fields == len(OVERRIDES) - 2


def test_settings_reach_what_they_are_of(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    config = load("pendulum-random", OVERRIDES)
    agent = build_agent(dataclasses.replace(prepare(config), dataset=pendulum), pendulum_model)
    env = agent.env
    assert env is not None
    world = env.world  # type: ignore[attr-defined]
    assert (world.num_envs, world.horizon, world.member_per) == (12, 3, "rollout")
    assert env.world_model is pendulum_model  # type: ignore[attr-defined]
    assert (agent.seed, agent.gradient_steps, agent.batch_size) == (7, 4, 20)
    assert (agent.rollout_policy, agent.retain_iterations) == ("random", 2)
    assert (agent.real_ratio, agent.gamma, agent.tau) == (0.25, 0.9, 0.02)
    rates = [
        optimizer.param_groups[0]["lr"]
        for optimizer in (
            agent.policy.critic.optimizer, agent.actor.optimizer, agent.ent_coef_optimizer,
        )
        if optimizer is not None
    ]  # fmt: skip
    assert rates == [2e-3, 3e-3, 4e-3]
    assert agent.log_ent_coef is not None
    assert abs(float(agent.log_ent_coef.detach().exp()) - 0.3) < 1e-6
    assert agent.target_entropy == -2.5
    assert agent.policy_kwargs["net_arch"] == [6, 5]
    assert agent.policy.critic.n_critics == 3
    assert agent.policy_kwargs["layer_norm"] is True
    assert agent.policy.greedy_step == 0.05
    assert (agent.critic_warmup, agent.entropy_in_target) == (2, False)
    assert (agent.fresh_outcomes, agent.cloning_weight) == (True, 0.1)

    callback = build_adversary(config)
    assert (callback.adversary_updates, callback.seed) == (6, 7)
    assert callback.settings == AdversarySettings(
        weight="auto", score="pathwise", learning_rate=5e-3, batch_size=30, continue_fit=True,
        xi=0.2, max_weight=0.7,
    )  # fmt: skip
