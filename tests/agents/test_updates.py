"""One SAC update: its densities against torch's, its steps against SB3's own ``SAC.train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common import distributions as sb3_distributions
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from agents.buffers import Batch
from agents.updates import METRICS, SACParts, sac_update, sample_action, squashed_log_density

BATCH, UPDATES = 32, 5


def test_log_density_is_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(200, 3, generator=generator).double() for _ in range(3))
    u = mean + noise * log_std.exp()
    gaussian = Independent(Normal(mean, log_std.exp()), 1)
    squashed = TransformedDistribution(gaussian, [TanhTransform(cache_size=1)])
    action = squashed.transforms[0](u)  # cached, so that torch need not invert it
    torch.testing.assert_close(
        squashed_log_density(u, mean, log_std), squashed.log_prob(action), rtol=1e-9, atol=1e-9
    )


def test_log_density_is_sb3_s_up_to_its_epsilon() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, u = (0.5 * torch.randn(200, 3, generator=generator) for _ in range(3))
    theirs = sb3_distributions.SquashedDiagGaussianDistribution(3)
    theirs.proba_distribution(mean, log_std)
    expected = theirs.log_prob(torch.tanh(u), u)
    # log(1 - a^2 + 1e-6): off by at most 1e-6 / (1 - a^2) per component
    torch.testing.assert_close(squashed_log_density(u, mean, log_std), expected, rtol=0, atol=1e-4)


def test_log_density_is_finite_far_out() -> None:
    u = torch.tensor([[40.0], [-40.0]], requires_grad=True)
    density = squashed_log_density(u, torch.zeros(1), torch.zeros(1))
    # tanh' = 4 exp(-2 |u|), hence + 2 |u| - log 4
    by_hand = -0.5 * 40.0**2 - 0.5 * np.log(2 * np.pi) + 80.0 - np.log(4.0)
    torch.testing.assert_close(density, torch.full((2,), float(by_hand)))
    (grad,) = torch.autograd.grad(density.sum(), u)
    torch.testing.assert_close(grad, torch.tensor([[-38.0], [38.0]]))  # -u + 2 tanh u


def make_rambo(dataset: OfflineDataset, model: WorldModel, **kwargs: Any) -> RAMBO:
    env = make_sb3_env(dataset, 4, 2, world_model=model, device="cpu", seed=0)
    policy_kwargs = {"net_arch": [16, 16]}
    return RAMBO("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)


def stock_twin(rambo: RAMBO, **kwargs: Any) -> SAC:
    """SB3's SAC with RAMBO's weights, standardisation and learning rate."""
    extractor = {
        key: value
        for key, value in rambo.policy_kwargs.items()
        if key.startswith("features_extractor")
    }
    twin = SAC(
        SACPolicy, rambo.env, rambo.learning_rate, buffer_size=100, batch_size=BATCH, seed=0,
        device="cpu", policy_kwargs={"net_arch": [16, 16], **extractor}, **kwargs,
    )  # fmt: skip
    twin.set_logger(configure(None, []))
    twin.actor.load_state_dict(rambo.actor.state_dict())
    for theirs, mine in (
        (twin.critic, rambo.policy.critic), (twin.critic_target, rambo.policy.critic_target)
    ):  # fmt: skip
        for c, network in enumerate(theirs.q_networks):
            linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
            for layer, weight, bias in zip(linear, mine.weights, mine.biases, strict=True):
                layer.weight.data, layer.bias.data = weight[c].T.clone(), bias[c, 0].clone()
    return twin


@pytest.fixture
def batches(pendulum: OfflineDataset) -> list[Batch]:
    rows = np.random.default_rng(0).choice(len(pendulum), (UPDATES, BATCH))
    return [
        Batch(
            torch.as_tensor(pendulum.observations[i]),
            torch.as_tensor(pendulum.actions[i] / 2),
            torch.as_tensor(pendulum.rewards[i]),
            torch.as_tensor(pendulum.next_observations[i]),
            (torch.arange(BATCH) % 8 > 0).float(),  # some rows terminate
        )
        for i in rows
    ]


def feed(twin: SAC, batches: list[Batch], noise: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 trains on these batches, its actor drawing these numbers: at s, then at s'."""
    samples: Iterator[ReplayBufferSamples] = iter(
        ReplayBufferSamples(
            b.obs, b.action, b.next_obs, 1 - b.continues[:, None], b.reward[:, None]
        )
        for b in batches
    )
    monkeypatch.setattr(twin.replay_buffer, "sample", lambda *args, **kwargs: next(samples))
    draws = iter(noise.reshape(-1, *noise.shape[2:]))
    monkeypatch.setattr(
        Normal, "rsample", lambda self, shape=None: self.loc + self.scale * next(draws)
    )
    twin.train(gradient_steps=len(batches), batch_size=BATCH)


