"""The adversarial update (P eq. 9): what it lowers, what it keeps, where its rollouts start."""

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics import Adversary, AdversarySettings
from adv_worldmodel.dynamics.fitting import FitSettings, fit_world_model
from adv_worldmodel.dynamics.model_gradient import SCORES, Score
from adv_worldmodel.dynamics.world_model import WorldModel

ADVERSARIAL = {"objective", "advantage_mean", "advantage_std"}


class Worth:
    """V(s) = s: the greater the better."""

    def v(self, obs: Tensor) -> Tensor:
        return obs[:, 0]

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        return obs[:, 0]


class Uniform:
    """Actions uniform on an interval; remembers the states that it was asked about."""

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        self.low, self.high = low, high
        self.seen: list[Tensor] = []

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        self.seen.append(obs.clone())
        return self.low + (self.high - self.low) * torch.special.ndtr(noise)


def narrow_data() -> OfflineDataset:
    """Actions in [-0.3, 0.3] of [-1, 1] alone; s' = a + 0.05 noise whatever s."""
    rng = np.random.default_rng(0)
    s, a = rng.uniform(-0.5, 0.5, (2000, 1)), rng.uniform(-0.3, 0.3, (2000, 1))
    successor = a + 0.05 * rng.normal(size=(2000, 1))
    return OfflineDataset.from_arrays(
        s,
        a,
        s[:, 0],
        successor,
        np.zeros(2000, bool),
        action_space=Box(-1.0, 1.0, (1,), np.float32),
    )


@functools.cache
def fitted() -> WorldModel:
    """Fitted once; tests change copies."""
    settings = FitSettings(
        n_networks=4,
        n_elites=3,
        hidden_sizes=(32, 32),
        learning_rate=3e-3,
        patience=1000,
        max_steps=600,
        holdout=200,
    )
    return fit_world_model(
        narrow_data(),
        settings,
        termination="never",
        reward_function=lambda obs, action, next_obs: obs[:, 0],
        device="cpu",
    )


def make(**settings: Any) -> Adversary:
    """An adversary of a copy of the fitted model."""
    horizon = settings.pop("horizon", 3)
    model = copy.deepcopy(fitted())
    return Adversary(model, narrow_data(), AdversarySettings(**settings), horizon=horizon, seed=0)


def test_a_copy_goes_on_as_the_adversary_would() -> None:
    """With its optimiser's moments, on a model of its own."""
    adversary = make(batch_size=30)
    adversary.run(5, Uniform(), Worth())
    copied = copy.deepcopy(adversary)
    for each in (adversary, copied):
        each.run(2, Uniform(), Worth())
    for one, other in zip(adversary.parameters, copied.parameters, strict=True):
        assert one is not other
        assert torch.equal(one, other)
    steps = {int(state["step"]) for state in copied.optimizer.state.values()}
    assert steps == {7}


def predicted(model: WorldModel, actions: list[float]) -> Tensor:
    """Mean next state over the members, for states 0 and the actions given."""
    action = torch.tensor(actions)[:, None]
    obs = torch.zeros_like(action)
    with torch.no_grad():
        mean = model.ensemble(model.inputs(obs, action))[0].mean(0)
    return model.outcome(obs, action, mean)[0][:, 0]


def parameters(model: WorldModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.ensemble.parameters()])


# ------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_lowers_the_value_outside_the_data_and_keeps_the_fit(score: Score) -> None:
    adversary = make(weight=3.0, score=score, learning_rate=1e-3)
    outside, inside = [-0.9, 0.9], [-0.2, 0.0, 0.2]
    before = predicted(adversary.model, outside), predicted(adversary.model, inside)
    nll = float(adversary.holdout_nll())
    metrics = adversary.run(300, Uniform(), Worth())
    after = predicted(adversary.model, outside), predicted(adversary.model, inside)
    assert float((after[0] - before[0]).max()) < -0.15  # three standard deviations of the noise
    assert float((after[1] - before[1]).abs().max()) < 0.05
    assert metrics["holdout_nll"] < nll + 0.15  # nats per transition
    assert metrics["advantage_mean"] < 0.0


def test_greater_weight_lowers_more() -> None:
    ends = []
    for weight in (0.3, 1.0, 3.0):
        adversary = make(weight=weight, learning_rate=1e-3)
        adversary.run(200, Uniform(), Worth())
        ends.append(float(predicted(adversary.model, [0.9])))
    assert ends[0] > ends[1] + 0.02 > ends[2] + 0.04


def test_weight_zero_changes_nothing() -> None:
    adversary = make(weight=0.0)
    before = parameters(adversary.model)
    policy = Uniform()
    metrics = adversary.run(20, policy, Worth())
    assert torch.equal(parameters(adversary.model), before)
    assert metrics == {"holdout_nll": float(adversary.holdout_nll())}
    assert policy.seen == []
    assert not adversary.active


@pytest.mark.parametrize("weight", [1.0, "auto"])
def test_no_updates_have_no_metrics_of_updates(weight: Any) -> None:
    metrics = make(weight=weight).run(0, Uniform(), Worth())
    assert metrics["holdout_nll"] != 0.0
    assert not metrics.keys() & (ADVERSARIAL | {"supervised_loss"})
    assert ("weight" in metrics) == (weight == "auto")


