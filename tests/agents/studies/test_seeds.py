"""Several seeds at once: ordinary run folders, one failure among them, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.studies import processes
from agents.studies.planned_runs import read_planned
from agents.studies.seeds import prepare_seeds
from agents.training.config import load_config
from agents.training.experiment import prepare, train
from agents.training.results import seeds_table
from agents.training.run_folder import RunFolder
from tests.agents.rules import rule_that
from tests.agents.tiny import TINY

ROOT = Path(__file__).resolve().parents[3]
# What a shell starts in the background is deaf to Ctrl-C; this program is not.
MAIN = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from agents.cli import main\n"
    "sys.exit(main(sys.argv[1:]))"
)


def test_each_seed_is_what_a_run_of_that_seed_alone_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    assert main(["train", "pendulum-random", *TINY, "seed=3", "seeds=2", f"out={out}"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["seed-3", "seed-4", "sweep.json"]
    assert sorted(read_planned(out)) == ["seed-3", "seed-4"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out)
    assert [line.split()[0] for line in lines[-6:-1]] == ["seed", "3", "4", "mean", "std"]

    again = load_config(out / "seed-4" / "config.yaml")
    assert (again.seed, again.seeds, again.n_threads) == (4, None, 1)
    alone = load_config("pendulum-random", [*TINY, "seed=4", f"out={tmp_path / 'alone'}"])
    folder = RunFolder(train(alone, progress=False))
    assert folder.evaluations.read_bytes() == (out / "seed-4" / "evaluations.csv").read_bytes()
    other = (out / "seed-3" / "evaluations.csv").read_bytes()
    assert other != folder.evaluations.read_bytes()


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = "raise RuntimeError('no rule for seed 0')"
    of_first = f"\n        if multiprocessing.current_process().name == 'seed-0': {fails}"
    rule = rule_that(of_first, "first_fails", tmp_path, monkeypatch)
    out = tmp_path / "out"
    words = ["seeds=2", f"out={out}", rule]
    assert main(["train", "pendulum-random", *TINY, *words]) == 1
    printed, errors = capfd.readouterr()
    assert "failed: RuntimeError: no rule for seed 0" in printed
    assert printed.splitlines()[-1] == str(out)
    assert errors.splitlines()[-1] == "adv-worldmodel: not finished: seed 0"
    statuses = [RunFolder(out / f"seed-{s}").read_result()["status"] for s in (0, 1)]
    assert statuses == ["failed", "finished"]


def test_one_run_is_not_several() -> None:
    with pytest.raises(ValueError, match="seeds = 2 asks for several runs"):
        prepare(load_config("pendulum-random", ["seeds=2"]))


def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 8)
    for n, threads, at_once in ((2, 4, 2), (3, 2, 3), (8, 1, 8), (20, 1, 8)):
        words = ["n_threads=null", "device=cpu", f"seeds={n}"]
        plan = prepare_seeds(load_config("pendulum-random", words))
        assert (len(plan.seeds), plan.n_threads, plan.at_once) == (n, threads, at_once)
    plan = prepare_seeds(load_config("pendulum-random", ["n_threads=3", "seeds=4"]))
    assert plan.n_threads == 3


def test_the_table_averages_over_the_seeds_that_finished() -> None:
    results: dict[int, dict[str, Any]] = {
        0: {"status": "finished", "return_mean": 10.0, "score": 1.0},
        1: {"status": "finished", "return_mean": 20.0, "score": None},
        2: {"status": "diverged", "return_mean": -999.0, "score": None},
        3: {},
    }
    errors = {2: "diverged: mean Q", 3: "not started"}
    assert [line.split() for line in seeds_table(results, errors)] == [
        ["seed", "return", "score"],
        ["0", "10.0", "1.0"],
        ["1", "20.0", "-"],
        ["2", "-999.0", "-", "diverged:", "mean", "Q"],
        ["3", "-", "-", "not", "started"],
        ["mean", "15.0", "1.0"],
        ["std", "7.07", "-"],  # sqrt(50)
    ]


def wait_for(paths: list[Path], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 150
    while not all(path.is_file() and path.read_text().count("\n") > 1 for path in paths):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_runs_with_their_files_written(
    number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["seeds=2", "iterations=100000", f"out={out}"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "train", "pendulum-random", *TINY, *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    folders = [RunFolder(out / f"seed-{s}") for s in (0, 1)]
    try:
        wait_for([folder.evaluations for folder in folders], process)
        if number == signal.SIGINT:  # a terminal's Ctrl-C reaches the whole group
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        printed, errors = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    code, word = (130, "interrupted") if number == signal.SIGINT else (143, "terminated")
    assert process.returncode == code
    assert printed.splitlines()[-1] == str(out)
    assert errors.splitlines()[-1] == f"adv-worldmodel: {word}"
    assert "Traceback" not in errors
    for folder in folders:
        assert folder.read_result()["status"] == "interrupted"
        folder.load_policy("cpu")
        assert not list(folder.path.glob(".*"))  # nothing is left that was being written
