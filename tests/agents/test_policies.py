"""RAMBO's networks against plain ``nn.Sequential`` ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents.policies import RAMBOPolicy, StackedCritic, Standardise, add_affine, affine

OBS_SPACE = Box(-np.inf, np.inf, (3,), np.float32)
ACTION_SPACE = Box(-1.0, 1.0, (2,), np.float32)


def extractor() -> Standardise:
    return Standardise(OBS_SPACE, [1.0, 2.0, 3.0], [2.0, 0.0, 0.5])


def make_critic(
    layer_norm: bool = False, n_critics: int = 2, net_arch: Sequence[int] = (8, 6)
) -> StackedCritic:
    torch.manual_seed(0)
    networks = {"n_critics": n_critics, "layer_norm": layer_norm}
    return StackedCritic(OBS_SPACE, ACTION_SPACE, list(net_arch), extractor(), 3, **networks)


def batch(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(n, 3, generator=generator)
    return obs, 2 * torch.rand(n, 2, generator=generator) - 1


def as_sequential(critic: StackedCritic, c: int) -> nn.Sequential:
    """Critic c layer by layer, in torch's own modules."""
    layers: list[nn.Module] = []
    for i, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[c].T.detach(), bias[c, 0].detach()
        layers.append(linear)
        if i == len(critic.weights) - 1:
            break
        if critic.layer_norm:
            norm = nn.LayerNorm(weight.shape[2])
            norm.weight.data = critic.gains[i][c, 0].detach()
            norm.bias.data = critic.shifts[i][c, 0].detach()
            layers.append(norm)
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def test_standardisation_by_hand() -> None:
    raw = torch.tensor([[3.0, 5.0, 2.0]])
    # a component that never changes is only shifted
    assert torch.equal(extractor()(raw), torch.tensor([[1.0, 3.0, -2.0]]))
    assert list(extractor().parameters()) == []


