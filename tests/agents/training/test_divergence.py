"""Divergence: what a run that ran away says, what it does if asked to go on, what it warns of."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics.fitting import FitDivergedError
from agents.cli import main
from agents.training.divergence import DivergenceCallback, DivergenceError, value_limit
from agents.training.progress import MetricsHistory
from tests.agents.tiny import TINY

SOUND = {"train/q_mean": 1.0, "train/ent_coef": 1.0}


def dataset(largest: float = 1.0, n_actions: int = 1) -> OfflineDataset:
    """Rewards from -largest to 1."""
    actions = np.zeros((2, n_actions))
    return OfflineDataset.from_arrays(
        np.zeros((2, 1)), actions, [1.0, -largest], np.zeros((2, 1)), [False, False]
    )


def test_the_value_limit_counts_rewards_and_entropy() -> None:
    # 2 (5 + 0.1 * 3 log 2) / (1 - 0.9)
    assert value_limit(dataset(5.0, 3), 0.9, 0.1) == pytest.approx(20 * (5 + 0.3 * math.log(2)))
    assert value_limit(dataset(5.0, 3), 1.0) == math.inf
    # a policy much narrower than uniform actions: each step costs 0.1 * 8
    assert value_limit(dataset(5.0, 3), 0.9, 0.1, entropy=8.0) == pytest.approx(20 * (5 + 0.8))


@pytest.mark.parametrize("q_mean", [math.nan, math.inf, -200.0])
def test_values_beyond_the_limit_are_a_divergence(q_mean: float) -> None:
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(5.0, 3), 0.9, history)
    callback.on_rollout_start()  # nothing trained yet
    history.write({"train/q_mean": 90.0, "train/ent_coef": 1.0}, {})
    callback.on_rollout_start()
    history.write({"train/q_mean": q_mean, "train/ent_coef": 1.0}, {})
    with pytest.raises(DivergenceError, match="after iteration 2"):
        callback.on_rollout_start()


def test_any_metric_that_is_not_finite_is_a_divergence() -> None:
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history)
    history.write({**SOUND, "adversary/objective": 0.5}, {})
    callback.on_rollout_start()
    history.write({**SOUND, "adversary/objective": math.inf}, {})
    with pytest.raises(DivergenceError, match="adversary/objective is inf after iteration 2") as e:
        callback.on_rollout_start()
    expected = {"quantity": "adversary/objective", "iteration": 2, "limit": None}
    assert {key: e.value.details[key] for key in expected} == expected
    assert e.value.details["history"] == [0.5, math.inf]


def test_with_no_numbers_nothing_goes_on() -> None:
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history, stop=False)
    history.write({**SOUND, "train/q_mean": math.nan}, {})
    with pytest.raises(DivergenceError, match="train/q_mean is nan"):
        callback.on_rollout_start()
    assert callback.found is not None


def test_if_asked_a_run_goes_on_and_tells_once() -> None:
    history, warnings = MetricsHistory(), list[str]()
    callback = DivergenceCallback(dataset(), 0.9, history, stop=False, warn=warnings.append)
    for q in (1.0, 500.0, 900.0):
        history.write({**SOUND, "train/q_mean": q}, {})
        callback.on_rollout_start()
    assert len(warnings) == 1
    assert "goes on as asked: mean Q is 500" in warnings[0]
    assert callback.found is not None
    assert callback.found["history"] == [1.0, 500.0]


def test_the_cost_of_a_narrow_policy_is_no_divergence() -> None:
    """Rewards of 1 and an entropy of -30 at alpha = 1 make a sound Q of -290."""
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history)
    history.write({**SOUND, "train/q_mean": -290.0, "train/entropy": -30.0}, {})
    callback.on_rollout_start()
    history.write({**SOUND, "train/q_mean": -700.0, "train/entropy": -30.0}, {})
    with pytest.raises(DivergenceError, match="mean Q is -700"):
        callback.on_rollout_start()


def test_entropy_that_is_in_no_target_is_in_no_limit() -> None:
    """Rewards of 1 for 10 steps; alpha and the policy's entropy are the actor's affair."""
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history, alpha=0.0)
    narrow = {"train/ent_coef": 5.0, "train/entropy": -30.0}
    history.write({**narrow, "train/q_mean": 19.0}, {})
    callback.on_rollout_start()
    history.write({**narrow, "train/q_mean": 21.0}, {})
    with pytest.raises(DivergenceError, match="give less than 20:"):
        callback.on_rollout_start()


def test_a_small_first_alpha_leaves_little_room() -> None:
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history, alpha=0.05)
    values = {"train/ent_coef": 0.02, "train/entropy": -8.0}
    history.write({**values, "train/q_mean": 20 * (1 + 0.05 * 8) - 0.1}, {})
    callback.on_rollout_start()
    history.write({**values, "train/q_mean": 20 * (1 + 0.05 * 8) + 0.1}, {})
    with pytest.raises(DivergenceError):
        callback.on_rollout_start()


def test_alpha_and_q_that_run_away_together_are_warned_of() -> None:
    """The limit goes with alpha: such a run never leaves it."""
    history, warnings = MetricsHistory(), list[str]()
    callback = DivergenceCallback(dataset(), 0.9, history, alpha=0.1, warn=warnings.append)
    for i in range(8):  # rewards of 1, an entropy of -2
        alpha = 0.1 * 2**i
        values = {"train/ent_coef": alpha, "train/entropy": -2.0, "train/q_mean": -20 * alpha}
        history.write(values, {})
        callback.on_rollout_start()
    assert len(warnings) == 1
    assert "has risen to 0.8" in warnings[0]


def test_an_alpha_that_falls_from_its_rounded_start_has_not_risen() -> None:
    history, warnings = MetricsHistory(), list[str]()
    callback = DivergenceCallback(dataset(), 0.9, history, alpha=0.05, warn=warnings.append)
    for alpha in (float(np.float32(0.05)), 0.0499):  # the first is above 0.05
        history.write({"train/ent_coef": alpha, "train/entropy": -80.0, "train/q_mean": 0.0}, {})
        callback.on_rollout_start()
    assert warnings == []


def test_entropy_may_have_cost_more_before() -> None:
    """Q still holds what was paid at alpha = 5 and an entropy of -30."""
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history)
    for alpha, entropy, q in ((5.0, -30.0, -1.0), (1.0, -1.0, -1400.0)):
        history.write({"train/q_mean": q, "train/ent_coef": alpha, "train/entropy": entropy}, {})
        callback.on_rollout_start()
    history.write({**SOUND, "train/q_mean": -3200.0}, {})
    with pytest.raises(DivergenceError, match="mean Q is -3200"):
        callback.on_rollout_start()


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("adversary/holdout_nll", (2.0, 3.0, 4.1), "fits held-out data worse"),
        ("adversary/holdout_nll", (5.0, 2.0, 4.1), "fits held-out data worse"),
        ("adversary/holdout_nll", (-27.0, -26.0, -25.9), "fits held-out data worse"),
        ("adversary/holdout_nll", (0.02, 0.05, 1.1), "fits held-out data worse"),
        ("adversary/advantage_std", (1.0, 0.01, 0.0009), "advantage hardly varies"),
        ("model/reward_mean", (0.0, 1.0, 1.1), "the policy exploits the model"),
        ("model/reward_mean", (0.0, -1.0, -1.1), "the policy has left the data"),
    ],
)
def test_only_the_last_value_is_worth_a_warning(
    key: str, values: tuple[float, ...], message: str
) -> None:
    history, warnings = MetricsHistory(), list[str]()
    callback = DivergenceCallback(dataset(), 0.9, history, warn=warnings.append)
    counts = []
    for value in (*values, values[-1]):
        history.write({**SOUND, key: value}, {})
        callback.on_rollout_start()
        counts.append(len(warnings))
    assert counts == [0, 0, 1, 1]
    assert message in warnings[0]


@pytest.mark.parametrize("reward", [0.0, 1.0, -3000.0])
def test_a_constant_reward_is_predicted_up_to_rounding(reward: float) -> None:
    constant = OfflineDataset.from_arrays(
        np.zeros((2, 1)), np.zeros((2, 1)), [reward] * 2, np.zeros((2, 1)), [False, False]
    )
    history, warnings = MetricsHistory(), list[str]()
    callback = DivergenceCallback(constant, 0.9, history, warn=warnings.append)
    scale = max(1.0, abs(reward))
    for sign in (-1, 1):
        history.write({**SOUND, "model/reward_mean": reward + sign * 1e-6 * scale}, {})
        callback.on_rollout_start()
    assert not warnings
    history.write({**SOUND, "model/reward_mean": reward + 1e-2 * scale}, {})
    callback.on_rollout_start()
    assert len(warnings) == 1


RUNAWAY = ("agent.gamma=0.0", "agent.critic_learning_rate=10", "agent.updates=60", "iterations=3")


def test_a_run_that_ran_away_exits_with_3_and_keeps_its_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "pendulum-random", *TINY, *RUNAWAY, f"out={tmp_path / 'r'}"]) == 3
    assert "the critics diverged" in capsys.readouterr().err
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["status"] == "diverged"
    found = result["divergence"]
    assert found["quantity"] == "train/q_mean"
    assert abs(found["value"]) > found["limit"]
    assert len(found["history"]) == found["iteration"]


def test_on_divergence_continue_finishes_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, *RUNAWAY, f"out={tmp_path / 'r'}", "--on-divergence", "continue"]
    assert main(["train", "pendulum-random", *arguments]) == 0
    assert capsys.readouterr().err.count("goes on as asked") == 1
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (result["status"], result["iterations"]) == ("finished", 3)
    assert result["divergence"]["quantity"] == "train/q_mean"
    assert main(["train", "--resume", str(tmp_path / "r"), "iterations=4"]) == 0
    again = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (again["iterations"], again["divergence"]) == (4, result["divergence"])


def test_the_iteration_is_the_run_s_where_a_number_came_later() -> None:
    """The adversary's begin with the second iteration."""
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history)
    history.write(SOUND, {})
    history.write({**SOUND, "adversary/objective": math.nan}, {})
    with pytest.raises(DivergenceError, match="is nan after iteration 2") as e:
        callback.on_rollout_start()
    assert e.value.details["iteration"] == 2


