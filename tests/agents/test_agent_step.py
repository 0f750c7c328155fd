"""What an update is given: critics first, and outcomes of the present model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from agents.agent_step import WARMUP_TAU, AgentStep

BATCH = 16


def build(dataset: OfflineDataset, model: WorldModel, **kwargs: Any) -> RAMBO:
    env = make_sb3_env(dataset, 20, 3, world_model=model, device="cpu", seed=0)
    small = {"net_arch": [16, 16]}
    return RAMBO(env=env, policy_kwargs=small, gradient_steps=4, batch_size=BATCH, seed=0, **kwargs)


def learn(agent: RAMBO, iterations: int) -> RAMBO:
    return agent.learn(iterations * agent.timesteps_per_iteration, reset_num_timesteps=False)


def copies(parameters: Any) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def test_only_the_critics_learn_while_they_warm_up(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    agent = build(pendulum, pendulum_model, critic_warmup=2)
    actor, critic = agent.actor, agent.policy.critic
    before, critic_before = copies(actor.parameters()), copies(critic.parameters())
    learn(agent, 2)
    assert all(map(torch.equal, copies(actor.parameters()), before))
    assert float(agent.log_ent_coef) == 0.0
    assert not any(map(torch.equal, copies(critic.parameters()), critic_before))
    learn(agent, 1)
    assert not any(map(torch.equal, copies(actor.parameters()), before))
    assert float(agent.log_ent_coef) != 0.0


def test_the_targets_follow_faster_while_the_policy_stands_still(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    """After one update from equal networks, targets are tau of the way to the critics."""
    shares = []
    for warmup in (1, 0):
        agent = build(pendulum, pendulum_model, critic_warmup=warmup)
        agent.gradient_steps = 1
        before = copies(agent.policy.critic.parameters())
        learn(agent, 1)
        policy = agent.policy
        pairs = zip(
            policy.critic.parameters(), policy.critic_target.parameters(), before, strict=True
        )
        moved = [(float((q - b).norm()), float((t - b).norm())) for q, t, b in pairs]
        shares.append(sum(t for _, t in moved) / sum(q for q, _ in moved))
    assert shares == pytest.approx([WARMUP_TAU, 0.005], rel=1e-2)


def test_a_negative_warm_up_is_refused(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    with pytest.raises(ValueError, match="critic_warmup = -1"):
        build(pendulum, pendulum_model, critic_warmup=-1)


def test_model_rows_get_the_present_model_s_outcomes(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    """The model's rewards become 7 after the rollouts: what is learnt from says so."""
    agent = build(pendulum, pendulum_model, fresh_outcomes=True)
    learn(agent, 1)
    with torch.no_grad():  # in units of the target: reward 7 without noise, s' = s
        pendulum_model.target_std.zero_()
        pendulum_model.target_mean.zero_()
        pendulum_model.target_mean[0] = 7.0
    assert agent.replay_buffer is not None
    step = AgentStep(agent, BATCH)
    seen = []
    step.update = lambda batch, noise: seen.append(batch) or torch.zeros(1)  # type: ignore[func-returns-value]
    real, synthetic, *rest = next(iter(step.draws(1)))
    stored = agent.replay_buffer.gather(real, synthetic)
    step(real, synthetic, *rest)
    (batch,) = seen
    n_real = BATCH // 2
    assert torch.equal(batch.reward[:n_real], stored.reward[:n_real])
    assert torch.equal(batch.next_obs[:n_real], stored.next_obs[:n_real])
    assert torch.all(batch.reward[n_real:] == 7.0)
    torch.testing.assert_close(batch.next_obs[n_real:], stored.obs[n_real:])
    assert torch.equal(batch.obs, stored.obs)
    assert torch.equal(batch.action, stored.action)
    assert not torch.any(stored.reward == 7.0)


def test_without_fresh_outcomes_an_update_gets_what_is_stored(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    agent = learn(build(pendulum, pendulum_model), 1)
    assert len(next(iter(AgentStep(agent, BATCH).draws(1)))) == 3
