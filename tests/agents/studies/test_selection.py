"""The offline choice on made-up runs, what it cost, and when it says not to be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.studies.episodes_in_fit import EpisodesInFit
from agents.studies.run_groups import find_runs, group_runs
from agents.studies.selection import Selection, report, select
from agents.studies.sweep import PRESETS
from tests.agents.made_up_runs import make_run
from tests.agents.tiny import TINY


def selection(folder: Path) -> Selection:
    (found,) = select(group_runs(find_runs([folder])))
    return found


def candidates(folder: Path, **numbers: tuple[float, float, float]) -> None:
    """Runs by horizon (`k2=`): Q_avg, Q_var and return."""
    for name, (q_avg, q_var, value) in numbers.items():
        known = {"q_avg": q_avg, "q_var": q_var, "return_mean": value}
        make_run(folder / name, f"rollout.horizon={name[1:]}", **known)


def test_the_least_sum_of_q_and_its_variance_is_chosen(tmp_path: Path) -> None:
    # sums 140, 130, 150: neither the least Q nor the least variance nor the best return
    candidates(tmp_path, k2=(100, 40, 900), k3=(120, 10, 700), k5=(149, 1, 800))
    chosen = selection(tmp_path)
    assert chosen.choice is not None
    assert chosen.choice.label == "rollout.horizon=3"
    assert chosen.regret == 200
    assert chosen.score_regret is None
    assert chosen.doubts == ()
    assert report(chosen).splitlines()[-2:] == [
        "choice    rollout.horizon=3",
        "cost      200.0 in return against the best, rollout.horizon=2",
    ]


def test_what_a_choice_costs_is_said_in_score_too(tmp_path: Path) -> None:
    known = {"q_var": 0.0, "score_reference": "which one"}
    make_run(tmp_path / "a", "rollout.horizon=2", q_avg=1.0, return_mean=300, score=30.0, **known)
    make_run(tmp_path / "b", "rollout.horizon=5", q_avg=2.0, return_mean=500, score=50.0, **known)
    chosen = selection(tmp_path)
    assert (chosen.regret, chosen.score_regret) == (200, 20)
    assert "20.0 in score" in report(chosen)


def test_the_best_choice_costs_nothing(tmp_path: Path) -> None:
    candidates(tmp_path, k2=(100, 0, 900), k5=(120, 0, 700))
    assert selection(tmp_path).regret == 0
    assert "cost      none" in report(selection(tmp_path))


def test_a_candidate_is_judged_by_the_mean_over_its_seeds(tmp_path: Path) -> None:
    for seed, q_short, q_long in [(0, 10, 50), (1, 200, 60)]:
        known: dict[str, Any] = {"q_var": 0, "return_mean": 1.0, "score": 10.0}
        make_run(tmp_path / f"s{seed}", f"seed={seed}", "rollout.horizon=2", q_avg=q_short, **known)
        make_run(tmp_path / f"l{seed}", f"seed={seed}", "rollout.horizon=5", q_avg=q_long, **known)
    chosen = selection(tmp_path)
    assert chosen.choice is not None
    assert (chosen.choice.label, chosen.choice.heuristic) == ("rollout.horizon=5", 55)  # not 105
    assert chosen.score_regret == 0


def test_a_run_that_ran_away_is_not_chosen_and_is_named(tmp_path: Path) -> None:
    candidates(tmp_path, k2=(100, 0, 900), k3=(110, 0, 800))
    away = {"q_avg": -1e12, "q_var": 0, "return_mean": -1.0, "error": "mean Q is -1e12"}
    make_run(tmp_path / "k5", "rollout.horizon=5", status="diverged", **away)
    chosen = selection(tmp_path)
    assert chosen.choice is not None
    assert chosen.choice.label == "rollout.horizon=2"
    assert chosen.doubts == ("rollout.horizon=5: seed 0 diverged (mean Q is -1e12)",)
    assert "The choice cannot be trusted:" in report(chosen)


def test_a_run_that_ran_away_and_went_on_is_not_chosen_either(tmp_path: Path) -> None:
    candidates(tmp_path, k2=(100, 0, 900), k3=(110, 0, 800))
    away = {"q_avg": -1e12, "q_var": 0, "return_mean": -1.0, "divergence": {"quantity": "q"}}
    make_run(tmp_path / "k5", "rollout.horizon=5", "on_divergence=continue", **away)
    chosen = selection(tmp_path)
    assert chosen.choice is not None
    assert chosen.choice.label == "rollout.horizon=2"
    assert chosen.doubts == ("rollout.horizon=5: seed 0 diverged, and went on",)


def test_a_candidate_s_numbers_are_of_the_same_runs(tmp_path: Path) -> None:
    """Of those that did not run away: seed 0 of each, whose sums are the same."""
    for horizon, value in ((2, 10.0), (5, 30.0)):
        known: dict[str, Any] = {"q_avg": 1.0, "q_var": 0.0, "return_mean": value}
        make_run(tmp_path / f"k{horizon}", f"rollout.horizon={horizon}", **known)
    away = {"q_avg": 1e9, "q_var": 0, "return_mean": -500.0, "divergence": {"quantity": "q"}}
    more = ("rollout.horizon=5", "seed=1", "on_divergence=continue")
    make_run(tmp_path / "away", *more, **away)
    chosen = selection(tmp_path)
    assert [(c.seeds, c.mean_return) for c in chosen.candidates] == [(1, 10.0), (1, 30.0)]
    assert chosen.regret == 20.0
    assert "rollout.horizon=2 and rollout.horizon=5 have the same Q_avg + Q_var" in chosen.doubts


def test_missing_runs_are_named(tmp_path: Path) -> None:
    candidates(tmp_path, k2=(100, 0, 900), k5=(110, 0, 800))
    make_run(tmp_path / "more", "rollout.horizon=5", "seed=1", q_avg=1.0, q_var=1.0)
    make_run(tmp_path / "killed", "rollout.horizon=5", "seed=2", status="running")
    assert selection(tmp_path).doubts == (
        "rollout.horizon=2: no run of seed 1, 2",
        "rollout.horizon=5: seed 2 is running, or was killed",
    )


def test_short_runs_are_not_to_be_trusted(tmp_path: Path) -> None:
    numbers = {"q_avg": 1.0, "q_var": 1.0, "return_mean": 1.0}
    make_run(tmp_path / "a", "rollout.horizon=2", iterations=150, **numbers)
    make_run(tmp_path / "b", "rollout.horizon=5", iterations=199, **(numbers | {"q_avg": 2.0}))
    (doubt,) = selection(tmp_path).doubts
    assert doubt.startswith("Q_var is over the last 100 iterations: in a run of 150 it holds how")


def test_values_that_mean_different_things_are_not_compared(tmp_path: Path) -> None:
    numbers = {"q_avg": 60.0, "q_var": 1.0, "return_mean": 1.0}
    make_run(tmp_path / "a", "agent.gamma=0.9", q_ceiling=50.0, **numbers)
    make_run(tmp_path / "b", "agent.gamma=0.99", q_ceiling=500.0, **(numbers | {"q_avg": 61.0}))
    differs, impossible = selection(tmp_path).doubts
    assert differs.startswith("agent.gamma differs")
    assert impossible.startswith("agent.gamma=0.9: seed 0 has a mean Q of 60.0, above the 50.0")


@pytest.mark.parametrize(
    "setting",
    ["agent.ent_coef=0.1", "agent.target_entropy=-3", "agent.cloning_weight=0.02",
     "agent.n_critics=4"],
)  # fmt: skip
def test_values_of_other_entropy_costs_or_minima_are_not_compared(
    tmp_path: Path, setting: str
) -> None:
    numbers = {"q_avg": 1.0, "q_var": 1.0, "return_mean": 1.0}
    make_run(tmp_path / "a", **numbers)
    make_run(tmp_path / "b", setting, **(numbers | {"q_avg": 2.0}))
    (doubt,) = selection(tmp_path).doubts
    assert doubt.startswith(f"{setting.partition('=')[0]} differs between candidates")


def test_the_paper_s_candidates_are_compared(tmp_path: Path) -> None:
    numbers = {"q_var": 1.0, "return_mean": 1.0}
    for number, settings in enumerate(PRESETS["paper"]):
        make_run(tmp_path / str(number), *settings, q_avg=float(number), **numbers)
    chosen = selection(tmp_path)
    assert len(chosen.candidates) == 3
    assert chosen.doubts == ()


def in_fit(folder: Path, doubts: dict[str, str] | None = None, **returns: float) -> Selection:
    """The choice by these returns of runs in their fits, by the names of their folders."""
    judged = EpisodesInFit(
        {folder / name: value for name, value in returns.items()},
        standard_errors=dict.fromkeys((folder / name for name in returns), 1.0),
        doubts={folder / name: doubt for name, doubt in (doubts or {}).items()},
    )
    (found,) = select(group_runs(find_runs([folder])), in_fit=judged)
    return found


def test_the_largest_return_in_the_fit_is_chosen_whatever_q_is(tmp_path: Path) -> None:
    """Values of another discount, and in short runs, which the heuristic could not compare."""
    known = {"q_var": 0.0, "iterations": 50}
    make_run(tmp_path / "a", "agent.gamma=0.9", q_avg=10.0, return_mean=300, **known)
    make_run(tmp_path / "b", "agent.gamma=0.99", q_avg=99.0, return_mean=500, **known)
    make_run(tmp_path / "c", "agent.gamma=0.95", return_mean=600, iterations=50)  # no Q at all
    chosen = in_fit(tmp_path, a=200.0, b=400.0, c=390.0)
    assert chosen.choice is not None
    assert (chosen.choice.label, chosen.choice.in_fit) == ("agent.gamma=0.99", 400.0)
    assert chosen.regret == 100
    assert chosen.doubts == ()
    text = report(chosen)
    assert "Q_avg" not in text
    assert "| agent.gamma=0.95 | 1     | 390.0      | 600.0       |" in text


def test_what_the_episodes_do_not_tell_from_the_choice_is_named(tmp_path: Path) -> None:
    """Means of two runs each: a standard error of sqrt(1 + 1) / 2, of a difference 1."""
    for name, horizon, seed in (("a0", 2, 0), ("a1", 2, 1), ("b0", 5, 0), ("b1", 5, 1)):
        make_run(tmp_path / name, f"rollout.horizon={horizon}", f"seed={seed}", return_mean=1.0)
    chosen = in_fit(tmp_path, a0=10.0, a1=20.0, b0=10.0, b1=16.1)
    assert [c.label for c in chosen.as_good] == ["rollout.horizon=5"]
    assert "as good   rollout.horizon=5: the episodes do not tell it" in report(chosen)
    assert in_fit(tmp_path, a0=10.0, a1=20.0, b0=10.0, b1=15.9).as_good == ()


def test_runs_are_judged_in_the_fit_by_the_mean_over_their_seeds(tmp_path: Path) -> None:
    for name, *settings in (("a0", "2", "0"), ("a1", "2", "1"), ("b0", "5", "0"), ("b1", "5", "1")):
        horizon, seed = settings
        make_run(tmp_path / name, f"rollout.horizon={horizon}", f"seed={seed}", return_mean=1.0)
    chosen = in_fit(tmp_path, a0=0.0, a1=100.0, b0=60.0, b1=50.0)
    assert chosen.choice is not None
    assert (chosen.choice.label, chosen.choice.in_fit) == ("rollout.horizon=5", 55.0)


def test_what_cannot_be_judged_in_the_fit_is_a_doubt(tmp_path: Path) -> None:
    for name, horizon in (("a", 2), ("b", 3), ("c", 5)):
        make_run(tmp_path / name, f"rollout.horizon={horizon}", "model.max_steps=9")
    make_run(tmp_path / "d", "rollout.horizon=5", "model.max_steps=10", status="diverged")
    away = {"divergence": {"quantity": "q"}}
    more = ("model.max_steps=9", "on_divergence=continue")
    make_run(tmp_path / "e", "rollout.horizon=7", *more, **away)
    doubts = {"b": "cannot be judged (no policy)", "c": "has episodes that cannot be"}
    chosen = in_fit(tmp_path, doubts, a=1.0, c=1.0, d=3.0, e=4.0)
    assert chosen.choice is not None
    assert chosen.choice.label == "rollout.horizon=2"
    assert list(chosen.doubts) == [
        "model.max_steps differs between candidates: they are judged in different models",
        "rollout.horizon=3: seed 0 cannot be judged (no policy)",
        "rollout.horizon=5: seed 0 has episodes that cannot be",
        "rollout.horizon=7: seed 0 diverged, and went on",
        "model.max_steps=10, rollout.horizon=5: seed 0 diverged",
        "rollout.horizon=2 and rollout.horizon=5 have the same return in the fit",
    ]


def test_values_of_runs_of_other_lengths_are_not_compared(tmp_path: Path) -> None:
    for iterations, q in ((300, 5.0), (2000, 60.0)):
        make_run(
            tmp_path / str(iterations), f"iterations={iterations}", iterations=iterations, q_avg=q,
            q_var=0.0,
        )  # fmt: skip
    (found,) = select(group_runs(find_runs([tmp_path])))
    assert list(found.doubts) == [
        "iterations differs between candidates: their values cannot be compared"
    ]


def test_the_command_line_chooses_in_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for horizon in (2, 5):
        words = [*TINY, f"rollout.horizon={horizon}", f"out={tmp_path / str(horizon)}"]
        assert main(["train", "pendulum-random", *words]) == 0
    (tmp_path / "5" / "world_model" / "model.json").unlink()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "2"), "--in-model", "fit", "--episodes", "3"]) == 0
    found = capsys.readouterr().out.partition("return       ")[2].split()[0]
    assert main(["select", str(tmp_path), "--in-fit", "--episodes", "3"]) == 0
    captured = capsys.readouterr()
    assert f"{tmp_path / '2'}: {found} (standard error " in captured.err
    assert ") in its fit, 200.0 steps\n" in captured.err
    assert f"| rollout.horizon=2 | 1     | {found} " in captured.out
    assert "choice    rollout.horizon=2\n" in captured.out
    assert "  rollout.horizon=5: seed 0 cannot be judged (" in captured.out
    words = ["select", str(tmp_path), "--in-fit", "--dataset", "halfcheetah-medium-replay"]
    assert main(words) == 1  # other data than they were trained on
    assert "is not read as when" in capsys.readouterr().out
    assert main(["select", str(tmp_path), "--episodes", "3"]) == 2
    assert "--episodes, --dataset and --trust are for --in-fit" in capsys.readouterr().err


def test_nothing_to_choose_from_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates(tmp_path / "good", k2=(100, 0, 900), k5=(110, 0, 800))
    assert main(["select", str(tmp_path / "good")]) == 0
    assert "choice    rollout.horizon=2" in capsys.readouterr().out
    make_run(tmp_path / "bad", "dataset=another", status="diverged")
    assert main(["select", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err == "adv-worldmodel: nothing to choose from on another\n"
    assert "choice    rollout.horizon=2" in captured.out  # on the other data set
    assert "choice    none" in captured.out
    assert main(["select", str(tmp_path / "nowhere")]) == 2
