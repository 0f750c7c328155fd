"""Behaviour cloning finds the policy that made the data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.sac.policies import Actor
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from agents.cloning import clone_behaviour
from agents.policies import RAMBOPolicy

N = 4000


def make_actor() -> Actor:
    torch.manual_seed(0)
    spaces = Box(-np.inf, np.inf, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    return RAMBOPolicy(*spaces, lambda _: 3e-4, net_arch=[32, 32]).actor


def states() -> Tensor:
    return torch.linspace(-1.5, 1.5, N)[:, None]


def clone(actor: Actor, actions: Tensor, **kwargs: Any) -> float:
    settings: dict[str, Any] = {"epochs": 30, "learning_rate": 3e-3} | kwargs
    return clone_behaviour(actor, states(), actions, torch.Generator().manual_seed(0), **settings)


def test_a_known_policy_is_recovered() -> None:
    """a = tanh u, u ~ N(0.6 s - 0.2, 0.3)."""
    mean, std = 0.6 * states() - 0.2, 0.3
    noise = torch.randn(N, 1, generator=torch.Generator().manual_seed(1))
    u = mean + std * noise
    actor = make_actor()
    nll = clone(actor, torch.tanh(u))
    with torch.no_grad():
        found_mean, found_log_std, _ = actor.get_action_dist_params(states())
    error = (found_mean - mean).abs()
    assert float(error.mean()) < 0.04
    assert float(error.max()) < 0.2
    assert float(found_log_std.mean().exp()) == pytest.approx(std, rel=0.1)
    # the true policy's: of the Gaussian, and of the squashing
    by_hand = 0.5 * noise.square() + math.log(std) + 0.5 * math.log(2 * math.pi)
    expected = float((by_hand + torch.log(1 - torch.tanh(u).square())).mean())
    assert nll == pytest.approx(expected, abs=0.05)


def test_actions_on_the_bound_are_learnt_too() -> None:
    """Every action lies on the bound: skipping such batches would leave the actor as it was."""
    actor = make_actor()
    nll = clone(actor, torch.sign(states()))
    assert math.isfinite(nll)
    assert all(torch.isfinite(p).all() for p in actor.parameters())
    with torch.no_grad():
        action = actor(states(), deterministic=True)
    outside = states().abs() > 0.3
    assert bool((action.sign() == states().sign())[outside].all())
    assert float(action.abs()[outside].min()) > 0.9


def test_equal_generators_give_equal_clones() -> None:
    clones = []
    for _ in range(2):
        actor = make_actor()
        clone(actor, torch.tanh(states()), epochs=1)
        clones.append(actor)
    for a, b in zip(*(c.parameters() for c in clones), strict=True):
        assert torch.equal(a, b)


def test_rambo_clones_raw_actions_of_raw_states(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    """The data's actions, in [-2, 2], are replaced by -1.2 everywhere."""
    pushing = OfflineDataset.from_arrays(
        pendulum.observations,
        np.full_like(pendulum.actions, -1.2),
        pendulum.rewards,
        pendulum.next_observations,
        pendulum.terminations,
        observation_space=pendulum.observation_space,
        action_space=pendulum.action_space,
    )
    env = make_sb3_env(pushing, 4, 2, world_model=pendulum_model, device="cpu")
    model = RAMBO(env=env, policy_kwargs={"net_arch": [16, 16]}, seed=0, device="cpu")
    critic = [p.clone() for p in model.critic.parameters()]
    rate = model.actor.optimizer.param_groups[0]["lr"]
    losses = [model.clone(epochs=n, learning_rate=3e-3) for n in (1, 30)]
    assert losses[1] < losses[0]
    action, _ = model.predict(pendulum.observations, deterministic=True)
    np.testing.assert_allclose(action, -1.2, atol=0.1)
    # nothing but the actor's weights has changed
    assert all(torch.equal(a, b) for a, b in zip(critic, model.critic.parameters(), strict=True))
    assert model.actor.optimizer.state_dict()["state"] == {}
    assert model.actor.optimizer.param_groups[0]["lr"] == rate


def test_cloning_without_data_is_refused(
    pendulum: OfflineDataset, pendulum_model: WorldModel, tmp_path: Any
) -> None:
    env = make_sb3_env(pendulum, 4, 2, world_model=pendulum_model, device="cpu")
    RAMBO(env=env, policy_kwargs={"net_arch": [8]}, device="cpu").save(tmp_path / "policy")
    with pytest.raises(ValueError, match="cloning needs the data: give env=make_sb3_env"):
        RAMBO.load(tmp_path / "policy", device="cpu").clone()
