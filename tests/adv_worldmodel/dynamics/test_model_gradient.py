"""The model gradient (P eq. 5) on a problem small enough to solve by hand.

One state, one action, an ensemble of linear-Gaussian members and a known V: then
E[r + gamma V(s')] is a formula, its derivative in the parameters comes from finite differences
of that formula, and the estimate must agree within its standard error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor

from adv_worldmodel.dynamics.ensemble import Ensemble, MemberDraw
from adv_worldmodel.dynamics.likelihood import supervised_loss
from adv_worldmodel.dynamics.model_gradient import AdversarySettings, Score, model_gradient
from adv_worldmodel.dynamics.termination import TerminationFunction, make_termination
from adv_worldmodel.dynamics.world_model import RewardFunction, WorldModel

GAMMA = 0.9
N_MEMBERS = 3
N_BATCHES = 120
#: Exceeded by one of 40 parameters in one of 200 seeds when all is right.
LIMIT = 4.0
INPUT_MEAN, INPUT_STD = np.array([0.2, -0.1]), np.array([1.3, 0.7])
TARGET_MEAN, TARGET_STD = np.array([0.1, 0.05]), np.array([0.8, 1.2])
STATES = np.array([-1.0, -0.5, 0.0, 0.3, 0.8, 1.2, 0.1])
ACTIONS = np.array([0.5, -0.9, 0.2, 0.0, -0.4, 0.7, 1.0])
#: Not a multiple of the members: some of them get a row more than others.
ROWS = 143 * len(STATES)

Array = NDArray[np.float64]
Values = dict[str, Array]


@dataclass(frozen=True)
class Known:
    """A value function given by formulas."""

    v_of: Callable[[Tensor], Tensor]
    q_of: Callable[[Tensor, Tensor], Tensor] = lambda s, a: -s.square() + 0.3 * a

    def v(self, obs: Tensor) -> Tensor:
        return self.v_of(obs[:, 0])

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.q_of(obs[:, 0], action[:, 0])


QUADRATIC = Known(lambda s: 0.5 * s - s.square())
LINEAR = Known(lambda s: s + 2.0)


def linear_model(
    termination: str | TerminationFunction = "never",
    n_members: int = N_MEMBERS,
    reward_function: RewardFunction | None = None,
) -> WorldModel:
    """Members with different parameters: standardised (r, ds) = (s, a) W + b + noise."""
    n_targets = 2 if reward_function is None else 1
    ensemble = Ensemble(n_members, 2, n_targets, (), torch.Generator().manual_seed(0))
    spaces = Box(-np.inf, np.inf, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    rule = make_termination(termination, None)
    model = WorldModel(ensemble, rule, *spaces, reward_function=reward_function).double()
    model.input_mean.copy_(torch.as_tensor(INPUT_MEAN))
    model.input_std.copy_(torch.as_tensor(INPUT_STD))
    model.target_mean.copy_(torch.as_tensor(TARGET_MEAN[-n_targets:]))
    model.target_std.copy_(torch.as_tensor(TARGET_STD[-n_targets:]))
    offsets = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)[:n_members, None]
    with torch.no_grad():
        ensemble.biases[0][:, 0, :n_targets] = offsets  # means
        ensemble.biases[0][:, 0, n_targets:] = -1.0 + offsets  # log-variances
    return model


def moments(parameters: Values) -> tuple[Array, Array, Array]:
    """Raw reward ``(E, rows)``, mean and standard deviation of s' for each member and row."""
    x = (np.stack([STATES, ACTIONS], axis=1) - INPUT_MEAN) / INPUT_STD
    out = x @ parameters["weights.0"] + parameters["biases.0"]
    mean, logvar = out[..., :2], out[..., 2:]
    high, low = parameters["max_logvar"], parameters["min_logvar"]
    logvar = high - np.logaddexp(0.0, high - logvar)
    logvar = low + np.logaddexp(0.0, logvar - low)
    raw = mean * TARGET_STD + TARGET_MEAN
    return raw[..., 0], STATES + raw[..., 1], TARGET_STD[1] * np.exp(0.5 * logvar[..., 1])


def quadratic_value(parameters: Values) -> float:
    """E[r + gamma (s'/2 - s'^2)], by E[s'^2] = mu^2 + sigma^2."""
    reward, mu, sigma = moments(parameters)
    return float(np.mean(reward + GAMMA * (0.5 * mu - mu**2 - sigma**2)))


CLIFF = 0.6


def cliff_value(parameters: Values) -> float:
    """E[r + gamma 1(s' <= CLIFF) (s' + 2)]: beyond the cliff the episode is over.

    With z = (CLIFF - mu) / sigma: E[s' 1(s' <= CLIFF)] = mu Phi(z) - sigma phi(z).
    """
    reward, mu, sigma = moments(parameters)
    z = (CLIFF - mu) / sigma
    below = 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    return float(np.mean(reward + GAMMA * ((mu + 2.0) * below - sigma * density)))