@pytest.mark.parametrize(
    ("settings", "quantity"),
    [
        (["cloning.epochs=2", "cloning.learning_rate=1e30"], "cloning/nll"),
        (["model.fit_learning_rate=1e30"], "fit/holdout_mse"),
    ],
)
def test_a_fit_or_a_clone_that_runs_away_is_a_divergence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], quantity: str
) -> None:
    words = ["train", "pendulum-random", *TINY, *settings]
    assert main([*words, f"out={tmp_path / 'r'}"]) == 3
    assert "diverged: look for outliers" in capsys.readouterr().err
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (result["status"], result["iterations"]) == ("diverged", 0)
    found = result["divergence"]
    assert (found["quantity"], found["iteration"], found["value"]) == (quantity, 0, None)
    assert found["history"]


def test_errors_come_whole_from_other_processes() -> None:
    fit = pickle.loads(pickle.dumps(FitDivergedError("m", "q", [1.0])))
    assert (str(fit), fit.quantity, fit.history) == ("m", "q", [1.0])
    error = pickle.loads(pickle.dumps(DivergenceError("m", "q", [1.0], 0.5, 1)))
    assert (str(error), error.details["limit"]) == ("m", 0.5)


def test_seeds_that_all_diverge_exit_as_one_does(tmp_path: Path) -> None:
    words = ["train", "pendulum-random", *TINY, "model.fit_learning_rate=1e30"]
    assert main([*words, "seeds=2", f"out={tmp_path / 'r'}"]) == 3


def test_returns_of_the_real_environment_are_no_divergence() -> None:
    """They do not tell of the critics, and no later one is needed to go on."""
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(), 0.9, history)
    history.write({**SOUND, "eval/return_mean": math.nan}, {})
    callback.on_rollout_start()
    assert callback.found is None
