"""What an update's capture takes as it is: where that has changed, another step is made.

A CUDA graph goes on with the memory, the numbers and the rules that it was captured with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import TRPO

from adv_worldmodel import (
    Adversary,
    AdversarySettings,
    OfflineDataset,
    WorldModel,
    make_sb3_env,
)
from adv_worldmodel.graphs import GraphedStep, can_be_captured, hooks_of
from agents import RAMBO, RamboCallback
from agents.agent_step import AgentStep
from agents.values import policy_and_value
from tests.agents.small_agents import MakeAgent, learnt, run


@pytest.fixture
def agent(make_agent: MakeAgent) -> RAMBO:
    return learnt(make_agent)


def test_parameters_in_other_memory_are_captured_anew(agent: RAMBO) -> None:
    run(agent, 1, reset_num_timesteps=False)
    step = agent._step
    agent.train(1, 256)
    assert agent._step is not step  # another size of batches
    step = agent._step
    agent.train(1, 256)
    assert agent._step is step
    weight = agent.critic.weights[0]
    weight.data = weight.data.clone()
    agent.train(1, 256)
    assert agent._step is not step
    step = agent._step
    for group in agent.actor.optimizer.param_groups:
        group["lr"] *= 0.5  # on a GPU, a number of the kernel's
    agent.train(1, 256)
    assert agent._step is not step


def load_moments(agent: RAMBO) -> None:
    optimizer = agent.critic.optimizer
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def move_alpha(agent: RAMBO) -> None:
    assert agent.log_ent_coef is not None
    agent.log_ent_coef.data = agent.log_ent_coef.data.clone()


def set_learning_rate(agent: RAMBO) -> None:
    """As one annealed in NumPy's numbers."""
    for group in agent.critic.optimizer.param_groups:
        group["lr"] = np.float32(group["lr"])
    agent.train(1, 256)
    step = agent._step
    for group in agent.critic.optimizer.param_groups:
        group["lr"] *= np.float32(0.5)
    agent.train(1, 256)
    assert agent._step is not step


@pytest.mark.parametrize(
    "change",
    [
        load_moments,
        lambda agent: agent.actor.optimizer.state.clear(),
        lambda agent: agent.actor.latent_pi[0].requires_grad_(False),
        lambda agent: agent.actor.mu.weight.register_hook(lambda grad: grad),
        lambda agent: agent.actor.mu.register_full_backward_hook(lambda *_: None),
        lambda agent: agent.critic.optimizer.register_step_post_hook(lambda *_: None),
        move_alpha,
        set_learning_rate,
        lambda agent: setattr(agent.replay_buffer, "real_ratio", 0.25),
        lambda agent: setattr(agent, "real_ratio", 0.25),
        lambda agent: agent.replay_buffer.take_rollouts(copy.deepcopy(agent.replay_buffer)),
    ],
    ids=[
        "moments",
        "no-moments",
        "frozen",
        "hook",
        "layer's hook",
        "optimiser's hook",
        "alpha",
        "learning rate",
        "share",
        "setting",
        "rows",
    ],
)
def test_what_an_update_takes_as_it_is_makes_another_step(
    agent: RAMBO, change: Callable[[RAMBO], object]
) -> None:
    agent.train(1, 256)
    step = agent._step
    assert step is not None
    agent.train(1, 256)
    assert agent._step is step
    first = agent.actor.latent_pi[0].weight.detach().clone()
    change(agent)
    agent.train(1, 256)
    assert agent._step is not None
    assert agent._step is not step
    assert agent._step.n_real == agent.replay_buffer.n_real(256)
    frozen = not agent.actor.latent_pi[0].weight.requires_grad
    assert torch.equal(first, agent.actor.latent_pi[0].weight) == frozen


def test_products_of_another_precision_are_captured_anew(agent: RAMBO) -> None:
    """On a GPU; a captured product keeps its kernel."""
    agent.train(1, 256)
    step, world = agent._step, agent.env.world_model  # type: ignore[union-attr]
    of_world = world.taken_as_it_is()
    try:
        torch.set_float32_matmul_precision("high")
        agent.train(1, 256)
        assert agent._step is not step
        assert world.taken_as_it_is() != of_world
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_adversary_s_moments_in_other_memory_are_captured_anew(agent: RAMBO) -> None:
    world, foes = agent.env.world_model, policy_and_value(agent)  # type: ignore[union-attr]
    adversary = Adversary(world, agent.env.dataset, AdversarySettings(batch_size=16), seed=0)  # type: ignore[union-attr]
    adversary.run(1, *foes)
    step = adversary._step
    adversary.run(1, *foes)
    assert adversary._step is step
    adversary.optimizer.load_state_dict(copy.deepcopy(adversary.optimizer.state_dict()))
    adversary.run(1, *foes)
    assert adversary._step is not step


