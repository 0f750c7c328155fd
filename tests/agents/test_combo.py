"""COMBO: SAC where beta is 0, pessimism off the data where it is not, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import COMBO, RAMBO
from agents.buffers import Batch
from agents.combo import N_ACTIONS, combo_update, conservative_gap
from agents.updates import SACParts, sac_update

BATCH, N_REAL = 32, 16
MakeCombo = Callable[..., COMBO]


@pytest.fixture
def build(pendulum: OfflineDataset, pendulum_model: WorldModel) -> MakeCombo:
    """Builds a small COMBO in the pendulum's world model."""

    def build(cls: type[RAMBO] = COMBO, **kwargs: Any) -> Any:
        env = make_sb3_env(pendulum, 20, 3, world_model=pendulum_model, device="cpu", seed=0)
        small: dict[str, Any] = {
            "policy_kwargs": {"net_arch": [16, 16]}, "gradient_steps": 4, "batch_size": 16,
            "seed": 0, "device": "cpu",
        }  # fmt: skip
        return cls("MlpPolicy", env, **(small | kwargs))

    return build


def parts_of(model: RAMBO) -> SACParts:
    policy = model.policy
    return SACParts(
        model.actor, policy.critic, policy.critic_target, model.log_ent_coef, torch.zeros(1),
        model.ent_coef_optimizer, model.gamma, model.tau, float(model.target_entropy),
    )  # fmt: skip


@pytest.fixture
def batch(pendulum: OfflineDataset) -> Batch:
    """The data's torques are squeezed into [-0.3, 0.3]; rows 16 to 31 pass for model rows."""
    rows = np.random.default_rng(0).choice(len(pendulum), BATCH)
    return Batch(
        torch.as_tensor(pendulum.observations[rows]),
        torch.as_tensor(0.15 * pendulum.actions[rows]),
        torch.as_tensor(pendulum.rewards[rows]),
        torch.as_tensor(pendulum.next_observations[rows]),
        (torch.arange(BATCH) % 4 > 0).float(),
    )


def draw_noise(n_updates: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_updates, 2 + 2 * N_ACTIONS, BATCH, 1, generator=generator)


def test_with_beta_zero_the_update_is_sac_s(build: MakeCombo, batch: Batch) -> None:
    mine, theirs = build(beta=0.0), build(RAMBO)
    mine_parts, their_parts = parts_of(mine), parts_of(theirs)
    start = [p.detach().clone() for p in mine.policy.parameters()]
    for noise in draw_noise(5):
        found = combo_update(mine_parts, batch, noise, N_REAL, 0.0)
        expected = sac_update(their_parts, batch, noise[0], noise[1])
        torch.testing.assert_close(found[:-1], expected, rtol=1e-6, atol=1e-6)
    moved = zip(mine.policy.parameters(), start, strict=True)
    assert max(float((p.detach() - q).abs().max()) for p, q in moved) > 1e-3
    for p, q in zip(mine.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-6)


def test_beta_lowers_q_off_the_data(build: MakeCombo, batch: Batch) -> None:
    """Every row ends with reward 0, so that Q is 0 without the regulariser."""
    batch = batch._replace(reward=torch.zeros(BATCH), continues=torch.zeros(BATCH))
    far = torch.cat([torch.full((BATCH // 2, 1), a) for a in (-0.9, 0.9)])

    def trained(beta: float) -> tuple[float, float]:
        model = build(beta=beta, learning_rate=3e-3)
        parts = parts_of(model)
        for noise in draw_noise(200):
            combo_update(parts, batch, noise, N_REAL, beta)
        with torch.no_grad():
            in_data, off_data = (
                float(model.policy.critic.q_values(batch.obs, action).mean())
                for action in (batch.action, far)
            )
        return in_data, off_data

    assert trained(0.0) == pytest.approx((0.0, 0.0), abs=0.2)
    in_data, off_data = trained(1.0)
    assert off_data < -1.0
    assert off_data < in_data - 1.0


def test_the_soft_maximum_is_the_integral(build: MakeCombo, batch: Batch) -> None:
    """Against quadrature of log int exp Q(s, a) da, with many actions."""
    model, n = build(), 4000
    generator = torch.Generator().manual_seed(2)
    obs = batch.obs[:4]
    uniform = 2.0 * torch.rand(n, 4, 1, generator=generator) - 1.0
    noise = torch.randn(n, 4, 1, generator=generator)
    zero = torch.zeros(2, 1)
    critic = model.policy.critic
    with torch.no_grad():
        for layer in critic.weights:
            layer.mul_(2.0)  # so that Q varies over the actions
        gap = conservative_gap(parts_of(model), obs, uniform, noise, zero)
        grid = torch.linspace(-1.0, 1.0, 2001)
        by_state = [critic.q_values(s.expand(2001, -1), grid.unsqueeze(-1)) for s in obs]
    q = torch.stack(by_state, dim=1)  # (C, 4, 2001)
    assert float((q.amax(-1) - q.amin(-1)).max()) > 0.5
    expected = torch.trapezoid(q.exp(), grid).log().mean(1)
    torch.testing.assert_close(gap, expected, rtol=0.0, atol=0.02)
    # what the data's Q is comes off
    torch.testing.assert_close(
        conservative_gap(parts_of(model), obs, uniform, noise, zero + 3.0), gap - 3.0
    )


def test_it_learns_in_rambo_s_loop_with_the_gap_among_its_metrics(build: MakeCombo) -> None:
    model = build(beta=1.0)
    model.learn(2 * model.timesteps_per_iteration)
    assert (model.iteration, model._n_updates) == (2, 8)
    assert model.metrics[-1] == "conservative_gap"


def test_a_loaded_agent_keeps_beta_and_goes_on(build: MakeCombo, tmp_path: Path) -> None:
    model = build(beta=0.2)
    model.learn(model.timesteps_per_iteration)
    model.save(tmp_path / "policy")
    loaded = COMBO.load(tmp_path / "policy", env=model.env, device="cpu")
    assert loaded.beta == 0.2
    loaded.learn(loaded.timesteps_per_iteration, reset_num_timesteps=False)
    assert loaded.iteration == 2


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_an_invalid_beta_is_refused(build: MakeCombo, beta: float) -> None:
    with pytest.raises(ValueError, match="beta = "):
        build(beta=beta)


@pytest.mark.parametrize("real_ratio", [0.0, 1.0])
def test_batches_of_one_kind_are_refused(build: MakeCombo, real_ratio: float) -> None:
    model = build(real_ratio=real_ratio)
    with pytest.raises(ValueError, match="COMBO needs data and model rows"):
        model.learn(model.timesteps_per_iteration)
