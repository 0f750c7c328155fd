"""What a sweep finds of earlier calls: finished runs, runs that go on, what it leaves alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.studies.run_groups import find_runs
from agents.training.atomic_files import write_json
from agents.training.config import load_config
from agents.training.preparation import read_dataset
from agents.training.run_folder import RunFolder, run_locked
from tests.agents.made_up_runs import make_run, write_log
from tests.agents.studies.sweep_plans import plan
from tests.agents.tiny import TINY


def test_only_finished_runs_of_the_same_settings_are_skipped(tmp_path: Path) -> None:
    grid, name = ["adversary.weight=0,1"], "adversary.weight={}/seed-{}"
    # What does not change the run does not count, nor how a number was written.
    make_run(tmp_path / name.format(0, 0), "adversary.weight=0.0", "n_threads=7", "name=other")
    for weight, status in [(0, "running"), (1, "diverged")]:
        folder = tmp_path / name.format(weight, 1)
        make_run(folder, f"adversary.weight={weight}", "seed=1", status=status)
    found = plan(tmp_path, grid=grid, seeds="0:2")
    assert len(found.configs) == 4
    assert found.finished == {name.format(0, 0)}
    with pytest.raises(ValueError, match=r"finished run of other settings \(iterations\)"):
        plan(tmp_path, "iterations=7", grid=grid, seeds="0:2")


def test_runs_of_data_that_have_changed_are_not_skipped(tmp_path: Path) -> None:
    data = tmp_path / "log.npz"
    words = [f"dataset={data}", "data.env_id=Pendulum-v1"]

    def write(reward: float) -> None:
        arrays = {key: np.zeros((9, 3)) for key in ("observations", "next_observations")}
        actions = np.linspace(-1, 1, 9)[:, None]
        ends = {"rewards": np.full(9, reward), "terminals": np.zeros(9, bool)}
        np.savez(data, actions=actions, **arrays, **ends)

    write(1.0)
    content = read_dataset(load_config("pendulum-random", words)).content_hash
    folder = tmp_path / "out" / "pendulum-random" / "seed-0"
    make_run(folder, *words, content_hash=content)
    assert len(plan(tmp_path / "out", *words).finished) == 1
    write(2.0)
    with pytest.raises(ValueError, match=r"a finished run of other data \(.*log\.npz has changed"):
        plan(tmp_path / "out", *words)
    data.unlink()  # what is finished stays so
    assert len(plan(tmp_path / "out", *words).finished) == 1


def test_a_checkpoint_of_other_settings_is_not_thrown_away(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "pendulum-random" / "seed-0", status="interrupted")
    (folder.checkpoints / "iteration-000010").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"an unfinished run of other settings \(agent.gamma\)"):
        plan(tmp_path, "agent.gamma=0.9")
    # how long it goes on, and how, may change
    found = plan(tmp_path, "iterations=7", "on_divergence=continue")
    assert found.begun == set(found.configs)
    assert found.finished == set()


def test_a_damaged_configuration_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "pendulum-random" / "seed-0", status="interrupted")
    (folder.checkpoints / "iteration-000010").mkdir(parents=True)
    folder.config.write_text("{")
    assert main(["sweep", "pendulum-random", f"out={tmp_path}"]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_files_that_are_no_run_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pendulum-random" / "seed-0"
    folder.mkdir(parents=True)
    assert plan(tmp_path).finished == frozenset()
    (folder / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds files, but no run"):
        plan(tmp_path)


def test_runs_whose_data_have_moved_are_skipped_or_go_on(tmp_path: Path) -> None:
    old, new = tmp_path / "old.npz", tmp_path / "new.npz"
    write_log(old)
    words = ["sweep", "base", *TINY, "data.env_id=Pendulum-v1", f"out={tmp_path / 's'}"]
    assert main([*words, f"dataset={old}", "--seeds", "0"]) == 0
    old.rename(new)
    (run,) = find_runs([tmp_path / "s"])
    before = run.folder.result.read_bytes()
    assert main([*words, f"dataset={new}", "--seeds", "0"]) == 0
    assert run.folder.result.read_bytes() == before
    assert main([*words, f"dataset={new}", "iterations=2", "--seeds", "0"]) == 0
    assert run.folder.read_result()["iterations"] == 2


def test_an_unfinished_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "adversary.weight=0" / "seed-0")
    settings = [*TINY, "iterations=2", "checkpoint_every=1", "adversary.weight=0"]
    assert main(["train", "pendulum-random", *settings, f"out={run.path}"]) == 0
    shutil.rmtree(run.checkpoints / "iteration-000002")  # as if it had been killed after one
    write_json(run.result, {**run.read_result(), "status": "running"})
    fitted = (run.world_model / "model.json").stat().st_mtime_ns
    evaluations = run.evaluations.read_text()
    sweep = ["sweep", "pendulum-random", *settings[:-1], "iterations=3", f"out={tmp_path}"]
    assert main([*sweep, "--grid", "adversary.weight=0", "--seeds", "0"]) == 0
    assert run.read_result()["status"] == "finished"
    assert run.read_result()["iterations"] == 3
    assert (run.world_model / "model.json").stat().st_mtime_ns == fitted
    assert run.evaluations.read_text().startswith(evaluations)


def test_a_finished_run_goes_on_for_more_iterations_and_is_not_made_shorter(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "adversary.weight=0" / "seed-0")
    settings = [*TINY, "checkpoint_every=1", "adversary.weight=0"]
    assert main(["train", "pendulum-random", *settings, "iterations=2", f"out={run.path}"]) == 0
    evaluations = run.evaluations.read_text()
    fitted = (run.world_model / "model.json").stat().st_mtime_ns
    words = [*settings[:-1], f"out={tmp_path}"]
    longer = ["sweep", "pendulum-random", *words, "iterations=3", "--grid", "adversary.weight=0"]
    assert main([*longer, "--seeds", "0"]) == 0
    assert run.read_result()["iterations"] == 3
    assert (run.world_model / "model.json").stat().st_mtime_ns == fitted
    assert run.evaluations.read_text().startswith(evaluations)
    assert run.evaluations.read_text().count("\n") == 4
    with pytest.raises(ValueError, match=r"a finished run of other settings \(iterations\)"):
        plan(tmp_path, *words[:-1], "iterations=2", grid=["adversary.weight=0"])


def test_a_finished_run_goes_on_only_with_its_settings_and_from_a_checkpoint(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "pendulum-random" / "seed-0", "iterations=2")
    longer = "iterations=3"
    with pytest.raises(ValueError, match=r"a finished run of other settings \(iterations\)"):
        plan(tmp_path, longer)
    (run.checkpoints / "iteration-000002").mkdir(parents=True)
    found = plan(tmp_path, longer)
    assert (found.finished, found.begun) == (frozenset(), {"pendulum-random/seed-0"})
    with pytest.raises(ValueError, match=r"a finished run of other settings \(agent\.gamma\)"):
        plan(tmp_path, longer, "agent.gamma=0.9")


def test_a_run_at_work_is_not_taken_from_under_itself(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "pendulum-random" / "seed-0", status="running")
    with run_locked(folder.path), pytest.raises(ValueError, match="a run is at work in"):
        plan(tmp_path, seeds="0")
    assert folder.config.is_file()


def test_a_run_that_had_not_begun_to_train_is_done_anew_with_other_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pendulum-random" / "seed-0", status="failed")
    (run.checkpoints / "iteration-000000").mkdir(parents=True)
    assert plan(tmp_path, "agent.gamma=0.5", seeds="0").begun == frozenset()
    (run.checkpoints / "iteration-000001").mkdir()
    with pytest.raises(ValueError, match=r"other settings \(agent\.gamma\)"):
        plan(tmp_path, "agent.gamma=0.5", seeds="0")


def test_a_run_that_has_lost_its_checkpoints_is_not_thrown_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pendulum-random" / "seed-0", status="interrupted")
    run.progress.write_text("time/iteration\n1\n2\n")
    for _ in range(2):  # without their folder, and with an empty one
        with pytest.raises(ValueError, match="has trained, but its checkpoints are gone"):
            plan(tmp_path, seeds="0")
        run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "iteration-000000").mkdir(parents=True)  # killed before the next was due
    assert plan(tmp_path, seeds="0").begun == frozenset()
    with pytest.raises(ValueError, match=r"unfinished run of other settings \(agent\.gamma\)"):
        plan(tmp_path, "agent.gamma=0.5", seeds="0")


def test_a_run_done_anew_takes_no_file_of_the_user_s_along(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pendulum-random" / "seed-0", status="failed")
    (run.path / "notes.md").touch()
    with pytest.raises(ValueError, match=r"holds more than a run \(notes\.md\): move that"):
        plan(tmp_path, seeds="0")


def test_a_damaged_result_stops_no_sweep(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pendulum-random" / "seed-0")
    run.result.write_text("")
    (run.checkpoints / "iteration-000002").mkdir(parents=True)
    assert plan(tmp_path, seeds="0:2").begun == {"pendulum-random/seed-0"}