def test_an_adversary_leaves_a_layer_that_is_frozen_later_as_it_is(agent: RAMBO) -> None:
    world, foes = agent.env.world_model, policy_and_value(agent)  # type: ignore[union-attr]
    adversary = Adversary(world, agent.env.dataset, AdversarySettings(batch_size=16), seed=0)  # type: ignore[union-attr]
    adversary.run(1, *foes)
    layer, other = (world.ensemble.weights[i] for i in (0, 1))
    layer.requires_grad_(False)
    before = layer.clone(), other.detach().clone()
    adversary.run(2, *foes)
    assert torch.equal(layer, before[0])
    assert not torch.equal(other, before[1])
    other.register_hook(torch.zeros_like)
    before = layer.clone(), other.detach().clone()
    adversary.run(1, *foes)
    state = adversary.optimizer.state[other]["step"].clone()
    world.ensemble.requires_grad_(False)
    found = adversary.run(1, *foes)  # nobody is left to learn
    assert float(adversary.optimizer.state[other]["step"]) == float(state)
    assert "supervised_loss" not in found


def test_hooks_are_called_once_they_are_there(agent: RAMBO) -> None:
    """The explicit gradients know none: autograd takes over, of the agent and of its adversary."""
    world, foes = agent.env.world_model, policy_and_value(agent)  # type: ignore[union-attr]
    adversary = Adversary(world, agent.env.dataset, AdversarySettings(batch_size=16), seed=0)  # type: ignore[union-attr]
    adversary.run(1, *foes)
    agent.train(1, 256)
    called: list[str] = []
    world.ensemble.weights[0].register_hook(lambda grad: called.append("model"))
    agent.actor.latent_pi[1].register_forward_hook(lambda *_: called.append("activation"))
    agent.critic.weights[0].register_hook(lambda grad: called.append("critic"))
    agent.train(1, 256)
    assert set(called) == {"activation", "critic"}
    called.clear()
    adversary.run(1, *foes)
    assert set(called) == {"activation", "model"}  # the policy acts in it


def test_a_rule_that_is_replaced_is_captured_anew(
    agent: RAMBO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GraphedStep, "captured", True)
    world = agent.env.world  # type: ignore[union-attr]
    action = torch.zeros(world.num_envs, 1)
    world.advance(action)
    step = world._transition
    world.advance(action)
    assert world._transition is step
    world.world_model.termination = lambda obs, action, next_obs: obs[:, 0] > 0
    world.advance(action)
    assert world._transition is not step


def test_an_algorithm_that_moves_its_parameters_is_captured_anew(
    pendulum: OfflineDataset, ending_model: WorldModel
) -> None:
    """TRPO gives them new memory at each of its updates."""
    env = make_sb3_env(pendulum, 16, 5, world_model=ending_model, device="cpu", seed=0)
    networks = {"net_arch": [8]}
    model = TRPO("MlpPolicy", env, n_steps=5, batch_size=80, device="cpu", policy_kwargs=networks)
    steps = []

    class Watched(RamboCallback):
        def _on_rollout_end(self) -> None:
            assert self.adversary is not None
            steps.append(self.adversary._step)

    model.learn(4 * 80, callback=Watched(adversary_updates=2, batch_size=32))
    assert len({id(step) for step in steps[1:]}) == 3


class Counting(torch.optim.Adam):
    """Another maker's: its steps are counted in Python."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        del self.defaults["capturable"]


def test_optimisers_that_count_on_the_host_are_not_captured(make_agent: MakeAgent) -> None:
    weights = [torch.zeros(1, requires_grad=True)]
    assert can_be_captured(torch.optim.AdamW(weights))
    assert can_be_captured(torch.optim.SGD(weights))
    assert not can_be_captured(Counting(weights))
    assert AgentStep(make_agent(), 16)._with_graphs()
    assert not AgentStep(make_agent(networks={"optimizer_class": Counting}), 16)._with_graphs()


@pytest.mark.parametrize(
    "watch",
    [
        lambda agent: agent.actor.optimizer.register_step_pre_hook(lambda *_: None),
        lambda agent: agent.actor.latent_pi[1].register_forward_hook(lambda *_: None),
        lambda agent: agent.critic.weights[0].register_hook(lambda grad: None),
    ],
    ids=["optimiser", "layer", "parameter"],
)
def test_hooks_are_no_part_of_a_capture(
    agent: RAMBO, watch: Callable[[RAMBO], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay calls none, so there is none while there are hooks."""
    world = agent.env.world_model  # type: ignore[union-attr]
    networks = [*agent.policy.modules(), *agent.policy.parameters()]
    adversary = Adversary(world, agent.env.dataset, AdversarySettings(batch_size=16), seed=0)  # type: ignore[union-attr]
    wanted: list[bool] = []

    def made(step: GraphedStep, *_: object, enabled: bool) -> None:
        wanted.append(enabled)
        step.function, step.enabled = _[0], False  # type: ignore[assignment]

    monkeypatch.setattr(GraphedStep, "__init__", made)
    AgentStep(agent, 16)
    adversary.run(1, *policy_and_value(agent), networks)
    assert wanted == [True, True]
    watch(agent)
    AgentStep(agent, 16)
    assert wanted[2:] == [False]
    adversary.run(1, *policy_and_value(agent), networks)
    of_networks = any(map(hooks_of, networks))
    assert wanted[3:] == [not of_networks]
