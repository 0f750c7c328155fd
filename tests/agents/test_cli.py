"""The command line: what it prints, what it leaves alone, and its exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec

import adv_worldmodel
from agents.cli import main
from agents.training import experiment
from agents.training.config import flat_settings, load_config
from agents.training.evaluation import evaluate
from agents.training.run_folder import LOCK, RunFolder, run_locked
from tests.agents.tiny import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "pendulum-random", *TINY, f"out={out}"]) == 0
    return out


def test_the_last_line_of_train_is_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", "pendulum-random", *TINY, f"out={out}"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == str(out)
    assert "iteration 1/1, done" in captured.err  # a plain line where there is no terminal


def test_evaluate_runs_the_policy_of_the_run(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_folder), "--episodes", "1", "--seed", "3"]) == 0
    expected = evaluate(RunFolder(run_folder).load_policy("cpu"), "Pendulum-v1", episodes=1, seed=3)
    assert f"{expected.return_mean:.1f} +- 0.0 over 1 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EPIPE, 0)])
def test_a_result_that_cannot_be_written_is_a_failure_unless_nobody_reads(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["settings"]) == code
    said = "adv-worldmodel: error: cannot write the result: No space left on device\n"
    assert capsys.readouterr().err == (said if code else "")


def test_evaluate_takes_another_greedy_step(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = RunFolder(run_folder).load_policy("cpu")
    agent.policy.greedy_step = 0.5
    expected = evaluate(agent, "Pendulum-v1", episodes=1)
    words = ["evaluate", str(run_folder), "--episodes", "1"]
    shown = []
    for more in (["--greedy-step", "0.5"], []):
        assert main([*words, *more]) == 0
        shown.append(
            f"{expected.return_mean:.1f} +- 0.0 over 1 episodes" in capsys.readouterr().out
        )
    assert shown == [True, False]
    for step in ("-1", "inf", "far"):
        assert main([*words, "--greedy-step", step]) == 2
        assert "expected a finite number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"status": "diverged", "error": "Q is infinite"}, "run          diverged: Q is infinite"),
        ({"divergence": {"quantity": "q_mean"}}, "run          diverged, and went on"),
        ({"status": "running"}, "run          running"),
    ],
)
def test_evaluate_says_what_became_of_the_run(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    result: dict[str, Any],
    line: str,
) -> None:
    assert main(["evaluate", str(run_folder), "--episodes", "1"]) == 0
    assert "run " not in capsys.readouterr().out
    copy = RunFolder(shutil.copytree(run_folder, tmp_path / "copy"))
    copy.result.write_text(json.dumps(copy.read_result() | result))
    assert main(["evaluate", str(copy.path), "--episodes", "1"]) == 0
    assert line in capsys.readouterr().out.splitlines()


class EndsItself(PendulumEnv):  # type: ignore[misc]
    """After one step."""

    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, True, truncated, info


def test_evaluate_warns_of_an_environment_without_a_time_limit(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.registry, "Endless-v0", EnvSpec("Endless-v0", EndsItself))
    with pytest.warns(UserWarning, match="Endless-v0 has no time limit"):
        assert main(["evaluate", str(run_folder), "--env", "Endless-v0", "--episodes", "1"]) == 0


def test_evaluate_takes_the_episodes_of_its_seed(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    returns = []
    for words in (["--seed", "0"], ["--seed", "1"], []):
        assert main(["evaluate", str(run_folder), "--episodes", "1", *words]) == 0
        returns.append(capsys.readouterr().out)
    assert returns[0] == returns[2] != returns[1]


def test_evaluate_imports_the_module_of_an_environment(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "slower_pendulum.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('SlowerPendulum-v0', max_episode_steps=30,\n"
        "    entry_point='gymnasium.envs.classic_control.pendulum:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    env = "slower_pendulum:SlowerPendulum-v0"
    assert main(["evaluate", str(run_folder), "--episodes", "2", "--env", env]) == 0
    assert "length       30.0" in capsys.readouterr().out


def test_evaluate_films_an_episode(run_folder: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    assert main(["evaluate", str(run_folder), "--episodes", "1", "--render", str(film)]) == 0
    assert film.read_bytes().startswith(b"GIF89a")


def test_an_occupied_out_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "file").touch()
    assert main(["train", "pendulum-random", f"out={tmp_path}"]) == 2
    assert main(["train", "pendulum-random", f"out={tmp_path / 'mine.txt'}"]) == 2
    assert main(["train", "pendulum-random", f"out={tmp_path / 'mine.txt' / 'run'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine.txt"]


def test_of_two_trainings_into_one_folder_the_later_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have found the folder free; the lock is all that is in it."""
    out = tmp_path / "race"
    out.mkdir()
    with run_locked(out):
        assert main(["train", "pendulum-random", *TINY, f"out={out}"]) == 2
        assert [path.name for path in out.iterdir()] == [LOCK]
    error = capsys.readouterr().err
    assert error.startswith(f"adv-worldmodel: error: a run is at work in {out}: wait for its end")
    assert error.count("\n") == 1


