"""What a fit warns of or refuses in data that it will hardly learn, and in what it has learnt."""

import math
import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics import fitting
from adv_worldmodel.dynamics.fitting import FitDivergedError, FitSettings
from tests.adv_worldmodel.dynamics.small_models import SMALL, fit, linear_system


def test_a_fit_that_is_worse_than_the_mean_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of 1, where those of a thousandth learn."""
    data = linear_system()
    settings = FitSettings(2, 2, (64, 64, 64, 64), batch_size=32, max_steps=60, learning_rate=1.0)
    with pytest.raises(
        FitDivergedError, match=r"an elite's error on held-out data is \S+, that of"
    ):
        fit(data, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(data, replace(settings, learning_rate=1e-3))
    monkeypatch.setattr(fitting, "DIVERGED_ERROR", math.inf)
    with pytest.warns(UserWarning, match="predicts held-out data worse than their mean does"):
        fit(data, settings)


@pytest.mark.parametrize(
    ("column", "place"),
    [("observations", "'observations' dimension 0"), ("actions", "'actions' dimension 0"),
     ("next_observations", "'next_observations - observations' dimension 0")],
)  # fmt: skip
def test_a_row_that_makes_the_scale_alone_is_named(column: str, place: str) -> None:
    data = linear_system()
    values = getattr(data, column).copy()
    values[7] = 1e4
    space = Box(-1e4, 1e4, (1,), np.float32)
    spiked = replace(data, action_space=space, **{column: values})
    with pytest.warns(UserWarning, match=re.escape(f"row 7 alone makes the scale of {place}")):
        fit(spiked)
    heavy = np.random.default_rng(0).standard_t(3, values.shape)  # large, and not alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(replace(data, action_space=space, **{column: heavy}))


def test_changes_too_small_to_be_learnt_are_told() -> None:
    """A column that varies by more than rounding, over the episodes alone."""
    data = linear_system()
    slow = np.linspace(-3e-6, 3e-6, len(data), dtype=np.float32)
    change = 1e-8 * data.actions[:, 0]
    for offset, told in ((0.0, True), (1.0, False)):  # beside 1 such changes are rounding
        column = slow + np.float32(offset)
        extended = replace(
            data,
            observations=np.column_stack([data.observations, column]),
            next_observations=np.column_stack([data.next_observations, column + change]),
            observation_space=Box(-np.inf, np.inf, (2,), np.float32),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(extended)
        words = [str(w.message) for w in caught if "counts as constant" in str(w.message)]
        assert len(words) == told
        assert all("'next_observations - observations' dimension 1" in word for word in words)


def test_rewards_that_no_network_predicts_are_not_judged() -> None:
    data = linear_system()
    spiked = data.rewards.copy()
    spiked[7] = 1e6

    def known(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return obs[:, 0]

    for rewards in (spiked, 1e-9 * data.rewards):
        with pytest.warns(UserWarning, match="'rewards'"):
            fit(replace(data, rewards=rewards))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".* the known rewards differ")
            fit(replace(data, rewards=rewards), reward_function=known)


@pytest.mark.parametrize(
    ("column", "place"),
    [("observations", "'observations' dimension 1"), ("actions", "'actions' dimension 0"),
     ("rewards", "'rewards' dimension 0")],
)  # fmt: skip
def test_a_column_in_too_large_a_unit_is_warned_of(column: str, place: str) -> None:
    """Nanometres in metres: told apart from a column that is constant but for rounding."""
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(60, 2)),
        "actions": rng.uniform(-1, 1, (60, 1)),
        "rewards": rng.normal(size=60),
    }
    if column != "rewards":
        data["rewards"] = 0.1 + 1e-9 * data["rewards"]  # in float32 the same number
        data[column][:, -1] *= 1e-8
    else:
        data["rewards"] = 1e-8 * data["rewards"]
    space = Box(-1.0, 1.0, (1,), np.float32)
    dataset = OfflineDataset.from_arrays(
        *data.values(), data["observations"] + 0.1, np.zeros(60, bool), action_space=space
    )
    with pytest.warns(UserWarning, match=rf"{place} varies by \S+e-0[89] only") as caught:
        fit(dataset)
    assert len(caught) == 1


def test_known_rewards_that_are_not_the_data_s_are_warned_of() -> None:
    data = linear_system()

    def fitted(offset: float, known: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(data.with_reward_offset(offset), replace(SMALL, max_steps=1), reward_function=known)
        return [str(warning.message) for warning in caught]

    rewards = {tuple(s): r for s, r in zip(data.observations.tolist(), data.rewards, strict=True)}

    def right(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.tensor([rewards[tuple(s)] for s in obs.tolist()])

    assert fitted(0.0, right) == []
    (message,) = fitted(-1.0, right)
    assert "the known rewards differ from the data's (with reward_offset=-1) by 1 " in message
    assert len(fitted(0.0, lambda obs, action, next_obs: 0.0 * obs[:, 0] + 1000.0)) == 1


def test_known_rewards_of_another_shape_are_refused_before_they_are_compared() -> None:
    with pytest.raises(ValueError, match=r"the reward function returned .*\(400, 1\)"):
        fit(linear_system(), reward_function=lambda obs, action, next_obs: obs)


def test_an_angle_that_wraps_is_warned_of() -> None:
    """Beside it a switch, and the angle's sine: neither is one."""
    rng = np.random.default_rng(0)
    angle = rng.normal(0.0, 0.5, 1001).cumsum()
    wrapped = np.mod(angle, 2 * np.pi) - np.pi
    switch = (rng.random(1001) < 0.1).astype(np.float64)
    states = np.column_stack([np.sin(angle), switch, wrapped]).astype(np.float32)
    actions = rng.uniform(-1, 1, (1000, 1)).astype(np.float32)
    data = OfflineDataset.from_arrays(
        states[:-1], actions, np.zeros(1000), states[1:], np.zeros(1000, bool)
    )
    jumps = int((np.abs(np.diff(wrapped)) > np.pi).sum())
    with pytest.warns(UserWarning, match="wraps") as caught:
        fit(data)
    assert len(caught) == 1
    told = f"dimension 2 changes by its whole range ({np.ptp(wrapped[:-1]):.3g}) in {jumps} rows"
    assert told in str(caught[0].message)
