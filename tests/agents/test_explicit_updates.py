"""The written-out gradients against autograd's: the same losses and parameters, update for update.

Both get the same batches and the same noise; :func:`agents.updates.sac_update` is the reference.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import Actor
from torch import Tensor, nn

from agents.buffers import Batch
from agents.explicit_updates import ExplicitSACUpdate, is_explicit
from agents.policies import RAMBOPolicy, StackedCritic, Standardise
from agents.updates import METRICS, SACParts, sac_update

S, A, BATCH, UPDATES = 5, 2, 64, 100
OBSERVATIONS = Box(-10.0, 10.0, (S,))
ACTIONS = Box(-1.0, 1.0, (A,))


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products added to their biases in both ways, a GPU's on the CPU too."""
    monkeypatch.setattr("adv_worldmodel.products.comes_early", lambda output: request.param)


def make_parts(
    *,
    learned_alpha: bool = True,
    entropy_in_target: bool = True,
    actor_frozen: bool = False,
    cloning_weight: float = 0.0,
    n_real: int = 0,
    **kwargs: Any,
) -> SACParts:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "net_arch": [24, 16],
        "features_extractor_class": Standardise,
        "features_extractor_kwargs": {"mean": [0.5] * S, "std": [2.0] * S},
        "optimizer_kwargs": {"fused": True},
    }
    policy = RAMBOPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **{**settings, **kwargs})
    log_alpha = torch.zeros(1, requires_grad=True) if learned_alpha else None
    optimizer = None if log_alpha is None else torch.optim.Adam([log_alpha], 1e-3, fused=True)
    return SACParts(
        policy.actor, policy.critic, policy.critic_target, log_alpha,
        torch.full((1,), 0.2), optimizer, gamma=0.9, tau=0.05, target_entropy=-1.0,
        entropy_in_target=entropy_in_target, actor_frozen=actor_frozen,
        cloning_weight=cloning_weight, n_real=n_real,
    )  # fmt: skip