def test_a_film_that_cannot_be_written_is_said_before_it_is_opened(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "film.mp4").mkdir()
    words = ["evaluate", str(run_folder), "--episodes", "1", "--render"]
    assert main([*words, str(tmp_path / "film.mp4")]) == 2
    monkeypatch.setattr("os.access", lambda *_: False)  # as root, every folder can be written
    assert main([*words, str(tmp_path / "other.gif")]) == 2
    folder, closed = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'film.mp4'} is a folder: give the name of a file" in folder
    assert f"{tmp_path} is not writable: give another file" in closed


def test_a_folder_of_runs_names_them(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `train seeds=2` prints as its last line."""
    assert main(["evaluate", str(run_folder.parent)]) == 2
    assert "give one of the runs in it (run)" in capsys.readouterr().err


def test_a_policy_that_is_not_finite_is_none(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    policy = folder.load_policy()
    with torch.no_grad():
        next(policy.policy.parameters()).fill_(torch.nan)
    shutil.rmtree(folder.policy)
    policy.save_weights(folder.policy)
    for more in ([], ["--in-model", "fit"]):
        assert main(["evaluate", str(folder.path), *more]) == 2
        assert "not finite, the run diverged" in capsys.readouterr().err


def test_a_reader_that_leaves_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*args: Any, **kwargs: Any) -> None:
        if kwargs.get("file") is None:
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    assert main(["train", "pendulum-random", *TINY, f"out={tmp_path / 'run'}"]) == 0
    assert RunFolder(tmp_path / "run").read_result()["status"] == "finished"


def test_a_damaged_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text('{"env_id": "Pend')
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "not valid JSON" in capsys.readouterr().err
    (tmp_path / "result.json").write_text('{"env_id": "Pendulum-v1"}')
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "holds no policy/" in capsys.readouterr().err


def raising(error: BaseException) -> Any:
    def fit(*_: Any, **__: Any) -> None:
        raise error

    return fit


def test_a_bug_in_training_is_not_taken_for_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "fit_world_model", raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["train", "pendulum-random", *TINY, f"out={tmp_path / 'run'}"])


def test_an_interrupted_training_exits_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "fit_world_model", raising(KeyboardInterrupt()))
    assert main(["train", "pendulum-random", *TINY, f"out={tmp_path / 'run'}"]) == 130
    assert capsys.readouterr().err == "adv-worldmodel: interrupted\n"


def test_a_diverged_training_exits_with_3_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "fit_world_model", raising(FloatingPointError("went to NaN")))
    assert main(["train", "pendulum-random", *TINY, f"out={tmp_path / 'run'}"]) == 3
    assert capsys.readouterr().err == "adv-worldmodel: the run failed: went to NaN\n"
    assert RunFolder(tmp_path / "run").read_result()["status"] == "diverged"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adv-worldmodel {adv_worldmodel.__version__}\n"
    assert main(["--help"]) == 0
    assert "evaluate" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, agents.cli as cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_console_script_is_this_main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"adv-worldmodel": "agents.cli:main"}


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "agents", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("adv-worldmodel: error: ")


def test_settings_are_listed_with_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "pendulum-random", "agent.tau=0.01"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(flat_settings(load_config("pendulum-random")))
    assert re.fullmatch(r"agent\.tau +0\.01 +target critics' step", lines["agent.tau"])
    assert "pendulum-random" in lines["dataset"]
    assert all(len(line.split()) > 2 for line in lines.values())  # none without a meaning
    assert main(["settings", "fast"]) == 0  # names no data
    assert "(to be named)" in capsys.readouterr().out
    assert main(["settings", "pendulum-random", "agent.ta=1"]) == 2
    assert "agent.tau" in capsys.readouterr().err


def test_ctrl_c_during_the_imports_waits_for_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is broken off is half there, and cannot be made again."""
    done = []

    def importing(name: str) -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(name)

    monkeypatch.setattr("agents.cli.import_module", importing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        assert main(["train", "no-such-configuration"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["agents.training.experiment", "agents.studies.seeds"]


def test_warnings_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agents", "train", "pendulum-random", *TINY]
    done = subprocess.run(
        [*command, f"out={tmp_path / 'run'}"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    (line,) = (line for line in done.stderr.splitlines() if "iterations = 1" in line)
    assert line.startswith("warning: iterations = 1: the adversary's updates come")
    assert "prepare(" not in done.stderr


def test_a_command_without_settings_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "pendulum-random", "env_id=X"]) == 2
    assert "before the options, where there are any" in capsys.readouterr().err


def test_of_spaces_that_differ_in_their_bounds_that_is_said(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {key: np.zeros((99, 3)) for key in ("observations", "next_observations")}
    arrays["actions"] = np.linspace(-1.5, 1.4, 99)[:, None]
    ends = {"rewards": np.zeros(99), "terminals": np.zeros(99, bool)}
    np.savez(tmp_path / "log.npz", **arrays, **ends)
    out = tmp_path / "run"
    words = [*TINY, f"dataset={tmp_path / 'log.npz'}", f"out={out}"]
    never = ["evaluation.episodes=0", "model.termination=never"]
    with pytest.warns(UserWarning, match="no action bounds are known"):
        assert main(["train", "base", *words, *never]) == 0
    assert main(["evaluate", str(out), "--env", "Pendulum-v1"]) == 2
    assert "only the bounds differ. Where those of the data were guessed" in capsys.readouterr().err