@pytest.mark.parametrize("ent_coef", ["auto", 0.2], ids=["learned-alpha", "fixed-alpha"])
def test_updates_are_sb3_s(
    pendulum: OfflineDataset,
    pendulum_model: WorldModel,
    batches: list[Batch],
    monkeypatch: pytest.MonkeyPatch,
    ent_coef: str | float,
) -> None:
    rate = 3e-4  # SB3 has one for all three
    rambo = make_rambo(
        pendulum, pendulum_model, learning_rate=rate, actor_learning_rate=rate,
        entropy_learning_rate=rate, ent_coef=ent_coef, tau=0.05,
    )  # fmt: skip
    twin = stock_twin(rambo, ent_coef=ent_coef, tau=0.05)
    networks = (rambo.actor, rambo.policy.critic)
    start = [[p.detach().clone() for p in network.parameters()] for network in networks]
    noise = torch.randn(UPDATES, 2, BATCH, 1, generator=torch.Generator().manual_seed(3))
    parts = parts_of(rambo)
    for batch, (now, then) in zip(batches, noise, strict=True):
        sac_update(parts, batch, now, then)
    feed(twin, batches, noise, monkeypatch)

    for network, before in zip(networks, start, strict=True):
        moved = zip(network.parameters(), before, strict=True)
        # about five steps of 3e-4: far above the tolerance below
        assert max(float((p.detach() - q).abs().max()) for p, q in moved) > 1e-3
    close = {"rtol": 0.0, "atol": 1e-5}
    for mine, theirs in zip(rambo.actor.parameters(), twin.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **close)
    for stacked, single in (
        (rambo.policy.critic, twin.critic), (rambo.policy.critic_target, twin.critic_target)
    ):  # fmt: skip
        for c, network in enumerate(single.q_networks):
            linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
            for layer, weight, bias in zip(linear, stacked.weights, stacked.biases, strict=True):
                torch.testing.assert_close(weight[c].T, layer.weight, **close)
                torch.testing.assert_close(bias[c, 0], layer.bias, **close)
    if ent_coef == "auto":
        assert rambo.log_ent_coef is not None
        assert twin.log_ent_coef is not None
        torch.testing.assert_close(rambo.log_ent_coef, twin.log_ent_coef, **close)


def parts_of(rambo: RAMBO) -> SACParts:
    policy = rambo.policy
    return SACParts(
        rambo.actor, policy.critic, policy.critic_target, rambo.log_ent_coef,
        getattr(rambo, "ent_coef_tensor", torch.zeros(1)), rambo.ent_coef_optimizer,
        rambo.gamma, rambo.tau, float(rambo.target_entropy),
    )  # fmt: skip


def test_the_metrics_are_what_their_names_say(
    pendulum: OfflineDataset, pendulum_model: WorldModel, batches: list[Batch]
) -> None:
    rambo = make_rambo(pendulum, pendulum_model, ent_coef=0.2)
    batch, noise = batches[0], torch.zeros(BATCH, 1)
    with torch.no_grad():
        q = rambo.policy.critic.q_values(batch.obs, batch.action)
        _, log_prob = sample_action(rambo.actor, batch.obs, noise)
    values = dict(zip(METRICS, sac_update(parts_of(rambo), batch, noise, noise), strict=True))
    assert float(values["q_mean"]) == pytest.approx(float(q.mean()), rel=1e-5)
    assert float(values["ent_coef"]) == pytest.approx(0.2)
    assert float(values["entropy"]) == pytest.approx(-float(log_prob.mean()), rel=1e-5)
    assert float(values["ent_coef_loss"]) == 0.0


def test_a_terminated_row_s_target_is_its_reward(
    pendulum: OfflineDataset,
    pendulum_model: WorldModel,
    batches: list[Batch],
) -> None:
    """Reward 7 and no future: the critics, trained on nothing else, learn 7."""
    rambo = make_rambo(pendulum, pendulum_model, learning_rate=1e-2, ent_coef=0.2)
    batch = batches[0]._replace(reward=torch.full((BATCH,), 7.0), continues=torch.zeros(BATCH))
    parts, noise = parts_of(rambo), torch.zeros(BATCH, 1)
    for _ in range(300):
        sac_update(parts, batch, noise, noise)
    q = rambo.policy.critic.q_values(batch.obs, batch.action)
    torch.testing.assert_close(q, torch.full_like(q, 7.0), rtol=0, atol=0.5)


def test_the_noise_is_all_that_is_random(
    pendulum: OfflineDataset,
    pendulum_model: WorldModel,
    batches: list[Batch],
) -> None:
    results = []
    for _ in range(2):
        rambo = make_rambo(pendulum, pendulum_model)
        torch.rand(7)
        noise = torch.ones(BATCH, 1)
        results.append(sac_update(parts_of(rambo), batches[0], noise, -noise))
    assert torch.equal(*results)


def test_the_cloning_term_draws_the_policy_to_the_actions_of_the_data_rows(
    pendulum: OfflineDataset, pendulum_model: WorldModel, batches: list[Batch]
) -> None:
    """Data rows act +0.8, model rows -0.8 in the same states; the critics know no difference."""
    batch = batches[0]
    n_real = BATCH // 2
    obs = batch.obs[:n_real].repeat(2, 1)
    action = torch.cat([torch.full((n_real, 1), 0.8), torch.full((n_real, 1), -0.8)])
    batch = batch._replace(obs=obs, action=action, reward=torch.ones(BATCH))
    means = {}
    for weight in (0.0, 1.0):
        rambo = make_rambo(pendulum, pendulum_model, actor_learning_rate=1e-2, ent_coef=0.2)
        parts = dataclasses.replace(parts_of(rambo), cloning_weight=weight, n_real=n_real)
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            noise = torch.randn(2, BATCH, 1, generator=generator)
            sac_update(parts, batch, noise[0], noise[1])
        with torch.no_grad():
            means[weight] = torch.tanh(rambo.actor.get_action_dist_params(obs)[0])
    assert float((means[1.0] - 0.8).abs().mean()) < 0.1
    assert float((means[0.0] - 0.8).abs().mean()) > 0.3
