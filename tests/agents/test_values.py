"""V and Q of each algorithm on raw states and raw actions, put together by hand.

The pendulum's actions lie in [-2, 2], so that raw and scaled ones differ by a factor of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adv_worldmodel import AdvWorldModelVecEnv, OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from agents.values import policy_and_value

Make = Callable[..., Any]
WITH_Q = ["SAC", "TD3", "TQC", "CrossQ", "RAMBO"]


@pytest.fixture
def env(pendulum: OfflineDataset, pendulum_model: WorldModel) -> AdvWorldModelVecEnv:
    return make_sb3_env(pendulum, 16, 5, world_model=pendulum_model, device="cpu", seed=0)


@pytest.fixture
def obs(pendulum: OfflineDataset) -> Tensor:
    return torch.tensor(pendulum.observations[:6])


@pytest.fixture
def build(env: AdvWorldModelVecEnv, make_algorithm: Make) -> Make:
    def build(name: str, **kwargs: Any) -> Any:
        if name == "RAMBO":
            model: Any = RAMBO(env=env, policy_kwargs={"net_arch": [16, 16]}, seed=0)
        else:
            model = make_algorithm(name, env, **kwargs)
        model.policy.set_training_mode(False)
        return model

    return build


def normals(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, 1), generator=torch.Generator().manual_seed(seed))


def lowest_q(name: str, model: Any, obs: Tensor, raw: Tensor) -> Tensor:
    """The estimate of each algorithm, with its critics called as SB3 calls them."""
    out = model.critic(obs, raw / 2)
    if name != "TQC":
        first, second = (q.squeeze(1) for q in out)
        return torch.minimum(first, second)
    # of 2 x 25 quantiles together, the 2 x 2 highest are dropped
    quantiles = np.sort(out.detach().numpy().reshape(len(obs), 50), axis=1)
    return torch.as_tensor(quantiles[:, :46].mean(1))


@pytest.mark.parametrize("name", WITH_Q)
def test_v_and_q_by_hand(build: Make, obs: Tensor, name: str) -> None:
    model = build(name)
    _, value = policy_and_value(model)
    with torch.no_grad():
        raw = torch.linspace(-2.0, 2.0, 6)[:, None]
        torch.testing.assert_close(value.q(obs, raw), lowest_q(name, model, obs, raw))
        mean = torch.as_tensor(model.predict(obs.numpy(), deterministic=True)[0])
        torch.testing.assert_close(value.v(obs), lowest_q(name, model, obs, mean))
    assert value.v(obs).shape == (6,)


def test_v_of_ppo_is_its_baseline_too(build: Make, obs: Tensor) -> None:
    model = build("PPO")
    _, value = policy_and_value(model)
    expected = model.policy.predict_values(obs).squeeze(1)
    assert torch.equal(value.v(obs), expected)
    assert torch.equal(value.q(obs, torch.full((6, 1), 2.0)), expected)


@pytest.mark.parametrize("name", [*WITH_Q, "PPO"])
def test_values_are_differentiable_in_the_state(build: Make, obs: Tensor, name: str) -> None:
    _, value = policy_and_value(build(name))
    leaf = obs.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value.v(leaf).sum(), leaf)
    # rows do not depend on each other, and a step along the gradient changes V by its square
    step = 1e-3
    with torch.no_grad():
        rise = value.v(obs + step * grad) - value.v(obs)
    torch.testing.assert_close(rise / step, grad.square().sum(1), rtol=0.1, atol=1e-3)


class Doubled(BaseFeaturesExtractor):
    """Features that are not the states themselves."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 3)
        self.layer = nn.Linear(3, 3)

    def forward(self, obs: Tensor) -> Tensor:
        found: Tensor = self.layer(obs)
        return found


