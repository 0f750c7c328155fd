"""Runs that stop and go on: bit-equal to those that were left alone, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adv_worldmodel import load_dataset
from agents.cli import main
from agents.training.checkpoints import (
    TENSORS_FILE,
    CheckpointCallback,
    latest_checkpoint,
    read,
    set_generator_state,
)
from agents.training.checkpoints import _folders as folders_in
from agents.training.evaluation import read_evaluations
from agents.training.run_folder import RunFolder, run_locked
from tests.agents.tiny import TINY

ROOT = Path(__file__).resolve().parents[3]
#: seven updates of the adversary end within its rollouts, and the third iteration overwrites rows
RUN = (
    "iterations=4", "checkpoint_every=1", "agent.updates=20", "adversary.updates=7",
    "rollout.retain_iterations=2", "cloning.epochs=1",
)  # fmt: skip


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def states(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return load_file(newest / TENSORS_FILE)


def assert_equal_runs(one: Path, other: Path) -> None:
    assert (one / "evaluations.csv").read_bytes() == (other / "evaluations.csv").read_bytes()
    mine, theirs = states(one), states(other)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four iterations."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = (*TINY, *RUN, "adversary.weight=auto", f"out={folder}")
    assert train("pendulum-random", *settings) == 0
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The same as it was after its last checkpoint but one."""
    folder = tmp_path / "half"
    shutil.copytree(whole, folder)
    shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    return folder