def derivative(model: WorldModel, value: Callable[[Values], float]) -> Array:
    """Central differences of ``value`` in every parameter of the ensemble, in their order."""
    parameters = {k: p.detach().numpy().copy() for k, p in model.ensemble.named_parameters()}
    slopes = []
    for array in parameters.values():
        for place in np.ndindex(array.shape):
            here = array[place]
            ends = []
            for step in (1e-5, -1e-5):
                array[place] = here + step
                ends.append(value(parameters))
            array[place] = here
            slopes.append((ends[0] - ends[1]) / 2e-5)
    return np.array(slopes)


def drawn(model: WorldModel, n_rows: int, generator: torch.Generator) -> tuple[MemberDraw, Tensor]:
    """Who evaluates which row, and the rows' noise."""
    members = MemberDraw.draw(n_rows, model.n_members, generator)
    shape = (n_rows, model.ensemble.output_dim)
    return members, torch.randn(shape, generator=generator, dtype=model.input_mean.dtype)


def gradients(model: WorldModel, value: Known, seed: int = 0, **settings: Any) -> Array:
    """Gradients of the loss, one row per batch, parameters in their order."""
    settings = {"normalise": False, **settings}
    n_rows = settings.pop("n_rows", ROWS)
    obs = torch.as_tensor(np.resize(STATES, n_rows))[:, None]
    action = torch.as_tensor(np.resize(ACTIONS, n_rows))[:, None]
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.ensemble.parameters())
    rows = []
    for _ in range(N_BATCHES):
        members, noise = drawn(model, n_rows, generator)
        step, _ = model_gradient(
            model, obs, action, value, GAMMA, members, noise, AdversarySettings(**settings)
        )
        pieces = torch.autograd.grad(step.loss, parameters)
        rows.append(torch.cat([piece.flatten() for piece in pieces]).numpy())
    return np.array(rows)


def deviation(estimates: Array, expected: Array) -> float:
    """Largest distance of the mean estimate from ``expected``, in its standard errors.

    The floor lets parameters that never get a gradient differ by the finite differences' error.
    """
    error = estimates.std(axis=0, ddof=1) / math.sqrt(len(estimates)) + 1e-9
    return float(np.max(np.abs(estimates.mean(axis=0) - expected) / error))


BASELINES = {
    "none": (False, QUADRATIC.q_of),
    "q": (True, QUADRATIC.q_of),
    "large constant": (True, lambda s, a: torch.full_like(s, -30.0)),
}


@pytest.mark.parametrize("baseline", list(BASELINES))
@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_estimate_is_the_derivative_of_the_value(score: Score, baseline: str) -> None:
    model = linear_model()
    expected = derivative(model, quadratic_value)
    used, q_of = BASELINES[baseline]
    estimates = gradients(model, Known(QUADRATIC.v_of, q_of), score=score, baseline=used)
    assert deviation(estimates, expected) < LIMIT


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_wrong_estimates_would_be_noticed(score: Score) -> None:
    model = linear_model()
    expected = derivative(model, quadratic_value)
    estimates = gradients(model, QUADRATIC, score=score)
    assert deviation(-estimates, expected) > 5 * LIMIT  # the agent's friend instead of its foe
    assert deviation(1.5 * estimates, expected) > 2 * LIMIT
    assert deviation(estimates, 0.0 * expected) > 5 * LIMIT
    # A forgotten discount, and a gradient that does not reach the variances.
    undiscounted = gradients(model, Known(lambda s: QUADRATIC.v_of(s) / GAMMA), score=score)
    assert deviation(undiscounted, expected) > LIMIT
    no_variance = derivative(
        model, lambda p: quadratic_value(p) + GAMMA * float(np.mean(moments(p)[2] ** 2))
    )
    assert deviation(estimates, no_variance) > 2 * LIMIT


@pytest.mark.parametrize("n_rows", [len(STATES), 20 * len(STATES)])
def test_loss_is_a_mean_whatever_the_size_of_the_batch(n_rows: int) -> None:
    # Read as a sum, the gradient of 140 rows would be 140 times as long.
    model = linear_model()
    estimates = gradients(model, QUADRATIC, score="mixture", n_rows=n_rows)
    assert deviation(estimates, derivative(model, quadratic_value)) < LIMIT


def test_mixture_and_member_agree_and_the_mixture_varies_less() -> None:
    model = linear_model()
    mixture = gradients(model, QUADRATIC, seed=1, score="mixture")
    member = gradients(model, QUADRATIC, seed=2, score="member")
    error = np.sqrt((mixture.var(axis=0, ddof=1) + member.var(axis=0, ddof=1)) / N_BATCHES)
    assert np.max(np.abs(mixture.mean(axis=0) - member.mean(axis=0)) / error) < LIMIT
    assert mixture.var(axis=0).sum() < member.var(axis=0).sum()


def test_q_as_baseline_lowers_the_variance_of_a_score_function() -> None:
    model = linear_model()
    q = Known(QUADRATIC.v_of, lambda s, a: torch.full_like(s, -30.0))
    shifted = gradients(model, q, score="member")
    plain = gradients(model, QUADRATIC, score="member")
    assert plain.var(axis=0).sum() < 0.1 * shifted.var(axis=0).sum()


