"""Runs in processes of their own: what they could not say themselves is said for them."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from agents.cli import main
from agents.studies.processes import RunProcesses
from agents.training.config import load_config
from agents.training.run_folder import RunFolder, run_locked
from tests.agents.made_up_runs import make_run, write_log
from tests.agents.rules import rule_that
from tests.agents.tiny import TINY


def test_a_process_that_dies_leaves_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = [*TINY, rule_that("os._exit(9)", "deadly", tmp_path, monkeypatch), f"out={out}"]
    runs = RunProcesses({"one": load_config("pendulum-random", words)}, 1, progress=True)
    assert runs.errors() == {"one": "not started"}
    runs.run()
    error = "its process ended with exit code 9"
    assert runs.errors() == {"one": f"failed: {error}"}
    assert capsys.readouterr().out.split(maxsplit=1)[1] == f"failed: {error}\n"
    result = RunFolder(out).read_result()
    assert (result["status"], result["error"]) == ("failed", error)
    assert result["behaviour_return"] < -1000  # what the run had written stays


def test_a_full_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full = "raise OSError(28, 'No space left on device')"
    words = [*TINY, rule_that(full, "full_disk", tmp_path, monkeypatch), f"out={tmp_path / 'run'}"]
    runs = RunProcesses({"one": load_config("pendulum-random", words)}, 1, progress=True)
    runs.run()
    assert runs.errors() == {"one": "failed: [Errno 28] No space left on device"}
    assert "Traceback" not in capfd.readouterr().err


def test_a_failure_that_cannot_be_written_down_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    outs = {"lost": tmp_path / "file" / "run", "good": tmp_path / "good"}
    configs = {n: load_config("pendulum-random", [*TINY, f"out={o}"]) for n, o in outs.items()}
    runs = RunProcesses(configs, 1, progress=True)
    runs.run()
    assert list(runs.errors()) == ["lost"]
    assert RunFolder(outs["good"]).read_result()["status"] == "finished"
    assert "good         finished" in capsys.readouterr().out


def test_a_finished_run_that_cannot_go_on_stays_finished(tmp_path: Path) -> None:
    """Its results are as good as before."""
    data, out = tmp_path / "log.npz", tmp_path / "run"
    write_log(data)
    words = [*TINY, f"dataset={data}", "data.env_id=Pendulum-v1", f"out={out}"]
    assert main(["train", "base", *words]) == 0
    before = RunFolder(out).result.read_bytes()
    data.rename(tmp_path / "moved.npz")
    runs = RunProcesses({"one": load_config("base", [*words, "iterations=2"])}, 1, progress=False)
    runs.run()
    assert "log.npz does not exist" in runs.errors()["one"]
    assert RunFolder(out).result.read_bytes() == before


def test_the_result_of_before_does_not_speak_for_a_process_that_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "pendulum-random", *TINY, f"out={out}"]) == 0
    config = load_config("pendulum-random", [*TINY, f"out={out}", "iterations=9"])
    for later, error in ((60.0, "its process ended with exit code -9"), (-60.0, None)):
        runs = RunProcesses({"one": config}, 1, progress=False)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        sender.close()  # it said nothing
        runs._receivers["one"], runs._began["one"] = receiver, time.time() + later
        runs.processes["one"] = multiprocessing.get_context("spawn").Process()
        runs._receive("one", -9)
        assert runs._error("one") == error


def test_a_run_that_cannot_go_on_and_whose_result_is_damaged_stops_no_other(tmp_path: Path) -> None:
    lost = make_run(tmp_path / "lost")  # without a checkpoint
    lost.result.write_text("{")
    lost.progress.write_text("time/iteration\n1\n")
    outs = {"lost": lost.path, "good": tmp_path / "good"}
    configs = {n: load_config("pendulum-random", [*TINY, f"out={o}"]) for n, o in outs.items()}
    runs = RunProcesses(configs, 1, progress=False)
    runs.run()
    assert list(runs.errors()) == ["lost"]
    assert lost.read_result()["status"] == "failed"


def test_a_run_goes_on_where_the_sweep_says(tmp_path: Path) -> None:
    """On a machine without the GPU that it began on."""
    words = [*TINY, f"out={tmp_path / 'run'}"]
    assert main(["train", "pendulum-random", *words]) == 0
    folder = RunFolder(tmp_path / "run")
    began = folder.config.read_text().replace("device: auto", "device: cuda:99")
    folder.config.write_text(began)
    longer = load_config("pendulum-random", [*words, "iterations=2", "device=cpu"])
    runs = RunProcesses({"one": longer}, 1, progress=False)
    runs.run()
    assert runs.errors() == {}
    assert folder.read_result()["iterations"] == 2


def test_a_run_in_the_hands_of_another_process_is_left_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", status="running")
    before = folder.result.read_bytes()
    config = load_config("pendulum-random", [f"out={folder.path}"])
    runs = RunProcesses({"one": config}, 1, progress=False)
    with run_locked(folder.path):
        runs.run()
    assert "a run is at work in" in runs.errors()["one"]
    assert folder.result.read_bytes() == before


def test_a_folder_that_another_process_took_first_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    runs = RunProcesses(
        {"one": load_config("pendulum-random", [*TINY, f"out={out}"])}, 1, progress=False
    )
    out.mkdir()
    with run_locked(out):
        runs.run()
    assert "a run is at work in" in runs.errors()["one"]
    assert not (out / "result.json").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_of_the_parent_lets_the_runs_write_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, "iterations=100000", f"out={tmp_path / 'run'}"]
    runs = RunProcesses({"one": load_config("pendulum-random", words)}, 1, progress=False)
    folder = RunFolder(tmp_path / "run")

    def report() -> None:
        if folder.iterations_logged() > 1:
            raise OSError("something of this process")

    monkeypatch.setattr(runs, "_report", report)
    with pytest.raises(OSError, match="something of this process"):
        runs.run()
    assert folder.read_result()["status"] == "interrupted"
    assert folder.policy_zip.is_file()