def test_continued_fit_is_a_fit_without_an_adversary() -> None:
    adversary = make(weight=0.0, continue_fit=True, learning_rate=1e-3)
    before, nll = parameters(adversary.model), float(adversary.holdout_nll())
    value = predicted(adversary.model, [-0.9, 0.9])
    policy = Uniform()
    metrics = adversary.run(100, policy, Worth())
    assert not torch.equal(parameters(adversary.model), before)
    assert metrics.keys() == {"supervised_loss", "holdout_nll"}
    assert policy.seen == []
    assert metrics["holdout_nll"] < nll + 0.02
    assert float((predicted(adversary.model, [-0.9, 0.9]) - value).abs().max()) < 0.05


def test_metrics_of_an_adversary() -> None:
    metrics = make().run(3, Uniform(), Worth())
    assert metrics.keys() == ADVERSARIAL | {"supervised_loss", "holdout_nll"}
    assert all(math.isfinite(x) for x in metrics.values())
    # r + 0.99 V(s') - Q(s, a) = 0.99 s', which spreads like the actions: 2 / sqrt(12).
    assert metrics["advantage_std"] == pytest.approx(0.99 * 2 / math.sqrt(12), rel=0.1)


def test_gradient_is_that_of_the_fit_plus_the_weight_times_that_of_the_value() -> None:
    slopes = []
    for weight in (1e-9, 1.0, 2.0):
        adversary = make(weight=weight)
        adversary.run(1, Uniform(), Worth())
        pieces = (p.grad for p in adversary.model.ensemble.parameters())
        slopes.append(torch.cat([g.flatten() for g in pieces if g is not None]))
    torch.testing.assert_close(slopes[2] - slopes[1], slopes[1] - slopes[0], rtol=1e-3, atol=1e-4)
    assert float((slopes[1] - slopes[0]).abs().max()) > 0.1


def test_held_out_rows_are_not_fitted() -> None:
    adversary = make()
    drawn = set(adversary.draw(50).batch.flatten().tolist())
    assert len(drawn) > 1500  # of 1800
    assert drawn.isdisjoint(adversary.holdout_rows.tolist())


class Worthless(Worth):
    """V(s) = -s."""

    def v(self, obs: Tensor) -> Tensor:
        return -obs[:, 0]

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        return -obs[:, 0]


def test_it_turns_against_whom_it_is_given() -> None:
    adversary, policy = make(weight=1.0, learning_rate=1e-3), Uniform()
    ends = [float(predicted(adversary.model, [0.9]))]
    for value in (Worth(), Worthless()):
        adversary.run(150, policy, value)
        ends.append(float(predicted(adversary.model, [0.9])))
    assert ends[1] < ends[0] - 0.05
    assert ends[2] > ends[1] + 0.05


def test_equal_seeds_give_equal_models() -> None:
    first, second = make(weight=1.0), make(weight=1.0)
    for adversary in (first, second):
        adversary.run(4, Uniform(), Worth())
    assert torch.equal(parameters(first.model), parameters(second.model))


