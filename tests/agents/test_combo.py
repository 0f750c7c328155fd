"""COMBO: SAC where beta is 0, pessimism off the data where it is not, and what it saves."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common import utils
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor

from adv_worldmodel import OfflineDataset
from agents import COMBO, RAMBO
from agents.buffers import Batch
from agents.combo import N_ACTIONS, combo_update, conservative_gap
from agents.updates import SACParts, sac_update
from tests.agents.small_agents import MakeAgent, run

BATCH, N_REAL = 32, 16


def parts_of(model: RAMBO, n_real: int = N_REAL) -> SACParts:
    policy = model.policy
    return SACParts(
        model.actor, policy.critic, policy.critic_target, model.log_ent_coef, torch.zeros(1),
        model.ent_coef_optimizer, model.gamma, model.tau, float(model.target_entropy),
        n_real=n_real,
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


def test_with_beta_zero_the_update_is_sac_s(make_agent: MakeAgent, batch: Batch) -> None:
    mine, theirs = make_agent(COMBO, beta=0.0), make_agent()
    mine_parts, their_parts = parts_of(mine), parts_of(theirs)
    start = [p.detach().clone() for p in mine.policy.parameters()]
    for noise in draw_noise(5):
        found = combo_update(mine_parts, batch, noise, 0.0)
        expected = sac_update(their_parts, batch, noise[0], noise[1])
        torch.testing.assert_close(found[:-1], expected, rtol=1e-6, atol=1e-6)
    moved = zip(mine.policy.parameters(), start, strict=True)
    assert max(float((p.detach() - q).abs().max()) for p, q in moved) > 1e-3
    for p, q in zip(mine.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-6)


def test_beta_lowers_q_off_the_data(make_agent: MakeAgent, batch: Batch) -> None:
    """Every row ends with reward 0, so that Q is 0 without the regulariser."""
    batch = batch._replace(reward=torch.zeros(BATCH), continues=torch.zeros(BATCH))
    far = torch.cat([torch.full((BATCH // 2, 1), a) for a in (-0.9, 0.9)])

    def trained(beta: float) -> tuple[float, float]:
        model = make_agent(COMBO, beta=beta, learning_rate=3e-3)
        parts = parts_of(model)
        for noise in draw_noise(200):
            combo_update(parts, batch, noise, beta)
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


def test_the_soft_maximum_is_the_integral(make_agent: MakeAgent, batch: Batch) -> None:
    """Against quadrature of log int exp Q(s, a) da, with many actions."""
    model, n = make_agent(COMBO), 4000
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


def test_the_regulariser_sets_model_rows_against_data_rows(
    make_agent: MakeAgent, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the data come first, and are not as many as the model's here."""
    n_data, beta = 8, 0.7
    parts = parts_of(make_agent(COMBO), n_data)
    (noise,) = draw_noise(1)
    found: list[Tensor] = []

    def update(*arguments: Any) -> Tensor:
        *_, penalty = arguments
        q = torch.arange(2.0 * BATCH).reshape(2, BATCH)
        found.append(penalty(q))
        return torch.zeros(len(RAMBO.metrics))

    seen: dict[str, Tensor] = {}

    def gap(parts: SACParts, obs: Tensor, uniform: Tensor, normals: Tensor, q: Tensor) -> Tensor:
        seen.update(obs=obs, uniform=uniform, normals=normals, q=q)
        return torch.tensor([1.0, 5.0])

    monkeypatch.setattr("agents.combo.sac_update", update)
    monkeypatch.setattr("agents.combo.conservative_gap", gap)
    metrics = combo_update(parts, batch, noise, beta)
    assert float(found[0]) == pytest.approx(beta * 6.0)  # summed over the critics
    assert float(metrics[-1]) == 3.0  # their mean
    assert torch.equal(seen["obs"], batch.obs[n_data:])
    assert torch.equal(seen["q"], torch.stack([torch.arange(8.0), 32.0 + torch.arange(8.0)]))
    assert torch.equal(seen["normals"], noise[2 + N_ACTIONS :, n_data:])
    uniform = seen["uniform"]
    assert uniform.shape == (N_ACTIONS, BATCH - n_data, 1)
    expected = 2.0 * torch.special.ndtr(noise[2 : 2 + N_ACTIONS, n_data:]) - 1.0
    torch.testing.assert_close(uniform, expected, rtol=0.0, atol=1e-5)


