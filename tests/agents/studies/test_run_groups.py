"""Run folders are found, and grouped by what makes two experiments the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agents.cli import main
from agents.studies.aggregate import aggregate, markdown
from agents.studies.run_groups import (
    compared_settings,
    find_runs,
    group_runs,
    setting_text,
    usual_settings,
)
from agents.training.config import load_config
from tests.agents.made_up_runs import make_run


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "b" / "seed-0")
    make_run(tmp_path / "c", "seed=1")
    runs = find_runs([tmp_path, tmp_path / "c", tmp_path / "a" / ".." / "c"])
    assert sorted(run.seed for run in runs) == [0, 1]


def test_what_holds_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at"):
        find_runs([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        find_runs([tmp_path])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="no key 'status'"):
        find_runs([tmp_path])
    (tmp_path / "result.json").write_text('{"status": "finished"}')
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        find_runs([tmp_path])


DAMAGE = [
    ("result.json", "{", "is not valid JSON"),
    ("result.json", "{}", "no key 'status'"),
    ("config.yaml", "{", "config.yaml: line 1"),
    ("config.yaml", "dataset: d\nagent: {gamma: 3}\n", "agent.gamma = 3.0: must be at most 1"),
]


@pytest.mark.parametrize(("name", "text", "why"), DAMAGE)
def test_a_damaged_run_is_left_out_and_named(
    tmp_path: Path, name: str, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, setting in (("a", "rollout.horizon=2"), ("b", "rollout.horizon=5")):
        make_run(tmp_path / folder, setting, q_avg=float(setting[-1]), q_var=1.0, return_mean=1.0)
    damaged = make_run(tmp_path / "c", "seed=1").path
    (damaged / name).write_text(text)
    assert main(["results", str(tmp_path)]) == 0
    table, said = capsys.readouterr()
    assert f"Not in it: {damaged}: cannot be read\n" in table
    assert said.startswith(f"adv-worldmodel: left out: {damaged}: ")
    assert why in said
    assert said.count("\n") == 1
    assert main(["select", str(tmp_path)]) == 0
    chosen, said = capsys.readouterr()
    assert chosen.splitlines()[-2:] == [
        "The choice cannot be trusted:",
        f"  {damaged}: cannot be read, and may be one of these",
    ]
    assert said.count("\n") == 1
    for command in ("results", "select"):
        assert main([command, str(damaged)]) == 2  # nothing is left
        assert why in capsys.readouterr().err
    with pytest.raises(ValueError, match=re.escape(why)):
        find_runs([tmp_path])


def test_seeds_and_machines_do_not_make_another_configuration(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=4", "n_threads=2", "device=cpu", "name=one")
    make_run(tmp_path / "b", "seed=3", "n_threads=1", "device=auto", "name=other")
    (group,) = group_runs(find_runs([tmp_path]))
    assert [run.seed for run in group.runs] == [3, 4]
    assert group.settings == {}
    assert group.label == "other"  # that of the first


def test_groups_are_labelled_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    wide = "agent.hidden_sizes=[8, 8]"
    make_run(tmp_path / "a", "rollout.horizon=10", wide)
    make_run(tmp_path / "b", "rollout.horizon=2", wide)
    make_run(tmp_path / "c", "rollout.horizon=2", wide, "adversary.weight=0")
    make_run(tmp_path / "d", "rollout.horizon=7", "dataset=another")
    groups = group_runs(find_runs([tmp_path]))
    assert [(group.dataset, group.label) for group in groups] == [
        ("another", "pendulum-random"),
        ("pendulum-random", "rollout.horizon=2, adversary.weight=0"),
        ("pendulum-random", "rollout.horizon=2, adversary.weight=0.0003"),
        ("pendulum-random", "rollout.horizon=10, adversary.weight=0.0003"),
    ]


def test_labels_of_many_groups_leave_out_what_is_usual(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "rollout.horizon=2", return_mean=1.0)
    make_run(tmp_path / "b", "rollout.horizon=2", "adversary.weight=0", return_mean=2.0)
    make_run(tmp_path / "c", "rollout.horizon=2", "adversary.weight=3e-2", return_mean=3.0)
    make_run(tmp_path / "d", "rollout.horizon=10", return_mean=4.0)
    groups = group_runs(find_runs([tmp_path]))
    # half of the weights are 0.0003: that is not most of them
    weights = [f"adversary.weight={weight}" for weight in ("0", "0.0003", "0.03", "0.0003")]
    assert [group.label for group in groups] == [*weights[:3], f"rollout.horizon=10, {weights[3]}"]
    make_run(tmp_path / "e", "rollout.horizon=3", return_mean=5.0)
    groups = group_runs(find_runs([tmp_path]))
    assert [group.label for group in groups] == [
        "adversary.weight=0", "unchanged", "adversary.weight=0.03", "rollout.horizon=3",
        "rollout.horizon=10",
    ]  # fmt: skip
    assert groups[1].overrides == "rollout.horizon=2, adversary.weight=0.0003"
    assert usual_settings(groups) == [
        "Where it is not named, on pendulum-random: rollout.horizon=2, adversary.weight=0.0003."
    ]
    rows = aggregate(groups)
    table = markdown(rows, groups)
    for group, row in zip(groups, rows, strict=True):
        assert f"| {group.label} " in table
        assert row.configuration == group.overrides
    assert usual_settings(groups)[0] in table


def test_a_run_done_again_replaces_the_one_before(tmp_path: Path) -> None:
    make_run(tmp_path / "z", status="diverged")
    make_run(tmp_path / "a", status="finished", return_mean=1.0)
    make_run(tmp_path / "m", "seed=1", status="failed")
    (group,) = group_runs(find_runs([tmp_path]))
    assert [run.folder.path.name for run in group.runs] == ["a", "m"]
    assert [run.seed for run in group.finished] == [0]
    assert [run.seed for run in group.failed] == [1]


def test_files_are_named_by_their_last_part_where_that_is_enough(tmp_path: Path) -> None:
    for number, name in enumerate(["x/log.npz", "y/log.npz", "y/other.npz"]):
        make_run(tmp_path / str(number), f"dataset={tmp_path / name}")
    names = [group.dataset for group in group_runs(find_runs([tmp_path]))]
    assert names == [str(tmp_path / "x/log.npz"), str(tmp_path / "y/log.npz"), "other.npz"]


def test_a_file_is_the_same_data_set_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.npz").touch()
    monkeypatch.chdir(tmp_path)
    near = load_config("pendulum-random", ["dataset=log.npz"])
    far = load_config("pendulum-random", [f"dataset={tmp_path / 'log.npz'}"])
    assert compared_settings(near) == compared_settings(far)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-4, "0.0003"), (0.0, "0"), (5, "5"), ((8, 8), "[8, 8]"), (True, "true"), (None, "null"),
     (0.99999999, "0.99999999"), (1234567.0, "1234567.0"), (1 / 3, "0.3333333333333333")],
)  # fmt: skip
def test_a_setting_reads_as_its_override(value: object, text: str) -> None:
    assert setting_text(value) == text


def test_a_file_that_has_changed_is_another_data_set(tmp_path: Path) -> None:
    log = f"dataset={tmp_path / 'log.npz'}"
    make_run(tmp_path / "a", log, content_hash="aaaaaaaaaaaa")
    make_run(tmp_path / "b", log, "seed=1", content_hash="bbbbbbbbbbbb")
    make_run(tmp_path / "c", log, "seed=2", status="failed")  # it has read neither
    groups = group_runs(find_runs([tmp_path]))
    assert [group.dataset for group in groups] == [
        "log.npz (content aaaaaaaa)", "log.npz (content bbbbbbbb)",
    ]  # fmt: skip
    assert [[run.seed for run in group.runs] for group in groups] == [[0], [1, 2]]


def test_equal_data_in_two_places_are_one_data_set(tmp_path: Path) -> None:
    old, new = (f"dataset={tmp_path / place / 'log.npz'}" for place in ("x", "y"))
    make_run(tmp_path / "a", old, content_hash="aa")
    make_run(tmp_path / "b", old, "adversary.weight=0", content_hash="aa")
    make_run(tmp_path / "c", new, "seed=1", content_hash="aa")
    make_run(tmp_path / "d", new, "data.reward_offset=-1", content_hash="bb")
    make_run(tmp_path / "e", old, content_hash="aa", return_mean=1.0)  # a done again
    make_run(tmp_path / "f", f"dataset={tmp_path / 'other.npz'}", content_hash="cc")
    groups = group_runs(find_runs([tmp_path]))
    *together, apart = [(group.dataset, group.label) for group in groups]
    assert together == [
        ("log.npz", "data.reward_offset=-1, adversary.weight=0.0003"),
        ("log.npz", "data.reward_offset=0, adversary.weight=0"),
        ("log.npz", "data.reward_offset=0, adversary.weight=0.0003"),
    ]
    assert apart == ("other.npz", "pendulum-random")
    assert [[run.folder.path.name for run in group.runs] for group in groups[:3]] == [
        ["d"], ["b"], ["e", "c"],
    ]  # fmt: skip


def test_data_that_changed_in_one_place_are_one_data_set_with_their_copy(tmp_path: Path) -> None:
    log, copy = (f"dataset={tmp_path / name}" for name in ("log.npz", "copy.npz"))
    make_run(tmp_path / "a", log, content_hash="aa")
    make_run(tmp_path / "b", log, content_hash="bb")
    make_run(tmp_path / "c", copy, "seed=1", content_hash="aa")
    groups = group_runs(find_runs([tmp_path]))
    found = [(group.dataset, [run.folder.path.name for run in group.runs]) for group in groups]
    assert found == [("copy.npz", ["a", "c"]), ("log.npz", ["b"])]


def test_an_offset_of_the_rewards_is_a_setting_and_no_other_file(tmp_path: Path) -> None:
    make_run(tmp_path / "a", content_hash="aa")
    make_run(tmp_path / "b", "data.reward_offset=-1", content_hash="bb")
    groups = group_runs(find_runs([tmp_path]))
    assert {group.dataset for group in groups} == {"pendulum-random"}
    assert [group.label for group in groups] == ["data.reward_offset=-1", "data.reward_offset=0"]
    make_run(tmp_path / "c", "seed=1", content_hash="cc")  # that is one
    assert len({group.dataset for group in group_runs(find_runs([tmp_path]))}) == 3


def test_of_two_equal_runs_the_one_written_later_counts_also_when_copied(tmp_path: Path) -> None:
    make_run(tmp_path / "new", return_mean=2.0, written="2026-02-01T00:00:00+00:00")
    make_run(tmp_path / "old", return_mean=1.0, written="2026-01-01T00:00:00+00:00")
    (group,) = group_runs(find_runs([tmp_path]))
    assert [run.folder.path.name for run in group.runs] == ["new"]


def test_a_repeat_counts_once_it_has_an_outcome(tmp_path: Path) -> None:
    make_run(tmp_path / "a", return_mean=1.0)
    for name, status, counts in (
        ("b", "interrupted", "a"), ("c", "running", "a"), ("d", "failed", "a"),
        ("e", "diverged", "e"), ("f", "interrupted", "e"), ("g", "finished", "g"),
    ):  # fmt: skip
        make_run(tmp_path / name, status=status)
        (group,) = group_runs(find_runs([tmp_path]))
        assert [run.folder.path.name for run in group.runs] == [counts]


def test_runs_in_linked_folders_are_found_once(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere" / "seed-1", "seed=1")
    make_run(tmp_path / "runs" / "seed-0")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "runs")  # in a circle
    assert sorted(run.seed for run in find_runs([tmp_path / "runs"])) == [0, 1]
