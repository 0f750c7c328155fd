"""The dual weight: which way it moves, how fast, how far, and what it holds the model to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics import Adversary, AdversarySettings
from adv_worldmodel.dynamics.constraint import LEAST, RATE, START, DualWeight
from adv_worldmodel.dynamics.ensemble import (
    INITIAL_MIN_LOGVAR,
    Ensemble,
    gaussian_log_density,
)
from adv_worldmodel.dynamics.fitting import FitSettings, fit_world_model
from adv_worldmodel.dynamics.likelihood import mean_nll, supervised_loss

#: of a data set of three rows, and a batch whose mean is 2
FIT_NLL, BATCH = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 1])


def test_lambda_grows_below_the_bound_and_shrinks_above_it() -> None:
    dual = DualWeight(FIT_NLL, xi=0.5, largest=1.0)
    assert float(dual.weight) == pytest.approx(START)
    for _ in range(100):
        dual.update(2.0 + torch.tensor(0.0), BATCH)
    grown = float(dual.weight)
    assert grown == pytest.approx(START * math.exp(100 * RATE), rel=1e-3)
    for _ in range(1000):
        dual.update(2.0 + torch.tensor(3.0), BATCH)  # excess 3, when the mean has got there
    assert float(dual.excess) == pytest.approx(3.0, rel=1e-3)
    assert float(dual.weight) < 0.5 * grown


def test_what_the_model_has_gained_is_not_the_adversary_s_to_spend() -> None:
    """A fit stopped early gains two nats; half a nat back is more than the bound."""
    dual = DualWeight(FIT_NLL, xi=0.25, largest=1.0)
    for _ in range(10_000):
        dual.update(2.0 + torch.tensor(-2.0), BATCH)
    assert float(dual.best) == pytest.approx(-2.0, abs=1e-3)
    before = float(dual.weight)
    for _ in range(1000):
        dual.update(2.0 + torch.tensor(-1.5), BATCH)
    assert float(dual.excess) == pytest.approx(0.5, rel=1e-2)
    assert float(dual.best) == pytest.approx(-2.0, abs=1e-3)
    assert float(dual.weight) < 0.5 * before


def test_the_noise_of_minibatches_does_not_count_as_excess() -> None:
    """With a tenth of it as xi, lambda goes on growing while the mean stands still."""
    generator = torch.Generator().manual_seed(0)
    dual = DualWeight(FIT_NLL, xi=0.1, largest=1e9)
    for noise in torch.randn(10_000, generator=generator):
        dual.update(2.0 + noise, BATCH)
    assert float(dual.log_weight) > math.log(START) + 0.3 * 10_000 * RATE


def test_lambda_s_speed_and_size_are_bounded() -> None:
    dual = DualWeight(FIT_NLL, xi=0.1, largest=0.01)
    last = float(dual.log_weight)
    for _ in range(10_000):
        dual.update(2.0 + torch.tensor(0.0), BATCH)
        now = float(dual.log_weight)
        assert now - last <= RATE * 1.01
        last = now
    assert float(dual.weight) == pytest.approx(0.01)
    dual.log_weight.fill_(last := math.log(LEAST) + 5.5 * RATE)
    for _ in range(10):
        dual.update(2.0 + torch.tensor(1e5), BATCH)  # a million times the bound
        now = float(dual.log_weight)
        assert last - now <= RATE * 1.01
        last = now
    assert float(dual.weight) == pytest.approx(LEAST)


def test_nll_behind_the_supervised_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    ensemble = Ensemble(3, 4, 2, (8,), generator)
    x, y = torch.randn(50, 4, generator=generator), torch.randn(50, 2, generator=generator)
    mean, logvar = ensemble(x)
    by_hand = -gaussian_log_density(y, mean, logvar).mean()
    torch.testing.assert_close(
        mean_nll(ensemble, supervised_loss(ensemble, mean, logvar, y)), by_hand
    )


class Greedy:
    """V(s) = s, and actions anywhere."""

    def v(self, obs: Tensor) -> Tensor:
        return obs[:, 0]

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        return obs[:, 0]

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return 2.0 * torch.special.ndtr(noise) - 1.0


def bandit() -> OfflineDataset:
    """s' = a + noise for a in [-1, 1]: everywhere data, so that lowering s' costs likelihood."""
    rng = np.random.default_rng(0)
    s, a = rng.uniform(-1, 1, (2000, 1)), rng.uniform(-1, 1, (2000, 1))
    successor = a + 0.1 * rng.normal(size=(2000, 1))
    space = Box(-1.0, 1.0, (1,), np.float32)
    return OfflineDataset.from_arrays(
        s, a, s[:, 0], successor, np.zeros(2000, bool), action_space=space
    )


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return bandit()


def adversary_of(dataset: OfflineDataset, **settings: float | str) -> Adversary:
    fit = FitSettings(
        n_networks=2, n_elites=2, hidden_sizes=(32, 32), learning_rate=3e-3, patience=1000,
        max_steps=600, holdout=200,
    )  # fmt: skip
    known = {"reward_function": lambda obs, action, next_obs: obs[:, 0]}
    model = fit_world_model(dataset, fit, termination="never", device="cpu", **known)
    return Adversary(model, dataset, AdversarySettings(learning_rate=1e-3, **settings), seed=0)  # type: ignore[arg-type]


def data_nll(adversary: Adversary) -> float:
    """Mean over the training rows (nats per transition)."""
    return float(adversary.nll_by_row()[adversary.train_rows].mean())


def test_the_likelihood_stays_within_the_bound(dataset: OfflineDataset) -> None:
    """A weight of 100 breaks it; a dual weight, though it may rise as far, ends inside."""
    xi, foe = 0.2, Greedy()
    free = adversary_of(dataset, weight=100.0)
    fit_nll = data_nll(free)
    free.run(1500, foe, foe)
    assert data_nll(free) - fit_nll > 2 * xi
    bound = adversary_of(dataset, weight="auto", xi=xi, max_weight=100.0)
    assert bound.dual is not None
    bound.dual.log_weight.fill_(2.0)  # a factor e per 1000 updates from 3e-4 would take long
    for _ in range(4):
        metrics = bound.run(1000, foe, foe)
    assert data_nll(bound) - fit_nll < 1.5 * xi
    assert metrics["excess_nll"] == pytest.approx(xi, abs=0.5 * xi)
    assert metrics["weight"] == pytest.approx(float(bound.dual.weight))
    assert 1.0 < metrics["weight"] < 50.0


def constant_beside(data: OfflineDataset) -> OfflineDataset:
    """The same data with a second dimension of the state, always 0.37."""
    states, successors = (
        np.concatenate([rows, np.full_like(rows, 0.37)], axis=1)
        for rows in (data.observations, data.next_observations)
    )
    return OfflineDataset.from_arrays(
        states, data.actions, data.rewards, successors, data.terminations,
        action_space=data.action_space,
    )  # fmt: skip


@pytest.mark.parametrize("score", ["member", "pathwise"])
def test_what_is_constant_gains_no_likelihood_for_ever(dataset: OfflineDataset, score: str) -> None:
    """Else its gain, without a bound, would outweigh whatever the other dimensions lose."""
    adversary = adversary_of(constant_beside(dataset), weight="auto", score=score)
    limits = adversary.model.ensemble.min_logvar.detach()
    assert float(limits[1]) == INITIAL_MIN_LOGVAR  # nor had it in the fit
    before = float(limits[0])
    adversary.run(100, Greedy(), Greedy())
    assert float(limits[1]) == INITIAL_MIN_LOGVAR
    assert float(limits[0]) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "automatic"}, "neither a number nor 'auto'"),
        ({"weight": "auto", "xi": 0.0}, "xi = 0.0"),
        ({"weight": "auto", "max_weight": -1.0}, "max_weight = -1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarySettings(**settings)  # type: ignore[arg-type]
