"""What users of SB3 are used to do with an algorithm, and RAMBO lets them do."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import COMBO, RAMBO
from agents.buffers import MixedReplayBuffer
from tests.agents.small_agents import HORIZON, N_ENVS, UPDATES, MakeAgent, learnt, run


@pytest.mark.parametrize("kind", [RAMBO, COMBO])
def test_with_a_frozen_actor_the_critics_alone_learn(
    make_agent: MakeAgent, kind: type[RAMBO]
) -> None:
    agent = make_agent(kind)
    agent.actor.requires_grad_(False)
    before = [p.clone() for p in agent.policy.parameters()]
    of_actor = {id(p) for p in agent.actor.parameters()}
    run(agent, 2)
    for old, new in zip(before, agent.policy.parameters(), strict=True):
        assert torch.equal(old, new) == (id(new) in of_actor)


class Counting(MixedReplayBuffer):
    gathered = 0

    def gather(self, *rows: Any) -> Any:
        self.gathered += 1
        return super().gather(*rows)


def test_batches_come_from_the_buffer_that_the_agent_has_by_now(make_agent: MakeAgent) -> None:
    agent = learnt(make_agent)
    old = agent.replay_buffer
    agent.replay_buffer = Counting(
        old.buffer_size, old.observation_space, old.action_space, "cpu", old.n_envs,
        dataset=agent.env.dataset, real_ratio=0.5, seed=0,
    )  # fmt: skip
    agent.replay_buffer.take_rollouts(old)
    agent.train(UPDATES, batch_size=16)
    assert agent.replay_buffer.gathered == UPDATES


def test_a_zip_that_holds_the_buffer_gives_its_rows_back(make_agent: MakeAgent) -> None:
    agent, file = learnt(make_agent), io.BytesIO()
    agent.save(file, include=["replay_buffer"])
    back = RAMBO.load(file, env=agent.env, device="cpu")
    assert back.replay_buffer.size() == agent.replay_buffer.size() > 0
    assert torch.equal(back.replay_buffer.synthetic, agent.replay_buffer.synthetic)
    assert torch.equal(back.replay_buffer.real, agent.replay_buffer.real)
    run(back, 1)
    assert back.replay_buffer.size() == 2 * agent.replay_buffer.size()


def test_episodes_are_counted(make_agent: MakeAgent) -> None:
    """None of the pendulum's ends before the horizon."""
    agent = run(make_agent(), 3)
    assert agent.num_timesteps == 3 * N_ENVS * HORIZON
    assert agent._episode_num == 3 * N_ENVS


class Reading(BaseCallback):
    """What a rollout finds of the updates before it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, float]] = []

    def _on_rollout_start(self) -> None:
        self.found.append(dict(self.model.last_metrics))  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


def test_a_callback_can_read_what_the_last_updates_gave(make_agent: MakeAgent) -> None:
    reading = Reading()
    agent = run(make_agent(), 2, callback=reading)
    first, second = reading.found
    assert first == {}
    assert set(second) == {f"train/{name}" for name in agent.metrics}
    assert second["train/ent_coef"] == pytest.approx(1.0, abs=0.01)
    assert agent.last_metrics != second
