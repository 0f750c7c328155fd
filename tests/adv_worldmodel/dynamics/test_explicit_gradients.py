"""The written-out gradients against autograd's, of the ensemble and of the adversarial update.

:func:`model_gradient` is the reference: it says what is computed.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics import Adversary, AdversarySettings, WorldModel, make_termination
from adv_worldmodel.dynamics.ensemble import INITIAL_MIN_LOGVAR, Ensemble, MemberDraw
from adv_worldmodel.dynamics.explicit_gradients import ExplicitEnsemble, ExplicitModelGradient
from adv_worldmodel.dynamics.likelihood import logvar_limits_loss
from adv_worldmodel.dynamics.model_gradient import Score, model_gradient

S, A, BATCH, UPDATES = 2, 1, 19, 100  # 19 rows leave two of 3 x 7 places empty


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"], autouse=True)
def device_s_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does in another way, on the CPU too: biases of products, and the swish."""
    monkeypatch.setattr("adv_worldmodel.products.comes_early", lambda output: request.param)
    of_swish = "adv_worldmodel.dynamics.explicit_gradients.swish_is_one_kernel"
    monkeypatch.setattr(of_swish, lambda x: request.param)


class Slope:
    """Values that tell all states and actions apart."""

    def v(self, obs: Tensor) -> Tensor:
        return obs[:, 0] - 0.3 * obs[:, 1].square()

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        return 0.5 * obs[:, 1] + action[:, 0]


class Noisy:
    """Actions that reach beyond their bounds of 1."""

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return 0.8 * noise + 0.1 * obs[:, :1]


def make_model(hidden: tuple[int, ...] = (8, 6), n_members: int = 3) -> WorldModel:
    generator = torch.Generator().manual_seed(0)
    ensemble = Ensemble(n_members, S + A, S + 1, hidden, generator)
    spaces = Box(-5.0, 5.0, (S,), np.float32), Box(-1.0, 1.0, (A,), np.float32)
    rule = make_termination(lambda obs, action, next_obs: next_obs[:, 0] > 1.0, None)
    return WorldModel(ensemble, rule, *spaces)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(ensemble: Ensemble) -> list[Tensor]:
    found = [p.grad for p in ensemble.parameters()]
    assert all(grad is not None for grad in found)
    return [grad.clone() for grad in found if grad is not None]


