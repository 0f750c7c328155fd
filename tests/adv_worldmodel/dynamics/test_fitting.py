"""The loss is the likelihood; the fit finds known systems and keeps its rules."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics import fitting
from adv_worldmodel.dynamics.ensemble import Ensemble
from adv_worldmodel.dynamics.fitting import FitSettings, fit_world_model
from adv_worldmodel.dynamics.likelihood import make_optimizer, supervised_loss, weight_decays
from adv_worldmodel.dynamics.world_model import WorldModel
from tests.adv_worldmodel.dynamics.small_models import SMALL, fit, linear_system


def in_fitted_order(model: WorldModel) -> list[Tensor]:
    """All parameters, the elites' in the order of the networks instead of their errors."""
    order = np.argsort(model.fit_info["elites"]).tolist()
    return [p.detach() for p in model.ensemble.select(order).parameters()]


def equal(first: WorldModel, second: WorldModel) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------- the loss


def test_supervised_loss_by_hand() -> None:
    # One row, two dimensions. Errors 1 and 2 at variance 1 and 4: (1 + 0 + 1 + log 4) / 2 for the
    # first member; the second is exact at variance 1: 0. Limits: 0.001 ((1 + 1) - (-6 - 6)).
    ensemble = Ensemble(2, 1, 2, ())
    mean = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    logvar = torch.tensor([[[0.0, math.log(4.0)]], [[0.0, 0.0]]])
    found = supervised_loss(ensemble, mean, logvar, torch.zeros(1, 2))
    assert found.item() == pytest.approx((2.0 + math.log(4.0)) / 2.0 + 0.014, abs=1e-6)


def test_supervised_loss_is_the_likelihood_times_two_by_dimensions() -> None:
    g = torch.Generator().manual_seed(0)
    ensemble = Ensemble(3, 1, 4, ())
    with torch.no_grad():
        ensemble.max_logvar.zero_()
        ensemble.min_logvar.zero_()  # no regulariser
    mean, logvar = torch.randn(3, 6, 4, generator=g), torch.randn(3, 6, 4, generator=g)
    y = torch.randn(6, 4, generator=g)
    density = torch.distributions.Normal(mean, (0.5 * logvar).exp()).log_prob(y)
    nll = -density.sum(-1).mean(-1).sum()  # per transition, summed over members
    constant = 3 * math.log(2.0 * math.pi)
    found = supervised_loss(ensemble, mean, logvar, y)
    torch.testing.assert_close(found, 2.0 / 4.0 * nll - constant)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_weighs_the_gradients_by_the_variance(beta: float) -> None:
    """At 0 they are the likelihood's, at 1 those in the mean are the squared error's."""
    ensemble = Ensemble(1, 1, 2, (2,))
    y = torch.tensor([[[1.0, -2.0]]])
    mean = torch.tensor([[[0.25, 0.5]]], requires_grad=True)
    logvar = torch.tensor([[[-3.0, 1.0]]], requires_grad=True)
    supervised_loss(ensemble, mean, logvar, y, beta).backward()
    error, variance = y - mean.detach(), logvar.detach().exp()
    share = 0.5 * variance**beta  # of two dimensions
    torch.testing.assert_close(mean.grad, share * -2.0 * error / variance)
    torch.testing.assert_close(logvar.grad, share * (1.0 - error.square() / variance))


def test_beta_learns_jumps_that_the_likelihood_takes_for_noise() -> None:
    """s' = s + a, and + 3 more in a corner of the plane, a twentieth of it."""
    rng = np.random.default_rng(0)
    obs, action = rng.uniform(-1, 1, (2, 4000, 1))
    jump = (obs > 0.5) & (action > 0.6)
    space = Box(-1.0, 1.0, (1,), np.float32)
    data = OfflineDataset.from_arrays(
        obs, action, np.zeros(4000), obs + action + 3.0 * jump, np.zeros(4000, bool),
        action_space=space,
    )  # fmt: skip
    settings = FitSettings(2, 2, (32, 32), learning_rate=3e-3, max_steps=600, patience=100)
    plain, weighted = (
        max(fit(data, replace(settings, beta=beta)).fit_info["holdout_mse"]) for beta in (0.0, 0.5)
    )
    assert weighted < 0.6 * plain


