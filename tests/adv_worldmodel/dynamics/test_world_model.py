"""Raw units in and out, what is sampled, and the split."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics.ensemble import Ensemble, MemberDraw
from adv_worldmodel.dynamics.termination import TerminationFunction, make_termination
from adv_worldmodel.dynamics.world_model import RewardFunction, WorldModel
from tests.adv_worldmodel.dynamics.small_models import generator, random_model


def noiseless(
    outputs: list[list[float]],
    *,
    termination: str | TerminationFunction = "never",
    reward_function: RewardFunction | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> WorldModel:
    """One state, one action; member m predicts the standardised ``outputs[m]`` everywhere."""
    n_targets = len(outputs[0])
    ensemble = Ensemble(len(outputs), 2, n_targets, ())  # zero weights
    with torch.no_grad():
        ensemble.max_logvar.fill_(-60.0)
        ensemble.min_logvar.fill_(-61.0)
        ensemble.biases[0][:, 0, :n_targets] = torch.tensor(outputs)
    return WorldModel(
        ensemble,
        make_termination(termination, None),
        Box(low, high, (1,), np.float32),
        Box(-1.0, 1.0, (1,), np.float32),
        reward_function=reward_function,
    )


def dataset(n: int = 30) -> OfflineDataset:
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(n, 1)), rng.uniform(-1, 1, (n, 1))
    return OfflineDataset.from_arrays(obs, action, obs[:, 0], obs + action, np.zeros(n, bool))


# ------------------------------------------------------------------------------- units


def test_outcome_is_raw_and_targets_undo_it() -> None:
    model = noiseless([[0.0, 0.0]])
    model.target_mean.copy_(torch.tensor([10.0, 1.0]))
    model.target_std.copy_(torch.tensor([2.0, 0.5]))
    obs, action = torch.tensor([[3.0], [-1.0]]), torch.zeros(2, 1)
    y = torch.tensor([[1.0, 2.0], [0.0, -4.0]])
    next_obs, reward = model.outcome(obs, action, y)
    assert reward.tolist() == [12.0, 10.0]  # 10 + 2 y_0
    assert next_obs[:, 0].tolist() == [5.0, -2.0]  # s + 1 + y_1 / 2
    torch.testing.assert_close(model.targets(obs, next_obs, reward), y)


def test_scales_are_those_of_the_data() -> None:
    model = noiseless([[0.0, 0.0]])
    inputs = torch.tensor([[0.0, 7.0], [2.0, 7.0]])
    targets = torch.tensor([[-3.0, 5.0], [3.0, 5.0]])
    model.set_scales(inputs, targets)
    assert model.input_mean.tolist() == [1.0, 7.0]
    assert model.input_std.tolist() == [1.0, 1.0]  # a constant is not divided by zero
    x = model.inputs(torch.tensor([[2.0]]), torch.tensor([[7.5]]))
    assert x.tolist() == [[1.0, 0.5]]
    assert model.target_mean.tolist() == [0.0, 5.0]
    assert float(model.target_std[0]) == 3.0
    assert 0.0 < float(model.target_std[1]) <= 1e-6


def test_predicted_states_are_clipped_to_the_space() -> None:
    model = noiseless([[0.0, 2.0]], low=-1.0, high=1.5)
    obs = torch.tensor([[-0.9], [0.9]])
    next_obs, _, _ = model.step(obs, torch.zeros(2, 1), generator=generator())
    torch.testing.assert_close(next_obs, torch.tensor([[1.1], [1.5]]))


def test_a_space_bounded_on_one_side_clips_there() -> None:
    spaces = Box(-1.0, np.inf, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    model = WorldModel(Ensemble(1, 2, 2, ()), make_termination("never", None), *spaces)
    zero = torch.zeros(2, 1)
    change = torch.tensor([[0.0, -5.0], [0.0, 5.0]])
    assert model.outcome(zero, zero, change)[0].tolist() == [[-1.0], [5.0]]


def test_actions_outside_the_space_are_clipped() -> None:
    model = random_model()
    obs = torch.zeros(4, 2)
    far, bound = (
        model.step(obs, torch.full((4, 1), a), generator=generator(3)) for a in (50.0, 2.0)
    )
    assert torch.equal(far[0], bound[0])


def test_known_reward_sees_raw_transitions() -> None:
    seen: list[Tensor] = []

    def reward_function(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        seen.extend((obs, action, next_obs))
        return next_obs[:, 0] - 10.0 * action[:, 0]

    model = noiseless([[2.0]], reward_function=reward_function)
    model.target_std.fill_(3.0)
    obs, action = torch.tensor([[100.0]]), torch.tensor([[0.5]])
    _, reward, _ = model.step(obs, action, generator=generator())
    assert reward.tolist() == [106.0 - 5.0]
    assert [float(x) for x in seen] == [100.0, 0.5, 106.0]


def test_a_known_reward_comes_out_in_the_model_s_precision() -> None:
    model = noiseless([[2.0]], reward_function=lambda obs, action, next_obs: obs[:, 0].double())
    _, reward, _ = model.step(torch.ones(1, 1), torch.zeros(1, 1), generator=generator())
    assert (reward.dtype, reward.tolist()) == (torch.float32, [1.0])


def with_reward(data: OfflineDataset, reward: Any) -> WorldModel:
    return WorldModel(
        Ensemble(2, 4, 3, (8,)),
        make_termination("never", None),
        data.observation_space,
        data.action_space,
        reward_function=reward,
    )


@pytest.mark.parametrize(
    ("reward", "found"),
    [
        (lambda obs, action, next_obs: next_obs[:, :1], r"torch.float32 \(4, 1\)"),
        (lambda obs, action, next_obs: next_obs.sum(), r"torch.float32 \(\)"),
        (lambda obs, action, next_obs: next_obs[:, 0] > 0, r"torch.bool \(4,\)"),
        (lambda obs, action, next_obs: next_obs[:, 0].numpy(), "ndarray"),
    ],
)
def test_a_wrong_reward_function_is_refused(
    pendulum: OfflineDataset, reward: Any, found: str
) -> None:
    model = with_reward(pendulum, reward)
    with pytest.raises(ValueError, match=f"the reward function returned {found}; expected"):
        model.step(torch.zeros(4, 3), torch.zeros(4, 1), generator=torch.Generator())


def test_a_reward_function_that_writes_to_its_arguments_is_refused(
    pendulum: OfflineDataset,
) -> None:
    model = with_reward(pendulum, lambda obs, action, next_obs: obs.mul_(5.0)[:, 0])
    with pytest.raises(ValueError, match="the reward function changes its arguments in place"):
        model.step(torch.zeros(4, 3), torch.zeros(4, 1), generator=torch.Generator())


def test_termination_sees_raw_transitions() -> None:
    model = noiseless([[0.0, 1.0]], termination=lambda obs, action, next_obs: next_obs[:, 0] > 5)
    obs = torch.tensor([[3.5], [4.5]])
    _, _, terminated = model.step(obs, torch.zeros(2, 1), generator=generator())
    assert terminated.tolist() == [False, True]


def test_targets_that_do_not_match_the_environment_are_refused() -> None:
    ensemble = Ensemble(2, 2, 1, ())
    spaces = Box(-1.0, 1.0, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    with pytest.raises(ValueError, match="predicts 1 targets, this environment needs 2"):
        WorldModel(ensemble, make_termination("never", None), *spaces)


# ------------------------------------------------------------------------------- sampling


def test_each_row_comes_from_one_member() -> None:
    # Member m gives reward m and s' = s + 10 m: never the one with the other.
    model = noiseless([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]])
    obs = torch.zeros(30, 1)
    next_obs, reward, _ = model.step(obs, obs, generator=generator())
    torch.testing.assert_close(next_obs[:, 0], 10.0 * reward)
    assert sorted(reward.round().int().tolist()) == [0] * 10 + [1] * 10 + [2] * 10


def test_given_members_are_kept_over_steps() -> None:
    model = noiseless([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]])
    g = generator()
    draw = MemberDraw.draw(30, 3, g)
    obs = torch.zeros(30, 1)
    for _ in range(4):
        obs, reward, _ = model.step(obs, torch.zeros(30, 1), generator=g, members=draw)
        assert torch.equal(reward.round().long(), draw.member)
    torch.testing.assert_close(obs[:, 0], 40.0 * draw.member)


def test_samples_have_the_predicted_moments() -> None:
    model = random_model()
    model.obs_low.fill_(-torch.inf)
    n = 60_000
    obs, action = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.7]])
    next_obs, reward, _ = model.step(obs.expand(n, 2), action.expand(n, 1), generator=generator())
    samples = torch.cat([reward[:, None], next_obs - obs], dim=1)
    with torch.no_grad():
        mean, logvar = (m[:, 0] for m in model.ensemble(model.inputs(obs, action)))
    mean = mean * model.target_std + model.target_mean
    variance = logvar.exp() * model.target_std**2
    centre = mean.mean(0)
    spread = (variance + (mean - centre) ** 2).mean(0)  # law of total variance
    error = 4.0 * (spread / n).sqrt()
    assert bool(((samples.mean(0) - centre).abs() < error).all())
    torch.testing.assert_close(samples.var(0), spread, rtol=4.0 * math.sqrt(2.0 / n), atol=0.0)


def test_equal_generators_give_equal_steps() -> None:
    model = random_model()
    obs, action = torch.zeros(5, 2), torch.zeros(5, 1)
    first, second, other = (model.step(obs, action, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_a_pickled_model_steps_alike(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    again = pickle.loads(pickle.dumps(pendulum_model))
    obs, action = torch.tensor(pendulum.observations[:4]), torch.zeros(4, 1)
    steps = [model.step(obs, action, generator=generator()) for model in (pendulum_model, again)]
    for mine, theirs in zip(*steps, strict=True):
        assert torch.equal(mine, theirs)


def test_nll_by_hand() -> None:
    # Two members of variance 1, means 0 and 2, target 1: both at distance 1 in one dimension.
    ensemble = Ensemble(2, 2, 1, ())
    with torch.no_grad():
        ensemble.max_logvar.fill_(40.0)
        ensemble.min_logvar.fill_(-40.0)
        ensemble.biases[0][:, 0, 0] = torch.tensor([0.0, 2.0])
    spaces = Box(-9.0, 9.0, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    model = WorldModel(
        ensemble, make_termination("never", None), *spaces, reward_function=lambda s, a, t: s[:, 0]
    )
    found = float(model.nll(torch.zeros(3, 2), torch.ones(3, 1)))
    assert found == pytest.approx(0.5 + 0.5 * math.log(2.0 * math.pi), abs=1e-5)


# ------------------------------------------------------------------------------- split


def test_split_of_the_fitted_data_is_the_fits() -> None:
    data, model = dataset(), noiseless([[0.0, 0.0]])
    model.fit_info = {"content_hash": data.content_hash}
    model.holdout_rows = torch.tensor([7, 3])
    train, holdout = model.split(data)
    assert holdout.tolist() == [7, 3]
    assert train.tolist() == [i for i in range(30) if i not in (3, 7)]


def test_split_of_other_data_holds_out_the_last_tenth() -> None:
    model = noiseless([[0.0, 0.0]])
    model.holdout_rows = torch.tensor([7, 3])
    train, holdout = model.split(dataset())
    assert holdout.tolist() == [27, 28, 29]
    assert train.tolist() == list(range(27))
