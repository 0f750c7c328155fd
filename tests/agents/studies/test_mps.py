"""NVIDIA's MPS for runs that share a GPU, with a made-up daemon and a made-up GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.studies import mps as module
from agents.studies.mps import CONTROL, mps, mps_if_possible
from agents.studies.processes import RunProcesses
from agents.training.config import load_config
from tests.agents.tiny import TINY

Daemon = Callable[[str], Path]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """Puts a script in the daemon's place, which can write down what it is told, and where."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "USUAL_PIPES", tmp_path / "usual")
    monkeypatch.setattr(module, "PROBE", "")
    said, control = tmp_path / "said", tmp_path / CONTROL

    def daemon(script: str) -> Path:
        told = 'echo "$CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES:-all} $@ $(cat)"'
        control.write_text(f"#!/bin/sh\n{script or f'{told} >> {said}'}\n")
        control.chmod(0o755)
        return said

    return daemon


def test_it_is_a_daemon_of_its_own(daemon: Daemon) -> None:
    said = daemon("")
    with mps():
        place = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(place).is_dir()
    assert said.read_text().split() == [place, "all", "-d", place, "all", "quit"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not Path(place).exists()


def test_a_gpu_that_was_chosen_is_the_first_of_the_daemon_s(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    said = daemon("")
    with mps_if_possible() as reason:
        assert reason is None
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    _, start, _, _, end, _ = said.read_text().split()
    assert (start, end) == ("3", "3")


def test_why_it_cannot_be_had(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon("exit 1")
    with mps_if_possible() as reason:
        assert reason is not None
        assert "exit status 1" in reason
    said = daemon("")
    monkeypatch.setattr(module, "PROBE", "raise SystemExit(7)")
    with mps_if_possible() as reason:
        assert reason is not None
        assert reason.startswith("with MPS no process finds the GPU")
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert said.read_text().split()[-1] == "quit"  # and no daemon is left
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RuntimeError, match="4 GPUs: make the one visible"), mps():
        pass
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no nvidia-cuda-mps-control here"), mps():
        pass


def test_a_daemon_that_runs_is_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    said = daemon("")
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "control").touch()
    with mps_if_possible() as reason:
        assert reason is None
    assert not said.exists()


def test_runs_that_share_a_gpu_run_in_it(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = daemon("")
    configs = {
        name: load_config("pendulum-random", [*TINY, "device=cpu", f"out={tmp_path / name}"])
        for name in ("one", "two")
    }
    RunProcesses(configs, 1, progress=True, on_cuda=True).run()  # one after the other
    assert not said.exists()
    assert "GPU" not in capsys.readouterr().out
    configs = {
        name: load_config("pendulum-random", [*TINY, "device=cpu", f"out={tmp_path / name}"])
        for name in ("three", "four")
    }
    runs = RunProcesses(configs, 2, progress=True, on_cuda=True)
    runs.run()
    assert runs.errors() == {}
    assert said.read_text().split()[-1] == "quit"
    assert "GPU          shared side by side, by MPS" in capsys.readouterr().out