def test_weight_decays_are_the_papers() -> None:
    assert weight_decays(5) == (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    assert [len(weight_decays(n)) for n in range(1, 8)] == list(range(1, 8))


def test_optimiser_descends_half_the_weighted_squares() -> None:
    # Adam with its decay groups against Adam on a loss that has the L2 terms written out.
    def network() -> Ensemble:
        return Ensemble(2, 3, 2, (5, 5, 5, 5), torch.Generator().manual_seed(0)).double()

    ours, explicit = network(), network()
    x, y = (
        torch.randn(7, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        for n in (3, 2)
    )
    optimizer = make_optimizer(ours, 1e-2)
    plain = torch.optim.Adam(explicit.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        supervised_loss(ours, *ours(x), y).backward()
        optimizer.step()
        plain.zero_grad()
        squares = sum(
            0.5 * weight * layer.square().sum()
            for weight, layer in zip(
                (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), explicit.weights, strict=True
            )
        )
        (supervised_loss(explicit, *explicit(x), y) + squares).backward()
        plain.step()
    undecayed = network()
    free = torch.optim.Adam(undecayed.parameters(), lr=1e-2)
    for _ in range(20):
        free.zero_grad()
        supervised_loss(undecayed, *undecayed(x), y).backward()
        free.step()
    pairs = zip(ours.parameters(), explicit.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-6
    moved = (ours.weights[-1] - undecayed.weights[-1]).detach().abs().max()
    assert float(moved) > 1e-5  # the terms matter here


# ------------------------------------------------------------------------------- the fit


def test_recovers_a_linear_gaussian_system() -> None:
    # The early stop looks at the mean alone; patience lets the variance arrive too.
    settings = FitSettings(
        n_networks=3,
        n_elites=2,
        hidden_sizes=(),
        learning_rate=1e-2,
        patience=1000,
        max_steps=1000,
    )
    model = fit(linear_system(4000), settings)
    s, a = torch.tensor([-1.0, 0.0, 1.0, 0.5]), torch.tensor([0.5, 0.0, -0.5, 0.9])
    with torch.no_grad():
        mean, logvar = model.ensemble(model.inputs(s[:, None], a[:, None]))
    raw = mean * model.target_std + model.target_mean
    sd = (0.5 * logvar).exp() * model.target_std
    for member in range(2):
        torch.testing.assert_close(raw[member, :, 0], 2.0 * s - a, atol=0.08, rtol=0.0)
        torch.testing.assert_close(s + raw[member, :, 1], 0.9 * s + 0.5 * a, atol=0.03, rtol=0.0)
        torch.testing.assert_close(
            sd[member], torch.tensor([[0.6, 0.2]]).expand(4, 2), atol=0.0, rtol=0.15
        )


def test_elites_are_the_best_on_the_holdout() -> None:
    data = linear_system()
    settings = replace(SMALL, n_networks=5, n_elites=3, max_steps=100, learning_rate=1e-2)
    model = fit(data, settings)
    errors = model.fit_info["holdout_mse"]
    assert len(errors) == 5
    assert [errors[i] for i in model.fit_info["elites"]] == sorted(errors)[:3]
    assert model.n_members == 3
    inputs, targets = (x[model.holdout_rows] for x in model.encode(data))
    with torch.no_grad():
        found = (targets - model.ensemble(inputs)[0]).square().mean(dim=(1, 2))
    torch.testing.assert_close(found, torch.tensor(sorted(errors)[:3]))


def test_best_weights_are_restored_after_worse_epochs() -> None:
    # The rate is so large that the error goes up and down; what is kept is the lowest.
    data = linear_system()
    settings = replace(SMALL, learning_rate=0.3, max_steps=None, patience=4)
    errors = [
        fit(data, replace(settings, max_steps=steps)).fit_info["holdout_mse"]
        for steps in (6, 12, 18, 24, 30)  # 360 rows in batches of 64: six steps are an epoch
    ]
    assert all(
        later <= earlier
        for a, b in itertools.pairwise(errors)
        for earlier, later in zip(a, b, strict=True)
    )
    assert any(a == b for a, b in zip(errors[-2], errors[-1], strict=True))


def test_seed_decides_the_weights() -> None:
    data = linear_system()
    first, second, other = (fit(data, replace(SMALL, seed=s)) for s in (1, 1, 2))
    assert equal(first, second)
    assert not torch.equal(first.ensemble.weights[0], other.ensemble.weights[0])
    assert first.holdout_rows.tolist() != other.holdout_rows.tolist()


def test_global_random_state_is_neither_read_nor_written() -> None:
    data = linear_system()
    torch.manual_seed(0)
    first = fit(data)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
    torch.manual_seed(1)
    assert equal(fit(data), first)


def test_torch_s_default_device_is_not_asked() -> None:
    expected = fit(linear_system(100))
    with torch.device("meta"):  # where there are no numbers at all
        found = fit(linear_system(100))
    assert equal(found, expected)


def test_max_steps_ends_the_fit() -> None:
    assert fit(linear_system(), replace(SMALL, max_steps=13)).fit_info["steps"] == 13


@pytest.mark.parametrize("patience", [1, 4])
def test_patience_counts_epochs_without_improvement(patience: int) -> None:
    # Nothing is learnt at rate 0: the first epoch is an improvement on nothing, the rest are none.
    settings = replace(SMALL, learning_rate=0.0, patience=patience, max_steps=None)
    info = fit(linear_system(), settings).fit_info
    assert info["epochs"] == 1 + patience
    assert info["steps"] == 6 * (1 + patience)


def test_small_improvements_do_not_count() -> None:
    # Every epoch must improve a hundredfold: the fit ends although the error still falls.
    settings = replace(SMALL, learning_rate=1e-2, improvement=0.99, patience=2, max_steps=None)
    assert fit(linear_system(), settings).fit_info["epochs"] == 3


def test_holdout_rows_are_not_trained_on() -> None:
    # Their outcomes are dealt among them anew, which keeps the scales. One epoch: no choice
    # between weights by holdout error either.
    data = linear_system()
    settings = replace(SMALL, n_elites=3, max_steps=6)
    first = fit(data, settings)
    rows = first.holdout_rows.numpy()
    assert len(rows) == 40
    rewards, changes = data.rewards.copy(), data.next_observations - data.observations
    rewards[rows], changes[rows] = rewards[rows[::-1]], changes[rows[::-1]]
    corrupted = replace(data, rewards=rewards, next_observations=data.observations + changes)
    second = fit(corrupted, settings)
    assert second.holdout_rows.tolist() == rows.tolist()
    assert second.fit_info["holdout_mse"] != first.fit_info["holdout_mse"]
    for mine, theirs in zip(in_fitted_order(first), in_fitted_order(second), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("n", "expected"), [(30, 3), (5, 1), (400, 25)])
def test_holdout_is_at_most_a_tenth(n: int, expected: int) -> None:
    model = fit(linear_system(n), replace(SMALL, holdout=25, max_steps=1))
    rows = model.holdout_rows.tolist()
    assert len(set(rows)) == expected
    train, holdout = model.split(linear_system(n))
    assert sorted(train.tolist() + holdout.tolist()) == list(range(n))


def test_constant_dimensions_stay_constant(tmp_path: Path) -> None:
    data = linear_system()
    wide = np.concatenate([data.observations, np.full((400, 1), 3.0, np.float32)], axis=1)
    then = np.concatenate([data.next_observations, np.full((400, 1), 3.0, np.float32)], axis=1)
    constant = OfflineDataset.from_arrays(
        wide, data.actions, np.full(400, 0.1), then, data.terminations
    )
    model = fit(constant)
    obs, action = torch.as_tensor(wide.copy()), torch.as_tensor(data.actions.copy())
    next_obs, reward, _ = model.step(obs, action, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(next_obs[:, 1], torch.full((400,), 3.0), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(reward, torch.full((400,), 0.1), atol=1e-4, rtol=0.0)
    assert float(next_obs[:, 0].std()) > 0.1
    # also in a model that has been saved, the limits of their noise are fixed
    model.save(tmp_path)
    for known in (model, WorldModel.load(tmp_path, device="cpu")):
        assert known.ensemble.held is not None
        assert known.ensemble.held.tolist() == [True, False, True]
    assert fit(data).ensemble.held is None


def test_known_reward_takes_the_place_of_the_learned_one() -> None:
    def reward_function(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return 100.0 * next_obs[:, 0]

    model = fit(linear_system(), reward_function=reward_function)
    assert model.ensemble.output_dim == 1
    obs = torch.zeros(10, 1)
    next_obs, reward, _ = model.step(obs, obs, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reward, 100.0 * next_obs[:, 0])


def test_one_transition_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        fit(linear_system(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_elites": 4}, "n_elites = 4 exceeds n_networks = 3"),
        ({"n_elites": 0}, "n_elites = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"hidden_sizes": 64}, "hidden_sizes = 64: expected widths of at least 1"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"learning_rate": -1e-3}, "learning_rate = -0.001 must be a finite number of at least 0"),
        ({"learning_rate": np.inf}, "learning_rate = inf must be a finite number"),
        ({"learning_rate": np.nan}, "learning_rate = nan must be a finite number"),
        ({"learning_rate": "1e-3"}, "learning_rate = '1e-3' must be a finite number"),
        ({"improvement": np.nan}, "improvement = nan must be a finite number"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_bounds_that_the_data_leave_do_not_clip_the_model() -> None:
    data = replace(linear_system(), observation_space=Box(-0.5, np.inf, (1,), np.float32))
    model = fit(data)
    lowest = min(data.observations.min(), data.next_observations.min())
    assert lowest < -0.5
    assert float(model.obs_low) == pytest.approx(lowest)
    assert float(model.obs_high) == np.inf


def test_the_environment_s_rule_is_not_applied_to_other_observations() -> None:
    """The rule is for 11 components in a known order."""
    wrong = replace(linear_system(), env_id="Hopper-v5")
    with pytest.raises(ValueError, match="'observations' has 1 dimensions per row, but Hopper-v5"):
        fit_world_model(wrong, SMALL, device="cpu")
    fit(wrong)  # its own rule


def test_each_network_has_a_bootstrap_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 360 rows drawn with replacement about 1 - 1/e are distinct; each epoch has them all."""
    seen: list[Tensor] = []
    step = fitting.likelihood_step

    def watched(ensemble: Any, optimizer: Any, x: Tensor, y: Tensor, *beta: float) -> Tensor:
        seen.append(x)
        return step(ensemble, optimizer, x, y, *beta)

    monkeypatch.setattr(fitting, "likelihood_step", watched)
    fit(linear_system(), FitSettings(2, 1, (4,), batch_size=60, holdout=40, max_steps=12))
    epochs = [torch.cat(seen[:6], 1), torch.cat(seen[6:], 1)]
    bags = [[sorted(map(tuple, epoch[m].tolist())) for epoch in epochs] for m in range(2)]
    for m, (first, second) in enumerate(bags):
        assert 200 < len(set(first)) < 255
        assert first == second
        assert not torch.equal(epochs[0][m], epochs[1][m])
    assert bags[0][0] != bags[1][0]


def test_slow_progress_of_one_network_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error falls by 0.6 % of itself each epoch, less than the 1 % that count at once."""
    calls = 0

    def fake(ensemble: Ensemble, optimizer: Any, x: Tensor, y: Tensor, *beta: float) -> Tensor:
        nonlocal calls
        with torch.no_grad():
            for weight in ensemble.weights:
                weight.zero_()
            ensemble.biases[-1][0, 0, :2] = 1000.0 * 0.994 ** (calls // 6 / 2)
            ensemble.biases[-1][1, 0, :2] = 1000.0
        calls += 1
        return torch.zeros(())

    monkeypatch.setattr(fitting, "likelihood_step", fake)
    monkeypatch.setattr(fitting, "LEAST_ERROR_OF_MEAN", 1e6)  # far off, and no divergence here
    settings = FitSettings(2, 1, (), batch_size=60, holdout=40, patience=2, max_steps=72)
    assert fit(linear_system(), settings).fit_info["epochs"] == 12


def test_bounds_are_as_wide_as_the_data() -> None:
    narrow = Box(-0.5, 0.5, (1,), np.float32)
    data = replace(linear_system(), observation_space=narrow)
    model = fit(data, FitSettings(1, 1, (), max_steps=1))
    states = np.concatenate([data.observations, data.next_observations])
    assert float(model.obs_high) == states.max() > 0.5
    assert float(model.obs_low) == states.min() < -0.5


def test_layers_without_width_are_refused() -> None:
    with pytest.raises(ValueError, match="widths of at least 1"):
        FitSettings(hidden_sizes=(8, 0))
    with pytest.raises(ValueError, match=r"max_steps = 10000\.0: expected a whole number"):
        FitSettings(max_steps=1e4)  # type: ignore[arg-type]
