"""Runs in processes of their own: what they could not say themselves is said for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.studies.processes import RunProcesses
from agents.training.config import load_config
from agents.training.run_folder import RunFolder
from tests.agents.tiny import TINY


def test_a_process_that_dies_leaves_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os, torch\ndef rule(obs, action, next_obs):\n"
        "    if len(obs) > 2: os._exit(9)\n"  # two rows: the rule is tried before anything runs
        "    return torch.zeros(len(obs), dtype=torch.bool)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    words = [*TINY, "model.termination=deadly:rule", f"out={out}"]
    runs = RunProcesses({"one": load_config("pendulum-random", words)}, 1, progress=True)
    assert runs.errors() == {"one": "not started"}
    runs.run()
    error = "its process ended with exit code 9"
    assert runs.errors() == {"one": f"failed: {error}"}
    assert capsys.readouterr().out.split(maxsplit=1)[1] == f"failed: {error}\n"
    result = RunFolder(out).read_result()
    assert (result["status"], result["error"]) == ("failed", error)
    assert result["behaviour_return"] < -1000  # what the run had written stays


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