def constant_q(q: float, width: int) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `conservative_gap` with two critics of value ``q``, and 1 on the data."""
    space = Box(-1.0, 1.0, (width,), np.float32)
    policy = SACPolicy(Box(-1.0, 1.0, (2,), np.float32), space, lambda _: 1e-3)
    critic = SimpleNamespace(q_values=lambda obs, action: torch.full((2, len(obs)), q))
    generator = torch.Generator().manual_seed(3)
    shape = (20_000, 2, width)
    uniform = 2.0 * torch.rand(shape, generator=generator) - 1.0
    noise = torch.randn(shape, generator=generator)
    parts = SimpleNamespace(actor=policy.actor, critic=critic)
    return parts, torch.zeros(2, 2), uniform, noise, torch.ones(2, 4)


def test_the_soft_maximum_of_a_constant_is_its_integral() -> None:
    """Q = 3 everywhere over [-1, 1]^A: log int exp Q da = 3 + A log 2."""
    for width in (1, 2, 3):
        gap = conservative_gap(*constant_q(3.0, width))
        expected = torch.full((2,), 3.0 + width * math.log(2.0) - 1.0)
        torch.testing.assert_close(gap, expected, rtol=0.0, atol=0.05)


def test_it_learns_in_rambo_s_loop_with_the_gap_among_its_metrics(make_agent: MakeAgent) -> None:
    model = make_agent(COMBO, beta=1.0)
    model.learn(2 * model.timesteps_per_iteration)
    assert (model.iteration, model._n_updates) == (2, 8)
    assert model.metrics[-1] == "conservative_gap"


def test_a_loaded_agent_keeps_beta_and_goes_on(make_agent: MakeAgent, tmp_path: Path) -> None:
    model = make_agent(COMBO, beta=0.2)
    model.learn(model.timesteps_per_iteration)
    model.save(tmp_path / "policy")
    loaded = COMBO.load(tmp_path / "policy", env=model.env, device="cpu")
    assert loaded.beta == 0.2
    loaded.learn(loaded.timesteps_per_iteration, reset_num_timesteps=False)
    assert loaded.iteration == 2


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_an_invalid_beta_is_refused(make_agent: MakeAgent, beta: float) -> None:
    with pytest.raises(ValueError, match="beta = "):
        make_agent(COMBO, beta=beta)
    model = make_agent(COMBO)
    model.beta = beta
    with pytest.raises(ValueError, match="beta = "):
        run(model, 1)


@pytest.mark.parametrize("real_ratio", [0.0, 1.0])
def test_batches_of_one_kind_are_refused(make_agent: MakeAgent, real_ratio: float) -> None:
    with pytest.raises(ValueError, match="COMBO needs data and model rows"):
        make_agent(COMBO, real_ratio=real_ratio)
    model = make_agent(COMBO)
    model.real_ratio = real_ratio
    with pytest.raises(ValueError, match="COMBO needs data and model rows"):
        run(model, 1)


def test_tensorboard_knows_the_algorithm_by_its_name(make_agent: MakeAgent, tmp_path: Path) -> None:
    for kind in (COMBO, RAMBO):
        run(make_agent(kind, tensorboard_log=str(tmp_path)), 1)
    run(make_agent(tensorboard_log=str(tmp_path)), 1, tb_log_name="mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["COMBO_1", "RAMBO_1", "mine_1"]


@pytest.mark.skipif(
    not hasattr(utils, "FloatSchedule"), reason="no agent of this SB3 can be pickled (before 2.7)"
)
def test_a_trained_agent_can_be_pickled(make_agent: MakeAgent) -> None:
    model = make_agent(COMBO, beta=0.2)
    model.learn(model.timesteps_per_iteration)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied.actor.mu.weight, model.actor.mu.weight)