def test_a_resumed_run_is_the_run(
    whole: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--resume", str(half)) == 0
    assert "checkpoint   after iteration 3" in capsys.readouterr().out
    assert_equal_runs(whole, half)
    rows = [len(RunFolder(f).progress.read_text().splitlines()) for f in (whole, half)]
    assert rows[0] == rows[1]
    clones = [RunFolder(f).read_result()["cloning_return"] for f in (whole, half)]
    assert clones[0] == clones[1] is not None
    assert RunFolder(half).read_result()["wall_s"]["clone"] > 0  # of the first part


def test_a_finished_run_goes_on_for_more_iterations(
    whole: Path, half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(whole, longer)
    assert train("--resume", str(longer), "iterations=5") == 0
    assert "changed      iterations: 4 -> 5" in capsys.readouterr().out
    assert RunFolder(longer).read_result()["iterations"] == 5
    assert "iterations: 5" in RunFolder(longer).config.read_text()
    at_once = tmp_path / "at-once"
    settings = (*TINY, *RUN, "adversary.weight=auto", "iterations=5", f"out={at_once}")
    assert train("pendulum-random", *settings) == 0
    assert_equal_runs(at_once, longer)


def test_the_last_two_checkpoints_are_kept(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["iteration-000003", "iteration-000004"]


def test_a_damaged_checkpoint_is_passed_over(half: Path, whole: Path) -> None:
    newest = half / "checkpoints" / "iteration-000003"
    shutil.copytree(newest, half / "checkpoints" / "iteration-000004")
    file = half / "checkpoints" / "iteration-000004" / TENSORS_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not what was written"):
        read(file.parent)
    with pytest.warns(UserWarning, match="the one before it is taken"):
        found = latest_checkpoint(half / "checkpoints")
    assert found is not None
    assert found.iteration == 3


def test_without_a_good_checkpoint_there_is_an_error(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (half / "checkpoints" / "iteration-000003" / TENSORS_FILE).write_bytes(b"")
    assert train("--resume", str(half)) == 2
    error = capsys.readouterr().err
    assert "no checkpoint in" in error
    assert f"{half / 'checkpoints' / 'iteration-000003'} cannot be read" in error
    assert "--overwrite" in error


def test_a_changed_setting_is_named_and_refused(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in half.rglob("*"))
    assert train("--resume", str(half), "agent.gamma=0.9", "iterations=9", "out=x") == 2
    error = capsys.readouterr().err
    assert f"out, agent.gamma cannot change where {half} goes on" in error
    assert sorted(path.name for path in half.rglob("*")) == before


def test_a_run_goes_on_under_another_name(whole: Path, half: Path) -> None:
    assert train("--resume", str(half), "name=other") == 0
    assert "name: other\n" in RunFolder(half).config.read_text()
    assert_equal_runs(whole, half)


def moved(folder: Path, *, rewards: float = 0.0) -> Path:
    """The data of the runs here, `rewards` added, in a file."""
    data = load_dataset("pendulum-random")
    names = ("observations", "actions", "next_observations", "terminations", "truncations")
    columns = {name: getattr(data, name) for name in names}
    file = folder / "moved.npz"
    np.savez(file, env_id="Pendulum-v1", rewards=data.rewards + np.float32(rewards), **columns)
    return file


def test_a_run_goes_on_with_equal_data_elsewhere(whole: Path, half: Path, tmp_path: Path) -> None:
    file = moved(tmp_path)
    assert train("--resume", str(half), f"dataset={file}") == 0
    assert_equal_runs(whole, half)
    assert f"dataset: {file}" in RunFolder(half).config.read_text()
    assert train("--resume", str(half), "iterations=5") == 0  # from there on


def test_a_run_does_not_go_on_with_other_data(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moved(tmp_path, rewards=1.0)
    assert train("--resume", str(half), f"dataset={file}") == 2
    assert f"{file} is not what {half} was trained on" in capsys.readouterr().err
    RunFolder(half).result.unlink()  # what its model was fitted to is still known
    assert train("--resume", str(half), f"dataset={file}") == 2
    assert f"{file} is not what {half} was trained on" in capsys.readouterr().err
    (RunFolder(half).world_model / "model.json").unlink()  # and now nothing is
    assert train("--resume", str(half), f"dataset={moved(tmp_path)}") == 2
    assert "dataset cannot change where" in capsys.readouterr().err


def test_the_policy_of_a_run_is_judged_on_equal_data_elsewhere(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(whole), "--in-model", "fit", "--episodes", "2"]
    printed = []
    for more in ([], ["--dataset", str(moved(tmp_path))]):
        assert main([*words, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    file = str(moved(tmp_path, rewards=1.0))
    assert main([*words, "--dataset", file]) == 2
    assert f"{file} is not read as when" in capsys.readouterr().err
    assert main(["evaluate", str(whole), "--dataset", file]) == 2
    assert "--dataset names the data of --in-model" in capsys.readouterr().err


def test_a_run_is_not_trained_over_unless_asked(
    half: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("pendulum-random", *TINY, f"out={half}")
    assert train(*settings) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--overwrite" in error
    assert train(*settings, "--overwrite") == 0
    assert RunFolder(half).read_result()["iterations"] == 1


def test_one_process_at_a_time_writes_a_run(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in half.rglob("*"))
    with run_locked(half):
        for words in (
            ["--resume", str(half)],
            ["pendulum-random", *TINY, f"out={half}", "--overwrite"],
        ):
            assert train(*words) == 2
            assert f"a run is at work in {half}" in capsys.readouterr().err
    assert sorted(path.name for path in half.rglob("*")) == before
    assert train("--resume", str(half)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a CONFIG to train, or --resume RUN"),
        (["--resume", "nowhere"], "no run folder at nowhere"),
        (["--resume", "nowhere", "--overwrite"], "give one of them"),
    ],
)
def test_what_makes_no_sense_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments) == 2
    assert message in capsys.readouterr().err


def killed(folder: Path, kills: int, signal: str) -> list[int]:
    """Exit codes of the processes that were killed; each run has gone on to its end."""
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(kills), signal, "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for run in folder.glob("killed-?"):
        assert_equal_runs(folder / "whole", run)
        assert list(run.rglob(".*")) == []  # nothing half-written is left
    return [int(code) for code in done.stdout.split()]


def test_sigterm_writes_a_checkpoint_and_exits_143(tmp_path: Path) -> None:
    codes = killed(tmp_path, 4, "SIGTERM")
    assert set(codes) <= {143, -15}  # -15: before the command had begun to listen
    assert 143 in codes


@pytest.mark.slow
def test_a_run_killed_at_any_instant_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    assert killed(tmp_path, 24, "SIGKILL").count(-9) >= 20


def test_a_full_disk_is_said_and_leaves_the_last_good_checkpoint(whole: Path, half: Path) -> None:
    """No file can grow beyond half a checkpoint: the write fails within it, as on a full disk."""
    good = half / "checkpoints" / "iteration-000003" / TENSORS_FILE
    before, limit = good.read_bytes(), good.stat().st_size // 2
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        f"from agents.cli import main; sys.exit(main(['train', '--resume', {str(half)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "the run failed, its files cannot be written" in error
    assert "--resume" in error
    assert "Traceback" not in done.stderr
    assert [path.name for path in (half / "checkpoints").iterdir()] == ["iteration-000003"]
    assert good.read_bytes() == before
    assert train("--resume", str(half)) == 0
    assert_equal_runs(whole, half)


def test_a_random_stream_of_another_kind_of_device_starts_anew() -> None:
    """A GPU's generator has a state of 16 bytes; going on from one on a CPU, equal states agree."""
    state, other = (torch.full((16,), fill, dtype=torch.uint8) for fill in (7, 8))
    drawn = []
    for kept in (state, state, other):
        generator = torch.Generator().manual_seed(0)
        with pytest.warns(UserWarning, match="'agent' was kept on another kind of device"):
            set_generator_state(generator, kept, "agent")
        drawn.append(torch.rand(3, generator=generator))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_overwriting_removes_a_run_and_nothing_else(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (half / "notes.txt").write_text("mine")
    assert train("pendulum-random", *TINY, f"out={half}", "--overwrite") == 0
    assert (half / "notes.txt").read_text() == "mine"
    assert not (half / "checkpoints" / "iteration-000003").exists()
    (half / "result.json").unlink()  # as if killed while it was replaced
    assert train("pendulum-random", *TINY, f"out={half}", "--overwrite") == 0
    own = tmp_path / "project"
    own.mkdir()
    (own / "config.yaml").write_text("extends: base\ndataset: pendulum-random\n")
    (own / "data.npz").write_bytes(b"mine")
    capsys.readouterr()
    assert train(str(own / "config.yaml"), *TINY, f"out={own}", "--overwrite") == 2
    assert "is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in own.iterdir()) == ["config.yaml", "data.npz"]


def test_evaluations_after_the_checkpoint_are_made_once(tmp_path: Path) -> None:
    """Also where the checkpoint is older than the first of them."""
    settings = (*TINY, "iterations=4", "evaluation.every=3", "checkpoint_every=2")
    folders = [tmp_path / name for name in ("whole", "half")]
    for folder in folders:
        assert train("pendulum-random", *settings, f"out={folder}") == 0
    shutil.rmtree(folders[1] / "checkpoints" / "iteration-000004")
    assert train("--resume", str(folders[1])) == 0
    whole, half = (folder / "evaluations.csv" for folder in folders)
    assert [line.split(",")[0] for line in half.read_text().splitlines()] == ["iteration", "3", "4"]
    assert whole.read_bytes() == half.read_bytes()


def test_a_run_stopped_in_its_first_iteration_keeps_its_fit_and_clone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*TINY, "cloning.epochs=1", "checkpoint_every=1")
    folders = [tmp_path / name for name in ("whole", "half")]
    for folder in folders:
        assert train("pendulum-random", *settings, f"out={folder}") == 0
    shutil.rmtree(folders[1] / "checkpoints" / "iteration-000001")
    capsys.readouterr()
    assert train("--resume", str(folders[1])) == 0
    printed = capsys.readouterr().out
    assert "checkpoint   after iteration 0" in printed
    assert "fitting" not in printed
    assert_equal_runs(*folders)
    clones = [RunFolder(folder).read_result()["cloning_return"] for folder in folders]
    assert clones[0] == clones[1] is not None


def test_an_edited_configuration_is_not_gone_on_with(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = half / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("gamma: 0.99", "gamma: 0.5"))
    assert train("--resume", str(half)) == 2
    assert "trained with agent.gamma=0.99: put that back" in capsys.readouterr().err
    config.write_text(text.replace("checkpoint_every: 1", "checkpoint_every: 2"))  # may change
    assert train("--resume", str(half)) == 0


def test_a_run_goes_on_where_no_new_one_could_begin(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    assert train("--resume", str(half)) == 0


def test_other_versions_are_told_of(half: Path) -> None:
    result = RunFolder(half).read_result()
    result["versions"]["torch"] = "2.6.0"
    (half / "result.json").write_text(json.dumps(result))
    with pytest.warns(UserWarning, match=r"other versions \(torch 2\.6\.0 -> "):
        assert train("--resume", str(half)) == 0


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(half / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in half.rglob("*")}
    assert train("--resume", str(half)) == 2
    assert "has trained, but its checkpoints are gone" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in half.rglob("*")} == before


@pytest.mark.parametrize("content", ["", "{"])
def test_a_run_goes_on_from_its_checkpoint_without_a_readable_result(
    whole: Path, half: Path, content: str
) -> None:
    RunFolder(half).result.write_text(content)
    with pytest.warns(UserWarning, match="goes on from its checkpoint"):
        assert train("--resume", str(half)) == 0
    assert_equal_runs(whole, half)


def test_a_run_made_longer_has_the_evaluations_of_one_that_was_not(tmp_path: Path) -> None:
    """Those of the former end, between two that are due, are no part of it."""
    settings = (*TINY, "checkpoint_every=1", "evaluation.every=3", "evaluation.each_of_last=2")
    out = tmp_path / "longer"
    for words in (("pendulum-random", *settings, f"out={out}"), ("--resume", str(out))):
        iterations = 2 if words[0] != "--resume" else 5
        assert train(*words, f"iterations={iterations}") == 0
    at_once = tmp_path / "at-once"
    assert train("pendulum-random", *settings, "iterations=5", f"out={at_once}") == 0
    assert [row["iteration"] for row in read_evaluations(at_once)] == [3, 4, 5]
    assert_equal_runs(at_once, out)
    one, other = (RunFolder(folder).read_result()["return_mean"] for folder in (at_once, out))
    assert one == other


def test_checkpoints_are_in_the_order_of_time(tmp_path: Path) -> None:
    for iteration in (999_990, 1_000_000, 5):
        (tmp_path / f"iteration-{iteration:06d}").mkdir()
    assert [path.name[10:] for path in folders_in(tmp_path)] == ["000005", "999990", "1000000"]


def test_state_and_metrics_of_a_checkpoint_are_of_one_iteration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where a signal comes between the two."""

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.training.checkpoints.capture", lambda *_: "a newer state")
    callback = CheckpointCallback(tmp_path, 1, SimpleNamespace(adversary=None), interrupted)  # type: ignore[arg-type]
    callback.model = SimpleNamespace(iteration=3)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        callback._on_rollout_start()
    assert (callback._snapshot, callback._more) == (None, {})