@pytest.mark.parametrize("name", ["SAC", "TD3", "TQC"])
def test_shared_features_pass_the_gradient_in_the_state(
    build: Make, obs: Tensor, name: str
) -> None:
    """V rises along its gradient; SB3's critics themselves cut it there."""
    networks = {"net_arch": [16], "features_extractor_class": Doubled}
    model = build(name, policy_kwargs={**networks, "share_features_extractor": True})
    _, value = policy_and_value(model)
    raw = torch.zeros(6, 1)  # Q alone: V has the policy's share of the gradient beside
    leaf = obs.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value.q(leaf, raw).sum(), leaf)
    step = 1e-3
    with torch.no_grad():
        rise = value.q(obs + step * grad, raw) - value.q(obs - step * grad, raw)
    torch.testing.assert_close(rise / (2 * step), grad.square().sum(1), rtol=0.05, atol=1e-3)
    assert model.critic.share_features_extractor


@pytest.mark.parametrize("name", ["SAC", "TQC", "CrossQ", "RAMBO"])
def test_samples_of_squashed_gaussians(build: Make, obs: Tensor, name: str) -> None:
    model = build(name)
    policy, _ = policy_and_value(model)
    n = 20_000
    raw = policy.sample(obs[:1].expand(n, -1), normals(n))
    assert raw.shape == (n, 1)
    assert float(raw.abs().max()) <= 2.0
    u = torch.atanh((raw / 2).double())
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(obs[:1])
    std = float(log_std.exp())
    assert float(u.mean()) == pytest.approx(float(mean), abs=4 * std / n**0.5)
    assert float(u.std()) == pytest.approx(std, rel=4 / (2 * n) ** 0.5)


def test_td3_acts_without_noise(build: Make, obs: Tensor) -> None:
    model = build("TD3")
    policy, _ = policy_and_value(model)
    raw = policy.sample(obs, normals(len(obs)))
    expected, _ = model.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(raw, expected, rtol=1e-6)


def test_samples_of_ppo_are_clipped(build: Make, obs: Tensor) -> None:
    model = build("PPO")
    with torch.no_grad():
        model.policy.log_std.fill_(0.5)
        normal = model.policy.get_distribution(obs[:1]).distribution
        expected = float(normal.cdf(torch.tensor(2.0)) - normal.cdf(torch.tensor(-2.0)))
    policy, _ = policy_and_value(model)
    n = 20_000
    raw = policy.sample(obs[:1].expand(n, -1), normals(n))
    assert float(raw.abs().max()) == 2.0
    inside = float((raw.abs() < 2).float().mean())
    assert inside == pytest.approx(expected, abs=4 * 0.5 / n**0.5)