def make_batch(generator: torch.Generator) -> tuple[Batch, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    continues = (torch.rand(BATCH, generator=generator) > 0.2).float()
    batch = Batch(
        normal(BATCH, S), torch.tanh(normal(BATCH, A)), normal(BATCH), normal(BATCH, S), continues
    )
    return batch, normal(2, BATCH, A)


@pytest.mark.parametrize(
    ("learned_alpha", "settings"),
    [
        (True, {}),
        (False, {}),
        (True, {"n_critics": 1}),
        (True, {"n_critics": 5, "net_arch": [16, 8, 16]}),
        (True, {"net_arch": [16]}),
        (True, {"entropy_in_target": False}),
        (True, {"actor_frozen": True}),
        (True, {"layer_norm": True}),
        (True, {"layer_norm": True, "n_critics": 3, "net_arch": [16, 8, 16]}),
        (True, {"cloning_weight": 0.3, "n_real": 20}),
        (False, {"cloning_weight": 0.3, "n_real": BATCH, "layer_norm": True}),
        (True, {"cloning_weight": 0.3}),
    ],
    ids=[
        "learned-alpha",
        "fixed-alpha",
        "one-critic",
        "five-deep-critics",
        "one-hidden-layer",
        "plain-value",
        "actor-frozen",
        "layer-norm",
        "deep-layer-norm",
        "cloning",
        "cloning-layer-norm",
        "no-data-to-clone",
    ],
)
def test_losses_and_parameters_are_autograd_s(
    learned_alpha: bool, settings: dict[str, Any]
) -> None:
    reference, fast = (make_parts(learned_alpha=learned_alpha, **settings) for _ in range(2))
    start = [p.detach().clone() for p in fast.online]
    update = ExplicitSACUpdate(fast, BATCH)
    generator = torch.Generator().manual_seed(1)
    for _ in range(UPDATES):
        batch, noise = make_batch(generator)
        expected = sac_update(reference, batch, noise[0], noise[1])
        torch.testing.assert_close(update(batch, noise), expected, rtol=1e-3, atol=1e-4)
    moved = max(
        float((p.detach() - q).abs().max()) for p, q in zip(fast.online, start, strict=True)
    )
    assert moved > 0.02  # a hundred steps of 1e-3: far above the tolerance below
    for name in ("online", "target", "actor_parameters"):
        pairs = zip(getattr(fast, name), getattr(reference, name), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)
    if settings.get("actor_frozen"):
        untouched = make_parts().actor_parameters
        assert all(map(torch.equal, fast.actor_parameters, untouched))
        assert float(fast.log_alpha) == 0.0  # type: ignore[arg-type]
    elif learned_alpha:
        assert abs(float(fast.log_alpha.detach())) > 0.01  # type: ignore[union-attr]
        torch.testing.assert_close(fast.log_alpha, reference.log_alpha, rtol=0, atol=1e-4)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("limited", [True, False])
def test_alpha_rises_no_further_than_its_limit(explicit: bool, limited: bool) -> None:
    """The target entropy is above that of any policy, so that alpha would rise for ever."""
    limit = torch.zeros(1) if limited else None
    parts = dataclasses.replace(make_parts(), target_entropy=5.0, log_alpha_limit=limit)
    update = ExplicitSACUpdate(parts, BATCH) if explicit else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        batch, noise = make_batch(generator)
        if update is None:
            sac_update(parts, batch, noise[0], noise[1])
        else:
            update(batch, noise)
    assert parts.log_alpha is not None
    assert (float(parts.log_alpha.detach()) > 0.0) != limited


def gradients(parts: SACParts) -> list[Tensor]:
    found = [p.grad for p in [*parts.online, *parts.actor_parameters]]
    assert all(grad is not None for grad in found)
    return [grad.clone() for grad in found if grad is not None]


@pytest.mark.parametrize("settings", [{}, {"cloning_weight": 0.5, "n_real": 30}])
def test_gradients_are_autograd_s_where_the_deviation_is_clipped(settings: dict[str, Any]) -> None:
    """Log deviations of 3 are clipped to 2: no gradient reaches them."""
    reference, fast = make_parts(**settings), make_parts(**settings)
    for parts in (reference, fast):
        with torch.no_grad():
            assert isinstance(parts.actor.log_std, nn.Linear)
            parts.actor.log_std.bias[0] = 30.0
    batch, noise = make_batch(torch.Generator().manual_seed(2))
    sac_update(reference, batch, noise[0], noise[1])
    ExplicitSACUpdate(fast, BATCH)(batch, noise)
    for mine, theirs in zip(gradients(fast), gradients(reference), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert fast.actor.log_std.bias.grad is not None
    assert fast.actor.log_std.bias.grad[0] == 0.0
    assert fast.actor.log_std.bias.grad[1] != 0.0


@pytest.mark.parametrize("layer_norm", [False, True])
def test_both_forms_of_the_actions_gradient_agree(layer_norm: bool) -> None:
    """The CPU's and the GPU's."""
    critics = ExplicitSACUpdate(make_parts(n_critics=3, layer_norm=layer_norm), BATCH).critics
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        critics.forward(torch.randn(BATCH, S + A, generator=generator), critics.prepare())
        lowest = torch.randint(3, (BATCH,), generator=generator)
        forms = (critics.action_grad_by_critic, critics.action_grad_at_once)
        half, once, twice = (critics.last_weights(scale) for scale in (-0.5, 1.0, 2.0))
        torch.testing.assert_close(*(form(lowest, half, A) for form in forms))
        doubled = critics.action_grad(lowest, twice, A)
        torch.testing.assert_close(doubled, 2.0 * critics.action_grad(lowest, once, A))


def test_the_metrics_have_their_names() -> None:
    parts = make_parts(learned_alpha=False)
    batch, noise = make_batch(torch.Generator().manual_seed(3))
    q = copy.deepcopy(parts.critic).q_values(batch.obs, batch.action)
    found = dict(zip(METRICS, ExplicitSACUpdate(parts, BATCH)(batch, noise), strict=True))
    assert float(found["ent_coef"]) == pytest.approx(0.2)
    assert float(found["q_mean"]) == pytest.approx(float(q.detach().mean()), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_fn": nn.Tanh},
        {"features_extractor_class": FlattenExtractor, "features_extractor_kwargs": {}},
        {"use_sde": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_networks_are_left_to_autograd(settings: dict[str, Any]) -> None:
    assert is_explicit(make_parts())
    assert not is_explicit(make_parts(**settings))


class OtherActor(Actor):
    """May compute anything."""


class OtherCritic(StackedCritic):
    """Likewise."""


class OtherLinear(nn.Linear):
    """Likewise."""


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: setattr(parts.actor, "__class__", OtherActor),
        lambda parts: setattr(parts.critic, "__class__", OtherCritic),
        lambda parts: setattr(parts.critic_target, "__class__", OtherCritic),
        lambda parts: setattr(parts.actor.latent_pi[0], "__class__", OtherLinear),
        lambda parts: setattr(parts.actor.mu, "__class__", OtherLinear),
        lambda parts: nn.utils.parametrizations.spectral_norm(parts.actor.latent_pi[0]),
        lambda parts: nn.utils.spectral_norm(parts.actor.latent_pi[0]),
        lambda parts: parts.actor.mu.register_forward_hook(lambda *_: None),
        lambda parts: parts.critic.weights[0].register_hook(lambda grad: grad.clamp(-1.0, 1.0)),
        lambda parts: parts.actor.latent_pi.requires_grad_(False),
        lambda parts: parts.critic.weights[0].requires_grad_(False),
    ],
    ids=[
        "actor", "critic", "target", "layer", "last-layer", "parametrised", "recomputed",
        "hooked", "clipped", "frozen-actor", "frozen-critic",
    ],
)  # fmt: skip
def test_subclasses_and_frozen_parameters_are_left_to_autograd(
    change: Callable[[SACParts], Any],
) -> None:
    parts = make_parts()
    change(parts)
    assert not is_explicit(parts)
