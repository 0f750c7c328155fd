"""Names, atomic writes and summaries of a run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adv_worldmodel import OfflineDataset
from agents import progress
from agents.divergence import DivergenceCallback, DivergenceError, value_limit
from agents.evaluation import EvaluationRow
from agents.processes import RunProcesses
from agents.progress import MetricsHistory, PhaseClock, ProgressCallback, duration
from agents.results import q_summary, return_summary, returns_table
from agents.run_folder import new_run_folder, signals_held, write_json, written_aside


def row(iteration: int, mean: float, std: float) -> EvaluationRow:
    return {
        "iteration": iteration,
        "return_mean": mean,
        "return_std": std,
        "length_mean": 1.0,
        "score": None,
    }


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "policy.zip"
    target.write_text("old")

    def write_half() -> None:
        with written_aside(target) as aside:
            assert aside.suffix == ".zip"  # SB3 would add it to another name
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with written_aside(target) as aside:
        aside.mkdir()
        (aside / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_json_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    content = {"a": math.nan, "b": [math.inf, np.float32(0.5)], "c": np.arange(2), "d": (True, "x")}
    write_json(tmp_path / "x.json", content)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"a": None, "b": [None, 0.5], "c": [0, 1], "d": [True, "x"]}


def test_two_runs_of_one_second_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {new_run_folder(None, "name", 3).path.name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("name-3-2") for name in names)


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


def dataset(largest: float) -> OfflineDataset:
    return OfflineDataset.from_arrays(
        np.zeros((2, 1)), np.zeros((2, 3)), [1.0, -largest], np.zeros((2, 1)), [False, False]
    )


def test_the_value_limit_counts_rewards_and_entropy() -> None:
    # 2 (5 + 0.1 * 3 log 2) / (1 - 0.9)
    assert value_limit(dataset(5.0), 0.9, 0.1) == pytest.approx(20 * (5 + 0.3 * math.log(2)))
    assert value_limit(dataset(5.0), 1.0) == math.inf
    # a policy much narrower than uniform actions: each step costs 0.1 * 8
    assert value_limit(dataset(5.0), 0.9, 0.1, entropy=8.0) == pytest.approx(20 * (5 + 0.8))


@pytest.mark.parametrize("q_mean", [math.nan, math.inf, -200.0])
def test_values_beyond_the_limit_are_a_divergence(q_mean: float) -> None:
    history = MetricsHistory()
    callback = DivergenceCallback(dataset(5.0), 0.9, history)
    callback.on_rollout_start()  # nothing trained yet
    history.write({"train/q_mean": 90.0, "train/alpha": 1.0}, {})
    callback.on_rollout_start()
    history.write({"train/q_mean": q_mean, "train/alpha": 1.0}, {})
    with pytest.raises(DivergenceError, match="after iteration 2"):
        callback.on_rollout_start()


def test_the_history_keeps_numbers_by_key() -> None:
    history = MetricsHistory()
    history.write({"a": 1, "b": np.float32(2.0), "c": "text"}, {})
    history.write({"a": 3}, {})
    assert history.series("a") == [1.0, 3.0]
    assert history.series("b") == [2.0]
    assert history.series("c") == []
    assert history.latest == {"a": 3}
    again = MetricsHistory(json.loads(json.dumps(history.packed())))
    assert again.rows == history.rows == [{"a": 1, "b": 2.0}, {"a": 3}]


def test_the_clock_adds_up_what_comes_again() -> None:
    clock = PhaseClock({"data": 2.0})
    for _ in range(2):
        with clock.phase("fit"):
            pass
    clock.lap(None)
    clock.lap("agent")
    report = clock.report()
    assert set(report) == {"data", "fit", "agent", "total"}
    assert report["data"] == 2.0
    assert report["total"] >= 2.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (0.2, "0:00")]
)
def test_durations_are_read_as_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_takes_effect_after_the_files_are_written() -> None:
    written = []

    def write() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            written.append("whole")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["whole"]
    with pytest.raises(KeyboardInterrupt):  # and the handler is the old one again
        signal.raise_signal(signal.SIGINT)


def test_a_reader_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adv-worldmodel train ... 2>&1 | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        bar = ProgressCallback(3, lambda: 3, lambda: "")
        bar._on_training_end()
        RunProcesses({}, 1, progress=True).say("a line")
        with pytest.raises(BrokenPipeError):
            print("a line", flush=True)


def test_the_time_left_is_that_of_the_iterations_since_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was resumed at 1000 of 2000 and does one in a minute needs 990 more."""
    now, done = [0.0], [1000]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressCallback(2000, lambda: done[0], lambda: "")
    bar._on_training_start()
    bar._on_rollout_start()  # nothing is known yet
    now[0], done[0] = 600.0, 1010
    bar._on_rollout_start()
    assert capsys.readouterr().err == "iteration 1010/2000, 16:30:00 left, \n"
