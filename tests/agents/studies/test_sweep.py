"""Sweeps: which runs they are, that finished ones are left alone, that failures stop nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents.cli import _parser, main
from agents.studies import processes, sweep
from agents.studies.processes import ON_ONE_GPU, RunProcesses
from agents.studies.run_groups import find_runs
from agents.studies.sweep import parse_seeds, plan_sweep, run_sweep, split_values
from agents.training.config import flat_settings, load_config
from agents.training.run_folder import RunFolder
from tests.agents.made_up_runs import make_run, write_log
from tests.agents.studies.sweep_plans import plan
from tests.agents.tiny import TINY


def test_values_are_split_outside_brackets_and_quotes() -> None:
    assert split_values("1,3e-4") == ["1", "3e-4"]
    assert split_values("[8, 8],[16],x") == ["[8, 8]", "[16]", "x"]
    assert split_values("'a,b',\"c,d\",auto") == ["'a,b'", '"c,d"', "auto"]
    assert split_values("") == [""]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0:5", [0, 1, 2, 3, 4]), ("3", [3]), ("4:6,0, 5", [4, 5, 0])],
)
def test_seeds_are_ranges_and_lists(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["5:5", "", "a", "0:", "-1", "0:5:2"])
def test_other_seeds_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds"):
        parse_seeds(text)


def test_a_sweep_is_the_product_of_its_axes(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        "iterations=7",
        grid=["agent.hidden_sizes=[8,8],[16]", "adversary.weight=0,3e-4"],
        seeds="0:2",
    )
    weights = ["adversary.weight=0", "adversary.weight=0.0003"]
    assert list(found.configs) == [
        f"agent.hidden_sizes={sizes},{weight}/seed-{seed}"
        for sizes in ("8x8", "16")
        for weight in weights
        for seed in (0, 1)
    ]
    last = list(found.configs.values())[-1]
    assert (last.agent.hidden_sizes, last.adversary.weight, last.seed) == ((16,), 3e-4, 1)
    assert last.iterations == 7
    assert last.out == str(tmp_path / list(found.configs)[-1])


def test_the_paper_s_candidates_are_three_joint_settings(tmp_path: Path) -> None:
    found = plan(tmp_path, preset="paper", grid=["agent.layer_norm=false,true"])
    chosen = [
        (config.rollout.horizon, config.adversary.weight, config.agent.layer_norm)
        for config in found.configs.values()
    ]
    candidates = [(2, 3e-4), (5, 3e-4), (5, 0)]
    assert sorted(chosen) == sorted((k, w, n) for k, w in candidates for n in (False, True))


@pytest.mark.parametrize("preset", ["ablations", "warm-start"])
def test_an_ablation_changes_one_thing_of_the_configuration(tmp_path: Path, preset: str) -> None:
    found = list(plan(tmp_path, preset=preset).configs.values())
    base = flat_settings(load_config("pendulum-random"))
    changes = []
    for config in found:
        settings = flat_settings(config)
        changes.append({key for key in base if settings[key] != base[key] and key != "out"})
    assert changes[0] == set()
    assert all(0 < len(keys) <= 2 for keys in changes[1:])
    for keys in changes[1:]:  # two settings only where the second needs the first
        assert len(keys) == 1 or keys == {"adversary.weight", "adversary.continue_fit"}
    assert len({tuple(flat_settings(config).items()) for config in found}) == len(found)


def test_what_a_configuration_has_already_is_no_run_of_its_own(tmp_path: Path) -> None:
    scores = [
        [
            c.adversary.score
            for c in plan(tmp_path / word, word, preset="ablations").configs.values()
        ]
        for word in ("adversary.score=member", "adversary.score=pathwise")
    ]
    for found in scores:
        assert len(found) == 9
        assert set(found) == {"mixture", "member", "pathwise"}


def test_what_trains_as_another_run_is_left_out_and_said(tmp_path: Path) -> None:
    """With lambda = 0 there is no adversary whose score could matter."""
    found = plan(tmp_path, "adversary.weight=0", preset="ablations")
    kept = [(c.adversary.weight, c.adversary.score) for c in found.configs.values()]
    assert [score for weight, score in kept if weight == 0] == ["mixture"] * 3
    assert sorted(str(w) for w, _ in kept if w != 0) == ["0.003", "0.03", "auto"]
    assert len(found.left_out) == 2
    assert all("score=" in name for name in found.left_out)
    assert set(found.left_out.values()) <= {name.rpartition("/")[0] for name in found.configs}


def test_a_value_that_stands_twice_in_the_grid_is_an_error_with_a_preset_too(
    tmp_path: Path,
) -> None:
    for preset in (None, "ablations"):
        with pytest.raises(ValueError, match="a value stands twice"):
            plan(tmp_path, grid=["agent.gamma=0.9,0.90"], preset=preset)


def test_values_that_differ_in_late_digits_are_runs_of_their_own(tmp_path: Path) -> None:
    found = plan(tmp_path, grid=["agent.gamma=0.9999999,0.99999999"])
    assert list(found.configs) == [
        "agent.gamma=0.9999999/seed-0", "agent.gamma=0.99999999/seed-0",
    ]  # fmt: skip


@pytest.mark.parametrize("preset", sweep.PRESETS)
def test_the_command_line_knows_every_preset(preset: str) -> None:
    words = ["sweep", "pendulum-random", "--preset", preset]
    assert _parser().parse_args(words).preset == preset


def test_the_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def of(jobs: int | None, seeds: str, threads: str = "null") -> tuple[int, int | None]:
        found = plan(tmp_path, f"n_threads={threads}", seeds=seeds, jobs=jobs)
        return found.at_once, next(iter(found.configs.values())).n_threads

    assert of(None, "0:20") == (8, 1)
    assert of(3, "0:20") == (3, 2)
    assert of(None, "0:2") == (2, 4)  # there are no more runs
    assert of(20, "0:20") == (20, 1)
    assert of(None, "0:2", threads="3") == (2, 3)  # as the user says
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of(None, "0:20") == (ON_ONE_GPU, 8 // ON_ONE_GPU)
    assert of(6, "0:20") == (6, 1)  # as the user says
    assert plan(tmp_path, "device=cpu", seeds="0:20").at_once == 8


def test_a_refused_plan_leaves_no_lock(tmp_path: Path) -> None:
    mine = tmp_path / "pendulum-random" / "seed-0" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(ValueError, match="holds files, but no run") as kept:
        plan(tmp_path)
    mine.unlink()
    assert plan(tmp_path).finished == frozenset()
    assert kept.value.__traceback__ is not None  # with its frames, as an interactive session has


def test_the_grid_may_name_the_data(tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("one.npz", "two.npz")]
    grid = [f"dataset={','.join(map(str, logs))}"]
    found = plan_sweep("fast", [f"out={tmp_path / 'out'}"], grid=grid)
    found.lock.close()
    assert [config.dataset for config in found.configs.values()] == list(map(str, logs))


def test_many_settings_make_names_that_file_systems_take(tmp_path: Path) -> None:
    grid = [
        f"{key}={value}"
        for key, value in flat_settings(load_config("pendulum-random")).items()
        if key.startswith(("agent.", "adversary.")) and isinstance(value, float)
    ]
    found = plan(tmp_path, grid=[*grid, "iterations=7,8"])
    names = [Path(name).parent.name for name in found.configs]
    assert len(set(names)) == 2
    assert all(len(name) <= 200 for name in names)
    assert [name.startswith("iterations=") for name in names] == [True, True]


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    first = plan_sweep("pendulum-random", [f"out={tmp_path}"])
    with pytest.raises(ValueError, match="another sweep is at work"):
        plan(tmp_path)
    first.lock.close()
    plan(tmp_path)


def test_a_failure_stops_nothing_and_is_done_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    # A step of 1e30 makes the fit's loss infinite.
    words = [*TINY, f"out={out}", "--grid", "model.fit_learning_rate=1e30,1e-3", "--jobs", "1"]
    good, bad = "model.fit_learning_rate=0.001/seed-0", "model.fit_learning_rate=1e+30/seed-0"
    make_run(out / bad, status="interrupted")  # of an earlier call
    assert main(["sweep", "pendulum-random", *words]) == 1
    printed, errors = capfd.readouterr()
    assert printed.splitlines()[0].startswith("sweep        2 runs, 0 of them finished before")
    assert printed.splitlines()[-1] == str(out)
    assert f"Not in it: {out / bad}: diverged: " in printed
    assert errors.splitlines()[-1] == f"adv-worldmodel: not finished: {bad}"
    statuses = [RunFolder(out / name).read_result()["status"] for name in (good, bad)]
    assert statuses == ["finished", "diverged"]

    # Without the one that diverges all is finished, so that nothing is left to be run.
    written = (out / good / "result.json").stat().st_mtime_ns
    words[words.index("model.fit_learning_rate=1e30,1e-3")] = "model.fit_learning_rate=1e-3"
    assert main(["sweep", "pendulum-random", *words]) == 0
    assert "1 runs, 1 of them finished before" in capfd.readouterr().out
    assert (out / good / "result.json").stat().st_mtime_ns == written


def test_a_missing_data_set_fails_its_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"out={tmp_path}", "--grid", "dataset=nowhere.npz"]
    assert main(["sweep", "pendulum-random", *words]) == 1
    folder = RunFolder(tmp_path / "dataset=nowhere.npz" / "seed-0")
    result = folder.read_result()
    assert result["status"] == "failed"
    assert "nowhere.npz does not exist" in result["error"]
    assert "nowhere.npz does not exist" in capfd.readouterr().out
    assert main(["results", str(tmp_path)]) == 0
    assert "| nowhere.npz | pendulum-random | 0 " in capfd.readouterr().out


def test_a_data_set_that_went_missing_later_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for first, name in ((0, "a"), (1000, "b")):
        write_log(tmp_path / f"{name}.npz", first)
    words = ["sweep", "base", *TINY, "data.env_id=Pendulum-v1", "dataset=a.npz", "out=s",
             "--grid", "dataset=a.npz,b.npz", "--jobs", "1", "--seeds"]  # fmt: skip
    assert main([*words, "0"]) == 0
    (tmp_path / "b.npz").unlink()
    capsys.readouterr()
    assert main([*words, "0:2"]) == 1
    statuses = {
        str(run.folder.path.relative_to(Path("s"))): run.status for run in find_runs([Path("s")])
    }
    assert statuses == {
        "dataset=a.npz/seed-0": "finished", "dataset=a.npz/seed-1": "finished",
        "dataset=b.npz/seed-0": "finished", "dataset=b.npz/seed-1": "failed",
    }  # fmt: skip
    failed = RunFolder(Path("s/dataset=b.npz/seed-1"))
    assert load_config(failed.config).dataset == str(tmp_path / "b.npz")


def test_an_interrupted_sweep_with_a_damaged_result_ends_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "pendulum-random" / "seed-0", return_mean=-150.0)
    run = make_run(tmp_path / "pendulum-random" / "seed-1", "seed=1")
    run.result.write_text("")
    (run.checkpoints / "iteration-000002").mkdir(parents=True)
    found = plan(tmp_path, seeds="0:2")

    def interrupted(_: RunProcesses) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunProcesses, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(found)
    lines = capsys.readouterr().out.splitlines()
    assert f"Not in it: {run.path}: cannot be read" in lines
    assert lines[-1] == str(tmp_path)
    plan(tmp_path, seeds="0:2")  # the folder is free again


def test_a_run_s_folder_is_no_place_for_a_sweep(tmp_path: Path) -> None:
    (make_run(tmp_path / "run").path / "policy.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"run holds a run of its own: give another out=FOLDER"):
        plan(tmp_path / "run", grid=["agent.gamma=0.9"])
