"""What an update is given: critics first, and outcomes of the present model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from adv_worldmodel.dynamics import make_termination
from adv_worldmodel.dynamics.ensemble import MemberDraw
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


def test_where_the_clone_weighs_alpha_stays_below_its_start(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    """Data narrower than the target entropy would else raise alpha and Q in turn."""
    settings = {"ent_coef": "auto_0.1", "target_entropy": 5.0, "entropy_learning_rate": 1e-2}
    alphas = {}
    for weight in (0.0, 0.1):
        agent = build(pendulum, pendulum_model, cloning_weight=weight, **settings)
        alphas[weight] = float(learn(agent, 2).log_ent_coef.detach().exp())
    assert alphas[0.0] > 0.105
    assert alphas[0.1] == pytest.approx(0.1)


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


def test_a_warm_up_at_an_entropy_coefficient_of_one_is_warned_of(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    """The clone's values would be those of its entropy, not of its rewards."""
    with pytest.warns(UserWarning, match="give ent_coef='auto_0.05', or entropy_in_target=False"):
        build(pendulum, pendulum_model, critic_warmup=1)
    remedies = {"ent_coef": "auto_0.05"}, {"ent_coef": 0.1}, {"entropy_in_target": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(pendulum, pendulum_model)
        for remedy in remedies:
            build(pendulum, pendulum_model, critic_warmup=1, **remedy)


def test_a_negative_warm_up_is_refused(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    with pytest.raises(ValueError, match="critic_warmup = -1"):
        build(pendulum, pendulum_model, critic_warmup=-1)


def test_model_rows_get_the_present_model_s_outcomes(
    pendulum: OfflineDataset, ending_model: WorldModel
) -> None:
    """The model and its ends change after the rollouts: what is learnt from says so."""
    size = 64
    agent = learn(build(pendulum, ending_model, fresh_outcomes=True), 1)
    with torch.no_grad():
        for bias in ending_model.ensemble.biases:
            bias.add_(0.3)
    ending_model.termination = make_termination(lambda *rows: rows[2][:, 0] < 0, None)
    step = AgentStep(agent, size)
    seen = []
    step.update = lambda batch, noise: seen.append(batch) or torch.zeros(1)  # type: ignore[func-returns-value]
    real, synthetic, noise, slots, outcome_noise = next(iter(step.draws(1)))
    stored = agent.replay_buffer.gather(real, synthetic)
    step(real, synthetic, noise, slots, outcome_noise)
    (batch,) = seen
    assert torch.equal(batch.obs, stored.obs)
    assert torch.equal(batch.action, stored.action)
    n_real = size // 2
    for column, before in zip(batch, stored, strict=True):
        assert torch.equal(column[:n_real], before[:n_real])
    members = MemberDraw(slots, size - n_real, ending_model.n_members)
    torque = 2.0 * stored.action[n_real:]  # the pendulum's are in [-2, 2]
    with torch.no_grad():
        next_obs, reward, terminated = ending_model.transition(
            stored.obs[n_real:], torque, members, outcome_noise
        )
    assert torch.equal(batch.next_obs[n_real:], next_obs)
    assert torch.equal(batch.reward[n_real:], reward)
    assert torch.equal(batch.continues[n_real:], (~terminated).float())
    assert 0 < int(terminated.sum()) < size - n_real
    assert not torch.any(reward == stored.reward[n_real:])


def test_updates_drawn_in_blocks_have_rows_of_their_own(
    pendulum: OfflineDataset, pendulum_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = learn(build(pendulum, pendulum_model), 1)
    monkeypatch.setattr("agents.agent_step.DRAWN_TOGETHER", 3)
    generator = agent.replay_buffer.generator
    before = generator.get_state()
    real, synthetic, noise = map(torch.stack, zip(*AgentStep(agent, BATCH).draws(7), strict=True))
    generator.set_state(before)
    expected = agent.replay_buffer.draw(7, BATCH)
    assert torch.equal(real, expected[0])
    assert torch.equal(synthetic, expected[1])
    assert len(torch.unique(noise)) == noise.numel() == 7 * 2 * BATCH


def test_an_update_has_the_agent_s_settings(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    settings: dict[str, Any] = {
        "ent_coef": 0.2, "target_entropy": -3.0, "entropy_in_target": False,
        "cloning_weight": 0.1, "gamma": 0.9, "tau": 0.02, "real_ratio": 0.25,
    }  # fmt: skip
    agent = learn(build(pendulum, pendulum_model, **settings), 1)
    parts = AgentStep(agent, BATCH).parts()
    assert (parts.log_alpha, parts.entropy_optimizer) == (None, None)
    assert float(parts.fixed_alpha) == pytest.approx(0.2)
    assert (parts.gamma, parts.tau, parts.target_entropy) == (0.9, 0.02, -3.0)
    assert (parts.entropy_in_target, parts.cloning_weight, parts.n_real) == (False, 0.1, 4)
    learned = AgentStep(build(pendulum, pendulum_model), BATCH).parts()
    assert (learned.log_alpha is None, learned.entropy_optimizer is None) == (False, False)
    assert learned.target_entropy == -1.0  # minus the size of the action


def test_without_fresh_outcomes_an_update_gets_what_is_stored(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    agent = learn(build(pendulum, pendulum_model), 1)
    assert len(next(iter(AgentStep(agent, BATCH).draws(1)))) == 3