class NoReads(TorchDispatchMode):
    """Refuses to read a number back, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("use_sde", [False, True])
def test_ppo_samples_its_own_gaussian(build: Make, obs: Tensor, use_sde: bool) -> None:
    model = build("PPO", use_sde=use_sde)
    policy, _ = policy_and_value(model)
    noise = 0.1 * normals(len(obs))  # inside the bounds
    with torch.no_grad():
        gaussian = model.policy.get_distribution(obs).distribution
        expected = (gaussian.mean + gaussian.stddev * noise).clamp(-2.0, 2.0)
    torch.testing.assert_close(policy.sample(obs, noise), expected)
    if not use_sde:
        with NoReads():
            policy.sample(obs, noise)


class Narrow(ActorCriticPolicy):
    """A Gaussian of its own making: half the mean, a standard deviation of 0.1."""

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        mean = 0.5 * self.action_net(latent_pi)
        log_std = torch.full_like(mean, math.log(0.1))
        return self.action_dist.proba_distribution(mean, log_std)


class Shifted(ActorCriticPolicy):
    """Another distribution than its own methods give."""

    def get_distribution(self, obs: Any) -> Any:
        found = super().get_distribution(obs)
        return found.proba_distribution(found.distribution.mean + 0.7, self.log_std - 2.0)


class Squashed(ActorCriticPolicy):
    """No Gaussian, although one lies underneath."""

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        mean = self.action_net(latent_pi)
        return SquashedDiagGaussianDistribution(1).proba_distribution(mean, self.log_std)


@pytest.mark.parametrize(("policy_class", "std"), [(Narrow, 0.1), (Shifted, math.exp(-2.0))])
def test_a_policy_class_s_own_gaussian_is_sampled(
    env: Any, obs: Tensor, policy_class: type[ActorCriticPolicy], std: float
) -> None:
    model = PPO(policy_class, env, n_steps=5, batch_size=80, seed=0, device="cpu")
    policy, _ = policy_and_value(model)
    with torch.no_grad():
        mean = model.policy.get_distribution(obs).distribution.mean
    found = policy.sample(obs, normals(len(obs)))
    torch.testing.assert_close(found, mean + std * normals(len(obs)))


@pytest.mark.parametrize("shared", [True, False])
def test_ppo_with_an_extractor_of_its_own(build: Make, obs: Tensor, shared: bool) -> None:
    networks = {"net_arch": [16], "features_extractor_class": Doubled}
    model = build("PPO", policy_kwargs={**networks, "share_features_extractor": shared})
    policy, _ = policy_and_value(model)
    with torch.no_grad():
        mean = model.policy.get_distribution(obs).distribution.mean
    torch.testing.assert_close(policy.sample(obs, torch.zeros(len(obs), 1)), mean)


def test_a_policy_class_s_own_distribution_is_refused(env: Any, obs: Tensor) -> None:
    model = PPO(Squashed, env, n_steps=5, batch_size=80, seed=0, device="cpu")
    policy, _ = policy_and_value(model)
    with pytest.raises(ValueError, match=r"Squashed acts by a SquashedDiagGaussianDistribution"):
        policy.sample(obs, normals(len(obs)))


def test_equal_noise_gives_equal_samples(build: Make, obs: Tensor) -> None:
    policy, _ = policy_and_value(build("SAC"))
    one, two, other = (policy.sample(obs, normals(len(obs), seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert not one.requires_grad


def test_values_stay_true_while_the_algorithm_learns(build: Make, obs: Tensor) -> None:
    model = build("SAC")
    _, value = policy_and_value(model)
    before = value.v(obs)
    model.learn(total_timesteps=160)
    model.policy.set_training_mode(False)
    assert not torch.equal(value.v(obs), before)
    mean = torch.as_tensor(model.predict(obs.numpy(), deterministic=True)[0])
    torch.testing.assert_close(value.v(obs), lowest_q("SAC", model, obs, mean))


def test_an_algorithm_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DQN has no value function .* use SAC, TD3, TQC"):
        policy_and_value(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu"))


@pytest.mark.parametrize("name", ["SAC", "TQC"])
def test_noise_that_depends_on_the_state_has_its_own_width(
    build: Make, obs: Tensor, name: str
) -> None:
    """gSDE: the width of a = mean + W phi(s) over draws of W is what one draw of ours has."""
    model = build(name, use_sde=True)
    with torch.no_grad():
        model.actor.log_std.uniform_(-3.0, 0.0)
        mean, log_std, latent = model.actor.get_action_dist_params(obs)
        std = ((latent["latent_sde"] ** 2) @ log_std.exp() ** 2).sqrt()
        policy, _ = policy_and_value(model)
        expected = 2.0 * torch.tanh(mean + std * normals(6))
        torch.testing.assert_close(policy.sample(obs, normals(6)), expected, atol=1e-4, rtol=0.0)


def test_heads_of_another_kind_are_asked_as_they_are(build: Make, obs: Tensor) -> None:
    """The faster way is for SB3's own layers; a head put in their place is called."""
    model = build("RAMBO")
    actor = model.policy.actor
    mean, _, _ = actor.get_action_dist_params(obs)
    actor.mu = torch.nn.Sequential(actor.mu, torch.nn.Hardtanh(-0.01, 0.01))
    policy, _ = policy_and_value(model)
    assert torch.allclose(policy.mean_action(obs), torch.tanh(mean.clamp(-0.01, 0.01)))
