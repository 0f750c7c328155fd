"""What a run amounts to: its returns, its values, and the table of them."""

from __future__ import annotations

import pytest

from agents.training.evaluation import EvaluationRow
from agents.training.results import q_summary, return_summary, returns_table


def row(iteration: int, mean: float, std: float) -> EvaluationRow:
    return {
        "iteration": iteration,
        "return_mean": mean,
        "return_std": std,
        "length_mean": 1.0,
        "score": None,
    }


def test_the_last_evaluations_are_averaged() -> None:
    rows = [row(1, 1000.0, 100.0), row(2, 10.0, 1.0), row(3, 20.0, 3.0)]
    summary = return_summary(rows, 2, "Pendulum-v1")
    assert summary["return_mean"] == 15.0
    assert summary["return_std"] == 2.0
    assert summary["evaluations_used"] == 2
    assert summary["score"] is None


def test_a_score_says_its_reference() -> None:
    # D4RL's hopper expert: 3234.3
    summary = return_summary([row(1, 3234.3, 0.0)], 10, "Hopper-v5")
    assert summary["score"] == pytest.approx(100.0)
    assert "not comparable" in summary["score_reference"]


def test_q_var_is_over_the_last_hundred_iterations() -> None:
    # 100 values alternating between 1 and 3: mean 2, variance 1; what came before does not count
    q_means = [50.0] * 20 + [1.0, 3.0] * 50
    summary = q_summary(q_means, largest_reward=2.0, gamma=0.9, ends=False)
    assert summary == {"q_avg": 3.0, "q_var": 1.0, "q_ceiling": pytest.approx(20.0)}


@pytest.mark.parametrize(("ends", "ceiling"), [(False, -10.0), (True, 0.0)])
def test_a_task_that_can_end_can_be_worth_more_than_its_rewards(ends: bool, ceiling: float) -> None:
    assert q_summary([-5.0], -1.0, 0.9, ends=ends)["q_ceiling"] == pytest.approx(ceiling)


def test_no_training_no_numbers() -> None:
    nothing = {"q_avg": None, "q_var": None, "q_ceiling": None}
    assert q_summary([], 1.0, 1.0, ends=False) == nothing
    assert return_summary([], 10, "Hopper-v5")["return_mean"] is None


def test_the_table_leaves_out_what_is_not_known() -> None:
    result = {
        "env_id": "Pendulum-v1",
        "behaviour_return": -1200.0,
        "cloning_return": None,
        "return_mean": -150.04,
        "score": None,
    }
    assert [line.split() for line in returns_table(result)] == [
        ["return"],
        ["behaviour", "-1200.0"],
        ["RAMBO", "-150.0"],
    ]


def test_the_table_scores_every_line() -> None:
    result = {
        "env_id": "Hopper-v5",
        "behaviour_return": -20.272305,
        "cloning_return": 3234.3,
        "return_mean": (3234.3 - 20.272305) / 2,
        "score": 50.0,
        "score_reference": "which",
    }
    lines = returns_table(result)
    assert [line.split()[-1] for line in lines[1:4]] == ["0.0", "100.0", "50.0"]
    assert lines[4] == "score: which"
