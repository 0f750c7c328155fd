"""Runs that a sweep has planned and that never began are missed by `results` and `select`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agents.cli import main
from agents.studies.planned_runs import add_planned, find_missing, read_planned
from agents.studies.run_groups import find_runs, group_runs
from agents.studies.selection import select
from agents.studies.sweep import plan_sweep, run_sweep
from tests.agents.made_up_runs import make_run

SETTINGS = {"k2/seed-0": "rollout.horizon=2", "k5/seed-0": "rollout.horizon=5"}


def sweep(monkeypatch: pytest.MonkeyPatch, out: Path, grid: str, seeds: str) -> None:
    """One that is stopped before its first run begins."""

    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.studies.processes.RunProcesses.run", stopped)
    plan = plan_sweep("pendulum-random", [f"out={out}"], grid=[grid], seeds=seeds)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, progress=False)


def test_what_never_began_is_no_trusted_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, setting in SETTINGS.items():
        make_run(tmp_path / name, setting, q_avg=float(setting[-1]), q_var=1.0, return_mean=1.0)
    names = dict.fromkeys((*SETTINGS, "k7/seed-0"), "pendulum-random")
    add_planned(tmp_path, names)
    (chosen,) = select(group_runs(find_runs([tmp_path])), find_missing([tmp_path]))
    assert chosen.doubts == (f"{tmp_path / 'k7' / 'seed-0'}: planned, without a result",)
    missing = f"{tmp_path / 'k7' / 'seed-0'}: planned, without a result"
    assert main(["select", str(tmp_path)]) == 0
    assert missing in capsys.readouterr().out
    assert main(["results", str(tmp_path)]) == 0
    assert f"Not in it: {missing}\n" in capsys.readouterr().out
    make_run(tmp_path / "k7" / "seed-0", "rollout.horizon=7", q_avg=1.0, q_var=1.0)
    assert find_missing([tmp_path]) == []


def test_a_data_set_without_any_run_is_nothing_to_choose_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, setting in SETTINGS.items():
        make_run(tmp_path / name, setting, q_avg=float(setting[-1]), q_var=1.0, return_mean=1.0)
    add_planned(tmp_path, dict.fromkeys(SETTINGS, "pendulum-random") | {"x/seed-0": "another"})
    assert main(["select", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "cannot be trusted" not in captured.out  # that on the pendulum
    assert captured.err == "adv-worldmodel: nothing to choose from on another\n"


def test_sweeps_of_one_folder_add_up_and_of_several_are_all_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(monkeypatch, tmp_path / "a", "rollout.horizon=2", "0:2")
    sweep(monkeypatch, tmp_path / "a", "adversary.weight=0", "0")
    sweep(monkeypatch, tmp_path / "b", "rollout.horizon=2", "0")
    shutil.move(tmp_path / "b", tmp_path / "c")  # names are below the file
    found = [str(run.folder.relative_to(tmp_path)) for run in find_missing([tmp_path, tmp_path])]
    expected = ["rollout.horizon=2/seed-0", "rollout.horizon=2/seed-1", "adversary.weight=0/seed-0"]
    assert found == [*(f"a/{name}" for name in expected), f"c/{expected[0]}"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": [1]}', '{"runs": {"a": 1}}'])
def test_a_damaged_list_is_named_before_anything_starts(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.json is not what a sweep writes"):
        read_planned(tmp_path)
    assert main(["sweep", "pendulum-random", f"out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "remove it" in error
    with pytest.warns(UserWarning, match="runs of it that never began are not named"):
        assert main(["results", str(tmp_path)]) == 0
    assert "pendulum-random" in capsys.readouterr().out


def test_data_that_a_link_leads_to_are_the_same(tmp_path: Path) -> None:
    """A run names them by the place where they lie; they may have been moved since the plan."""
    (tmp_path / "moved.npz").touch()
    link = tmp_path / "log.npz"
    link.symlink_to("moved.npz")
    make_run(tmp_path / "out" / "seed-0", f"dataset={link}", q_avg=1.0, q_var=1.0)
    add_planned(tmp_path / "out", {"seed-0": str(link), "seed-1": str(link)})
    (missing,) = find_missing([tmp_path / "out"])
    (group,) = group_runs(find_runs([tmp_path]))
    assert missing.dataset == group.runs[0].settings["dataset"]