def test_scales_of_the_model_stay_those_of_the_data() -> None:
    adversary = make(weight=1.0)
    before = {k: b.clone() for k, b in adversary.model.named_buffers()}
    adversary.run(5, Uniform(), Worth())
    assert all(torch.equal(b, before[k]) for k, b in adversary.model.named_buffers())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "mixed"}, "score = 'mixed' is not one of mixture, member, pathwise"),
        ({"weight": -1.0}, "weight = -1.0 must be a finite number of at least 0"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate = nan must be a finite number"),
        ({"batch_size": 1}, "batch_size = 1: expected at least 2 rows, over which the advantage"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarySettings(**settings)


def test_one_transition_keeps_no_model_near_the_data() -> None:
    columns = ("observations", "actions", "rewards", "next_observations", "terminations")
    data = narrow_data()
    one = OfflineDataset.from_arrays(
        *(getattr(data, column)[:1] for column in columns), action_space=data.action_space
    )
    with pytest.raises(ValueError, match="the data have one transition, which is held out"):
        Adversary(fitted(), one)
    Adversary(fitted(), one, AdversarySettings(weight=0.0))


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_frozen_parameters_stay(score: Score) -> None:
    foe = make(score=score, weight=1.0)
    limits = (foe.model.ensemble.max_logvar, foe.model.ensemble.min_logvar)
    before = [limit.detach().clone() for limit in limits]
    for limit in limits:
        limit.requires_grad_(False)
    frozen = Adversary(foe.model, narrow_data(), foe.settings, seed=0)
    weights = foe.model.ensemble.weights[0].detach().clone()
    frozen.run(3, Uniform(), Worth())
    assert all(map(torch.equal, limits, before))
    assert not torch.equal(foe.model.ensemble.weights[0], weights)


def test_one_row_is_a_batch_where_nothing_is_normalised() -> None:
    metrics = make(batch_size=1, normalise=False).run(3, Uniform(), Worth())
    assert metrics["objective"] != 0.0


def test_rewards_too_small_to_normalise_are_warned_of() -> None:
    data = narrow_data()

    def warned(rewards: np.ndarray, **settings: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            Adversary(fitted(), replace(data, rewards=rewards), AdversarySettings(**settings))
        return [str(warning.message) for warning in found]

    tiny = 1e-6 * data.rewards
    (message,) = warned(tiny)
    assert "the rewards' standard deviation is 2.9e-07, below 0.0001" in message
    assert message.endswith("rescale the rewards")
    for rewards in (data.rewards, 1e-3 * data.rewards, 0.0 * data.rewards):
        assert warned(rewards) == []
    assert warned(tiny, weight=0.0) == warned(tiny, normalise=False) == []


# ------------------------------------------------------------------------------- rollouts


def rollouts(line: OfflineDataset, model: WorldModel, horizon: int, updates: int) -> list[Tensor]:
    """States ``(B,)`` that the policy is asked about at each update."""
    settings = AdversarySettings(weight=1e-9, learning_rate=0.0, batch_size=30)
    adversary = Adversary(model, line, settings, horizon=horizon, seed=0)
    policy = Uniform()
    adversary.run(updates, policy, Worth())
    return [states[:, 0] for states in policy.seen]


def steps_from_data(states: Tensor) -> Tensor:
    """Distance above the last state of the data 0, 100, ..., 900."""
    return torch.remainder(states, 100.0)


def test_rollouts_restart_in_the_data_after_the_horizon(
    line: OfflineDataset, line_model: Callable[..., WorldModel]
) -> None:
    # A step moves by 1, 2 or 3, according to the member.
    seen = rollouts(line, line_model(), horizon=3, updates=7)
    for update, states in enumerate(seen):
        k, moved = update % 3, steps_from_data(states)
        assert bool((moved >= k).all())
        assert bool((moved <= 3 * k).all())
        if k > 0:
            change = states - seen[update - 1]
            assert sorted(change.round().int().tolist()) == [1] * 10 + [2] * 10 + [3] * 10
    assert not torch.equal(seen[0], seen[3])  # other states than the first time


def test_terminated_rows_restart_in_the_data(
    line: OfflineDataset, line_model: Callable[..., WorldModel]
) -> None:
    # Over once two or more above a state of the data: only members with a step of 1 go on.
    model = line_model(lambda obs, action, next_obs: steps_from_data(next_obs[:, 0]) > 1.5)
    seen = rollouts(line, model, horizon=100, updates=12)
    for before, states in itertools.pairwise(seen):
        moved = steps_from_data(states)
        assert bool(((moved == 0.0) | (moved == 1.0)).all())
        went_on = moved == 1.0
        assert torch.equal(states[went_on], before[went_on] + 1.0)
        assert 0 < int(went_on.sum()) < 30


def test_rollouts_go_on_over_calls(
    line: OfflineDataset, line_model: Callable[..., WorldModel]
) -> None:
    settings = AdversarySettings(weight=1e-9, learning_rate=0.0, batch_size=30)
    adversary = Adversary(line_model(), line, settings, horizon=3, seed=0)
    policy = Uniform()
    for _ in range(6):
        adversary.run(1, policy, Worth())
    # each call shows the states that it finds, and those that its update leaves
    found, left = policy.seen[::2], policy.seen[1::2]
    assert all(map(torch.equal, left, found[1:]))
    at_data = [bool((steps_from_data(s) == 0.0).all()) for s in found]
    assert at_data == [True, False, False, True, False, False]


@pytest.mark.parametrize("weight", [1.0, "auto"])
@pytest.mark.parametrize("score", SCORES)
def test_float32_whatever_the_user_s_default_is(score: Score, weight: Any) -> None:
    small = FitSettings(n_networks=2, n_elites=1, hidden_sizes=(4,), max_steps=2)
    torch.set_default_dtype(torch.float64)
    try:
        model = fit_world_model(narrow_data(), small, termination="never", device="cpu")
        settings = AdversarySettings(weight, score, batch_size=8)
        Adversary(model, narrow_data(), settings, seed=0).run(1, Uniform(), Worth())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_wrong_arguments_are_explained(pendulum: OfflineDataset) -> None:
    for wrong, message in (
        ({"horizon": 0}, "horizon = 0 must be at least 1"),
        ({"gamma": 3.0}, "gamma = 3.0 must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Adversary(fitted(), narrow_data(), **wrong)
    with pytest.raises(ValueError, match=r"observations of length 1, .* has length 3"):
        Adversary(fitted(), pendulum)
    with pytest.raises(ValueError, match="xi = 'a' must be a finite number"):
        AdversarySettings(xi="a")  # type: ignore[arg-type]


def test_a_number_of_updates_is_a_count(line: OfflineDataset, line_model: Any) -> None:
    adversary = Adversary(line_model(), line, AdversarySettings(batch_size=4), seed=0)
    for wrong, message in ((-2, "n_updates = -2 must be at least 0"), (2.0, "a whole number")):
        with pytest.raises(ValueError, match=message):
            adversary.run(wrong, Uniform(), Worth())  # type: ignore[arg-type]