def assert_same(ours: list[Tensor], theirs: list[Tensor], **tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


@pytest.mark.parametrize("hidden", [(), (7,), (8, 5, 6)])
@pytest.mark.parametrize("spread", [1.0, 30.0])  # the swish's ends, log-variances beyond limits
@pytest.mark.parametrize("held", [None, torch.tensor([False, True, False])])
def test_ensemble_forward_and_back(
    hidden: tuple[int, ...], spread: float, held: Tensor | None
) -> None:
    ensemble = make_model(hidden).double().ensemble
    ensemble.held = held
    with torch.no_grad():
        for bias in ensemble.biases:
            bias.copy_(spread * normal(*bias.shape))
    x = normal(3, 11, S + A, seed=2)
    weights = normal(3, 11, S + 1, seed=3), normal(3, 11, S + 1, seed=4)
    mean, logvar = ensemble(x)
    loss = (weights[0] * mean + weights[1] * logvar).sum() + logvar_limits_loss(ensemble)
    loss.backward()
    expected = gradients(ensemble)
    assert ensemble.min_logvar.grad is not None
    at_rest = torch.zeros(S + 1, dtype=torch.bool) if held is None else held
    assert torch.equal(ensemble.min_logvar.grad == 0.0, at_rest)

    explicit = ExplicitEnsemble(ensemble, 11)
    pull = 1.0 + torch.rand_like(mean[:, :, 0].detach())
    for _ in range(2):  # kept memory does not add up
        with torch.no_grad():
            found = explicit.forward(x, explicit.prepare())
            assert_same(list(found), [mean, logvar])
            explicit.keep_slopes(*(weight / pull.unsqueeze(-1) for weight in weights))
            explicit.backward(pull)
        assert_same(gradients(ensemble), expected)


@pytest.mark.parametrize("score", ["mixture", "member"])
@pytest.mark.parametrize(
    "settings", [{}, {"baseline": False, "normalise": False}], ids=["paper", "plain"]
)
@pytest.mark.parametrize("weight", [0.7, torch.tensor(0.2, dtype=torch.float64)])
def test_one_update_s_gradients(
    score: Score, settings: dict[str, Any], weight: float | Tensor
) -> None:
    model = make_model().double()
    obs, action = normal(BATCH, S, seed=2), 2.0 * normal(BATCH, A, seed=3)
    noise, real = normal(BATCH, S + 1, seed=4), (normal(BATCH, 3, seed=5), normal(BATCH, 3, seed=6))
    members = MemberDraw.draw(BATCH, 3, torch.Generator().manual_seed(0))
    chosen = AdversarySettings(score=score, batch_size=BATCH, **settings)
    step, supervised = model_gradient(
        model, obs, action, Slope(), 0.9, members, noise, chosen, real
    )
    (weight * step.loss + supervised).backward()
    expected = gradients(model.ensemble)
    assert 0 < int(step.terminated.sum()) < BATCH

    explicit = ExplicitModelGradient(model, chosen, 0.9)
    for _ in range(2):
        found = explicit(obs, action, Slope(), members, noise, real, weight)
        assert_same([*found[0][:3], found[1]], [*step[:3], supervised])
        assert torch.equal(found[0].terminated, step.terminated)
        assert_same(gradients(model.ensemble), expected)


@pytest.mark.parametrize("score", ["mixture", "member"])
@pytest.mark.parametrize("weight", [0.3, "auto"])
@pytest.mark.parametrize("constant", [False, True])
def test_hundred_updates(score: Score, weight: Any, constant: bool) -> None:
    """With a constant dimension too, whose log-variance has a fixed lower limit."""
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(300, S)), rng.uniform(-1, 1, (300, A))
    dataset = OfflineDataset.from_arrays(
        states,
        actions,
        states[:, 0],
        0.9 * states + 0.1 * actions + 0.1 * rng.normal(size=(300, S)),
        np.zeros(300, bool),
        action_space=Box(-1.0, 1.0, (A,), np.float32),
    )
    model = make_model()
    if constant:
        model.ensemble.held = torch.tensor([False, False, True])
    settings = AdversarySettings(weight=weight, score=score, batch_size=BATCH, learning_rate=1e-3)
    fast, plain = (Adversary(copy.deepcopy(model), dataset, settings, seed=0) for _ in range(2))
    assert fast.explicit is not None
    plain.explicit = None
    found, expected = (a.run(UPDATES, Noisy(), Slope()) for a in (fast, plain))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for mine, other, start in zip(
        fast.parameters, plain.parameters, model.ensemble.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-4)
        assert float((mine - start).detach().abs().max()) > 0.01  # it went somewhere
    if constant:
        limits = (a.model.ensemble.min_logvar[-1] for a in (fast, plain))
        assert [float(x) for x in limits] == [INITIAL_MIN_LOGVAR] * 2
    torch.testing.assert_close(fast.obs, plain.obs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_a_known_reward_s_precision_is_no_matter(score: Score) -> None:
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(30, S)), rng.uniform(-1, 1, (30, A))
    dataset = OfflineDataset.from_arrays(
        states, actions, states[:, 0], states, np.zeros(30, bool),
        action_space=Box(-1.0, 1.0, (A,), np.float32),
    )  # fmt: skip
    settings = AdversarySettings(score=score, batch_size=BATCH)
    found = []
    for dtype in (torch.float32, torch.float64):
        ensemble = Ensemble(3, S + A, S, (8,), torch.Generator().manual_seed(0))
        spaces = Box(-5.0, 5.0, (S,), np.float32), Box(-1.0, 1.0, (A,), np.float32)
        model = WorldModel(
            ensemble, make_termination("never", None), *spaces,
            reward_function=lambda obs, action, next_obs, to=dtype: next_obs[:, 0].to(to),
        )  # fmt: skip
        adversary = Adversary(model, dataset, settings, seed=0)
        found.append(adversary.run(3, Noisy(), Slope()))
        found.append([p.detach().clone() for p in adversary.parameters])
    assert found[0] == found[2]
    assert_same(found[1], found[3], rtol=0, atol=0)


def test_the_estimator_through_the_sample_takes_autograd_s() -> None:
    states = np.zeros((20, S))
    dataset = OfflineDataset.from_arrays(
        states, np.zeros((20, A)), states[:, 0], states, np.zeros(20, bool),
        action_space=Box(-1.0, 1.0, (A,), np.float32),
    )  # fmt: skip
    settings = AdversarySettings(score="pathwise", batch_size=BATCH)
    assert Adversary(make_model(), dataset, settings).explicit is None