# ------------------------------------------------------------------------------- terminations


def beyond_the_cliff(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[:, 0] > CLIFF


@pytest.mark.parametrize("score", ["mixture", "member"])
def test_terminated_successors_have_no_value(score: Score) -> None:
    # The pathwise estimate is left out: no sample's path feels the step at the cliff.
    model = linear_model(beyond_the_cliff)
    estimates = gradients(model, LINEAR, score=score)
    assert deviation(estimates, derivative(model, cliff_value)) < LIMIT

    def without_cliff(parameters: Values) -> float:
        reward, mu, _ = moments(parameters)
        return float(np.mean(reward + GAMMA * (mu + 2.0)))

    assert deviation(estimates, derivative(model, without_cliff)) > 2 * LIMIT


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_after_a_certain_termination_only_the_reward_counts(score: Score) -> None:
    model = linear_model(lambda obs, action, next_obs: torch.ones(len(obs), dtype=torch.bool))
    estimates = gradients(model, QUADRATIC, score=score)
    expected = derivative(model, lambda p: float(np.mean(moments(p)[0])))
    assert deviation(estimates, expected) < LIMIT


# ------------------------------------------------------------------------------- one batch


def one_batch(model: WorldModel, value: Known, n_rows: int = 14, **settings: Any) -> Any:
    obs = torch.as_tensor(np.resize(STATES, n_rows))[:, None]
    action = torch.as_tensor(np.resize(ACTIONS, n_rows))[:, None]
    generator = torch.Generator().manual_seed(3)
    real = settings.pop("real", None)
    members, noise = drawn(model, n_rows, generator)
    return model_gradient(
        model, obs, action, value, GAMMA, members, noise, AdversarySettings(**settings), real
    )


def flat_gradient(model: WorldModel, loss: Tensor) -> Tensor:
    return torch.cat(
        [piece.flatten() for piece in torch.autograd.grad(loss, list(model.ensemble.parameters()))]
    )


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_normalised_gradient_ignores_units_and_level_of_the_value(score: Score) -> None:
    # The known reward is zero, so that seven times V and Q are seven times the advantage.
    model = linear_model(reward_function=lambda obs, action, next_obs: torch.zeros_like(obs[:, 0]))
    large = Known(
        lambda s: 7.0 * QUADRATIC.v_of(s), lambda s, a: 7.0 * QUADRATIC.q_of(s, a) + 100.0
    )
    first = one_batch(model, QUADRATIC, score=score)[0]
    second = one_batch(model, large, score=score)[0]
    torch.testing.assert_close(second.raw_advantage, 7.0 * first.raw_advantage - 100.0)
    torch.testing.assert_close(
        flat_gradient(model, first.loss), flat_gradient(model, second.loss), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("score", ["mixture", "member"])
def test_advantage_is_reward_plus_discounted_value_minus_q(score: Score) -> None:
    model = linear_model(
        beyond_the_cliff, reward_function=lambda obs, action, next_obs: 2.0 * obs[:, 0]
    )
    step = one_batch(model, QUADRATIC, score=score)[0]
    s, a = np.resize(STATES, 14), np.resize(ACTIONS, 14)
    successor = step.next_obs[:, 0].numpy()
    assert step.terminated.tolist() == (successor > CLIFF).tolist()
    assert 0 < int(step.terminated.sum()) < 14
    future = np.where(successor > CLIFF, 0.0, 0.5 * successor - successor**2)
    expected = 2.0 * s + GAMMA * future - (-(s**2) + 0.3 * a)
    np.testing.assert_allclose(step.raw_advantage.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("score", ["mixture", "member"])
def test_score_functions_send_no_gradient_through_the_critic(score: Score) -> None:
    knob = torch.ones((), dtype=torch.float64, requires_grad=True)
    value = Known(lambda s: knob * s, lambda s, a: knob * a)
    model = linear_model()
    one_batch(model, value, score=score)[0].loss.backward()
    assert knob.grad is None
    assert model.ensemble.weights[0].grad is not None


@pytest.mark.parametrize("score", ["mixture", "member"])
def test_repeating_a_batch_leaves_its_loss(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    # One member, and noise that repeats with the rows: twice the rows, the same mean.
    noise = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: noise.repeat(shape[0] // 7, 1))
    model = linear_model(n_members=1)
    once, twice = (one_batch(model, QUADRATIC, n, score=score)[0].loss for n in (7, 14))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
def test_rows_of_data_ride_along_unchanged(score: Score) -> None:
    model = linear_model()
    g = torch.Generator().manual_seed(5)
    inputs, targets = (torch.randn(9, 2, generator=g, dtype=torch.float64) for _ in range(2))
    alone, nothing = one_batch(model, QUADRATIC, score=score)
    together, supervised = one_batch(model, QUADRATIC, score=score, real=(inputs, targets))
    expected = supervised_loss(model.ensemble, *model.ensemble(inputs), targets)
    assert float(nothing) == 0.0
    torch.testing.assert_close(supervised, expected)
    torch.testing.assert_close(together.loss, alone.loss)
    assert torch.equal(together.next_obs, alone.next_obs)