@pytest.mark.parametrize("halves", [False, True])
def test_an_affine_layer_is_torch_s(halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.policies.in_halves", lambda x: halves)
    layer, x = nn.Linear(3, 7), torch.randn(10, 3)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert torch.allclose(affine(x, (weight, bias)), layer(x), atol=1e-6)
    out = bias.expand(10, -1).clone()
    found = add_affine(out, (weight, bias), x)
    assert torch.allclose(out, layer(x), atol=1e-6)
    assert found.data_ptr() == out.data_ptr()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("net_arch", [[8, 6], [8, 1, 8], [1]])
def test_stacked_critics_are_as_many_single_ones(layer_norm: bool, net_arch: list[int]) -> None:
    critic = make_critic(layer_norm, n_critics=3, net_arch=net_arch)
    if layer_norm:
        with torch.no_grad():  # away from ones and zeros
            for parameter in (*critic.gains, *critic.shifts):
                parameter.add_(torch.rand_like(parameter))
    obs, action = batch()
    features = torch.cat([extractor()(obs), action], dim=1)
    q = critic.q_values(obs, action)
    assert q.shape == (3, 5)
    for c in range(3):
        torch.testing.assert_close(q[c], as_sequential(critic, c)(features).squeeze(-1))
    assert not torch.allclose(q[0], q[1])


def test_sb3_s_form_of_the_critics() -> None:
    critic = make_critic()
    obs, action = batch()
    both = critic(obs, action)
    assert [tuple(q.shape) for q in both] == [(5, 1), (5, 1)]
    assert torch.equal(torch.cat(both, 1).T, critic.q_values(obs, action))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_frozen_critics_pass_gradients_to_the_action_alone(layer_norm: bool) -> None:
    critic = make_critic(layer_norm)
    obs, action = batch()
    grads = []
    for frozen in (True, False):
        leaf = action.clone().requires_grad_()
        q = critic.q_values(obs, leaf, frozen=frozen)
        q.sum().backward()
        assert leaf.grad is not None
        grads.append((q.detach(), leaf.grad))
        if frozen:
            assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    torch.testing.assert_close(grads[0], grads[1])


class Learned(BaseFeaturesExtractor):
    """One trainable layer."""

    def __init__(self, observation_space: Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layer = nn.Linear(observation_space.shape[0], 4)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(observations))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_critics_train_a_features_extractor_of_their_own_alone(
    shared: bool, frozen: bool
) -> None:
    """One that they share with the actor would learn to raise Q; states have gradients anyway."""
    policy = make_policy(features_extractor_class=Learned, share_features_extractor=shared)
    obs, action = batch()
    leaf = obs.clone().requires_grad_()
    policy.critic.q_values(leaf, action, frozen=frozen).sum().backward()
    extractor = policy.critic.features_extractor
    assert (extractor is policy.actor.features_extractor) == shared
    trained = {p.grad is not None for p in extractor.parameters()}
    assert trained == {not (shared or frozen)}
    assert leaf.grad is not None
    assert bool((leaf.grad != 0).any())


def test_initial_weights_are_as_wide_as_torch_s_own() -> None:
    torch.manual_seed(0)
    critic = StackedCritic(OBS_SPACE, ACTION_SPACE, [400, 400], extractor(), 3)
    for weight, fan_in in zip(critic.weights, [5, 400, 400], strict=True):
        assert float(weight.detach().abs().max()) == pytest.approx(fan_in**-0.5, rel=0.05)


def make_policy(**kwargs: Any) -> RAMBOPolicy:
    torch.manual_seed(0)
    return RAMBOPolicy(OBS_SPACE, ACTION_SPACE, lambda _: 3e-4, net_arch=[8, 8], **kwargs)


def test_target_starts_as_a_copy_of_the_critic() -> None:
    policy = make_policy(layer_norm=True, n_critics=4)
    assert policy.critic.n_critics == 4
    assert policy.critic.layer_norm
    pairs = zip(policy.critic.parameters(), policy.critic_target.parameters(), strict=True)
    for online, target in pairs:
        assert online is not target
        assert torch.equal(online, target)


def test_the_optimisers_hold_their_own_network_s_parameters() -> None:
    policy = make_policy()
    for network in (policy.actor, policy.critic):
        held = [p for group in network.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in network.parameters()}


def test_a_policy_is_saved_with_its_settings(tmp_path: Any) -> None:
    policy = make_policy(
        layer_norm=True,
        greedy_step=0.1,
        features_extractor_class=Standardise,
        features_extractor_kwargs={"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 3.0]},
    )
    policy.save(tmp_path / "policy.pt")
    loaded = RAMBOPolicy.load(tmp_path / "policy.pt")
    assert loaded.critic.layer_norm
    obs, action = batch()
    assert torch.equal(loaded.critic.q_values(obs, action), policy.critic.q_values(obs, action))
    assert torch.equal(loaded.actor(obs, deterministic=True), policy.actor(obs, deterministic=True))
    assert torch.equal(loaded.deterministic_action(obs), policy.deterministic_action(obs))
    assert not torch.equal(loaded.deterministic_action(obs), loaded.actor(obs, deterministic=True))


@pytest.mark.parametrize("n_critics", [1, 3])
def test_a_greedy_step_is_one_of_the_stated_length_up_the_lowest_q(n_critics: int) -> None:
    policy = make_policy(n_critics=n_critics, layer_norm=True)
    obs, _ = batch(50)
    mean = policy.actor(obs, deterministic=True).detach()
    assert torch.equal(policy.deterministic_action(obs), mean)

    policy.greedy_step = 1e-3
    with torch.no_grad():  # as SB3's `predict` calls it
        step = policy.deterministic_action(obs) - mean
    lengths = step.square().mean(1).sqrt()
    torch.testing.assert_close(lengths, torch.full((50,), 1e-3), rtol=1e-3, atol=0)
    for row in range(50):  # by differences, along the step and across it
        along = step[row] / step[row].norm()
        across = torch.stack([-along[1], along[0]])
        slopes = []
        for direction in (along, across):
            ends = mean[row] + 1e-3 * torch.stack([direction, -direction])
            q = policy.critic.q_values(obs[[row, row]], ends).amin(0)
            slopes.append(float((q[0] - q[1]).detach()))
        assert slopes[0] > 0
        assert abs(slopes[1]) < 0.05 * slopes[0]


def test_a_greedy_step_is_taken_in_inference_mode_too() -> None:
    policy = make_policy(greedy_step=0.1)
    obs = batch()[0].numpy()
    expected = policy.predict(obs, deterministic=True)[0]
    with torch.inference_mode():
        assert np.array_equal(policy.predict(obs, deterministic=True)[0], expected)
    assert not np.array_equal(expected, make_policy().predict(obs, deterministic=True)[0])


def test_a_greedy_step_goes_as_far_as_q_rises() -> None:
    policy = make_policy(greedy_step=0.2)
    with torch.no_grad():
        policy.actor.mu.weight *= 4.0
        for parameter in policy.critic.parameters():
            parameter.zero_()
        first, second, last = policy.critic.weights
        for unit, (component, sign) in enumerate(((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0))):
            first[:, 3 + component, unit] = sign
            second[:, unit, unit] = 1.0
            last[:, unit] = -1.0  # Q = -|a_0| - |a_1|, by two ReLUs each
    obs, _ = batch(200)
    mean = policy.actor(obs, deterministic=True).detach()
    found = policy.deterministic_action(obs)
    gone = (found - mean).square().mean(1).sqrt() / 0.2
    for length in gone.tolist():
        assert min(abs(length - part) for part in (0.0, 0.25, 0.5, 1.0)) < 1e-5
    assert {round(length, 2) for length in gone.tolist()} == {0.0, 0.25, 0.5, 1.0}
    for part in (0.0, 0.25, 0.5, 1.0):  # nowhere on the way is Q higher
        way = mean - part * 0.2 * mean.sign()
        assert bool((found.abs().sum(1) <= way.abs().sum(1) + 1e-6).all())


def test_a_greedy_step_ends_at_the_bounds_and_concerns_no_drawn_action() -> None:
    policies = [make_policy(greedy_step=step) for step in (0.0, 5.0)]
    obs = batch()[0].numpy()
    deployed = policies[1].predict(obs, deterministic=True)[0]
    assert np.abs(deployed).max() == 1.0
    drawn = []
    for policy in policies:
        torch.manual_seed(3)
        drawn.append(policy.predict(obs, deterministic=False)[0])
    assert np.array_equal(*drawn)
    assert all(p.grad is None for p in policies[1].parameters())


@pytest.mark.parametrize("step", [-0.1, np.nan, "far"])
def test_a_greedy_step_is_a_length(step: Any) -> None:
    with pytest.raises(ValueError, match=r"greedy_step = .* must be a finite number of at least"):
        make_policy(greedy_step=step)


def test_what_hardly_varies_is_not_blown_up() -> None:
    """A constant with a rounding error in it: deviations of 1e-9 are no unit of a state."""
    space = Box(-10.0, 10.0, (3,))
    layer = Standardise(space, [1.0, 1.0, 1.0], [0.0, 1e-9, 0.5])
    found = layer(torch.tensor([[2.0, 1.00001, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1e-5, 2.0]]), rtol=0, atol=1e-6)
