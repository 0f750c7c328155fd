"""The table of many runs, as Markdown, as CSV and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import imageio.v3 as imageio
import pytest

from agents.cli import main
from tests.agents.made_up_runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four seeds of one configuration and two of another, one of which diverged."""
    folder = tmp_path / "runs"
    for seed, value in enumerate([10.0, 20.0, 40.0, 90.0]):
        make_run(folder / f"a-{seed}", f"seed={seed}", return_mean=value, wall_s={"total": 60})
    other = "adversary.weight=0"
    make_run(folder / "b-0", other, return_mean=-7.25)
    why = "mean Q is 1e9"
    make_run(folder / "b-1", other, "seed=1", status="diverged", error=why, return_mean=-1e9)
    make_run(folder / "b-2", other, "seed=2", status="running")
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_over_the_seeds_that_finished(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[0]) == [
        "data set", "configuration", "seeds", "mean return", "std", "IQM of return",
        "failed", "unfinished", "minutes",
    ]  # fmt: skip
    frozen, rambo = cells(lines[2]), cells(lines[3])
    assert frozen == [
        "pendulum-random", "adversary.weight=0", "1", "-7.25", "-", "-7.25", "1", "1", "-",
    ]  # fmt: skip
    assert rambo[:3] == ["pendulum-random", "adversary.weight=0.0003", "4"]
    assert rambo[3] == "40.0 [15.0, 72.5]"
    assert rambo[4] == "35.6"  # squares of -30, -20, 0, 50: 3800; sqrt(3800 / 3)
    assert rambo[5] == "30.0 [10.0, 90.0]"  # (20 + 40) / 2
    assert rambo[6:] == ["0", "0", "1"]
    assert f"Not in it: {runs / 'b-1'}: diverged: mean Q is 1e9" in lines
    assert f"Not in it: {runs / 'b-2'}: running" in lines


@pytest.mark.parametrize(("seeds", "told"), [(1, False), (2, True), (9, True), (10, False)])
def test_intervals_of_few_seeds_are_not_left_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: int, told: bool
) -> None:
    for seed in range(seeds):
        make_run(tmp_path / str(seed), f"seed={seed}", return_mean=float(seed))
    assert main(["results", str(tmp_path)]) == 0
    assert ("fewer than 10 seeds the intervals are too narrow" in capsys.readouterr().out) == told


def test_a_run_that_diverged_and_went_on_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "r", return_mean=1.0, divergence={"quantity": "train/q_mean"})
    assert main(["results", str(tmp_path)]) == 0
    assert f"Diverged, and went on: {tmp_path / 'r'}" in capsys.readouterr().out


def test_scores_stand_beside_returns_and_say_their_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, score in enumerate([30.0, 50.0]):
        known = {"return_mean": 1000.0, "score": score, "score_reference": "which one"}
        make_run(tmp_path / str(seed), f"seed={seed}", **known)
    assert main(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[0])[6:9] == ["mean score", "std", "IQM of score"]
    assert cells(lines[2])[3:9] == [
        "1000.0 [1000.0, 1000.0]", "0.0", "1000.0 [1000.0, 1000.0]",
        "40.0 [30.0, 50.0]", "14.1", "40.0 [30.0, 50.0]",
    ]  # fmt: skip
    assert "Score: which one." in lines


def test_the_table_says_what_it_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, day in enumerate(["2026-01-02", "2026-03-04", "2026-02-03"]):
        made = {"written": f"{day}T05:06:07+00:00", "versions": {"torch": "2.6.0", "numpy": "2.1"}}
        make_run(tmp_path / str(seed), f"seed={seed}", content_hash="0123456789ab", **made)
    make_run(tmp_path / "3", "seed=3", status="running", written="2026-12-31T00:00:00+00:00")
    assert main(["results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Data pendulum-random (content 01234567): seeds 0, 1, 2, trained 2026-01-02 to 2026-03-04.",
        "With torch 2.6.0, numpy 2.1.",
    ]
    make_run(tmp_path / "4", "seed=4", versions={"torch": "2.13.0"})
    assert main(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["With torch 2.6.0, numpy 2.1 (3 runs).", "With torch 2.13.0 (1 runs)."]


def test_files_hold_the_same_table(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "a-0-again", "seed=0", return_mean=10.0)
    markdown, table = tmp_path / "table.md", tmp_path / "table.csv"
    assert main(["results", str(runs), "--markdown", str(markdown), "--csv", str(table)]) == 0
    printed = capsys.readouterr().out
    assert markdown.read_text() == printed
    assert "Left out: 1 runs" in printed
    with table.open(newline="") as file:
        frozen, rambo = csv.DictReader(file)
    assert (rambo["dataset"], rambo["configuration"]) == (
        "pendulum-random",
        "adversary.weight=0.0003",
    )
    assert (rambo["seeds"], float(rambo["return_mean"]), float(rambo["return_iqm"])) == (
        "4",
        40,
        30,
    )
    assert float(rambo["return_mean_low"]) < 30 < 50 < float(rambo["return_mean_high"])
    assert (float(rambo["return_iqm_low"]), float(rambo["return_iqm_high"])) == (10, 90)
    assert float(rambo["return_std"]) == pytest.approx((3800 / 3) ** 0.5)
    assert (rambo["score_mean"], frozen["return_mean_low"], frozen["failed"]) == ("", "", "1")


def test_tables_are_written_to_what_links_lead_to(runs: Path, tmp_path: Path) -> None:
    words = []
    for option in ("--csv", "--markdown"):
        link = tmp_path / f"link{option}"
        link.symlink_to(tmp_path / f"behind{option}")
        words += [option, str(link)]
    assert main(["results", str(runs), *words]) == 0
    assert all((tmp_path / f"link{option}").is_symlink() for option in ("--csv", "--markdown"))
    assert (tmp_path / "behind--csv").read_text().startswith("dataset,")
    assert (tmp_path / "behind--markdown").read_text().startswith("| data set")


def test_two_tables_are_not_written_to_one_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "table")
    assert main(["results", str(runs), "--csv", file, "--markdown", file]) == 2
    assert "two of them name one file" in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_the_picture_has_a_panel_for_each_data_set(runs: Path, tmp_path: Path) -> None:
    make_run(runs / "c", "dataset=another", return_mean=1.0)
    make_run(runs / "d", "dataset=a-third", status="diverged")
    for folder in runs.iterdir():
        rows = "1,2.0,0.0,5.0,\n2,3.0,0.0,5.0,\n"
        header = "iteration,return_mean,return_std,length_mean,score\n"
        (folder / "evaluations.csv").write_text(header + rows)
    picture = tmp_path / "curves.png"
    assert main(["results", str(runs), "--plot", str(picture)]) == 0
    assert imageio.imread(picture).shape[1] == 2 * 960


def test_groups_without_evaluations_are_not_drawn(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in runs.iterdir():
        header = "iteration,return_mean,return_std,length_mean,score\n"
        (folder / "evaluations.csv").write_text(f"{header}1,2.0,0.0,5.0,\n")
    picture = tmp_path / "curves.png"
    blind = tmp_path / "blind"
    make_run(blind, "evaluation.episodes=0", "dataset=another")
    assert main(["results", str(runs), str(blind), "--plot", str(picture)]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "adv-worldmodel: not drawn: another, pendulum-random: evaluation.episodes=0\n"
    )
    assert imageio.imread(picture).shape[1] == 960
    assert main(["results", str(blind), "--plot", str(picture)]) == 2
    assert "None of the runs that finished has evaluations" in capsys.readouterr().err


def test_runs_without_a_simulator_are_sent_to_select(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = tmp_path / "blind"
    make_run(blind, "evaluation.episodes=0", "dataset=another", return_mean=None)
    assert main(["results", str(blind)]) == 0
    assert "'select RUNS --in-fit' compares policies" in capsys.readouterr().err
    assert main(["results", str(blind), str(runs)]) == 0
    assert capsys.readouterr().err == ""


def test_a_seed_counts_where_it_has_a_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", return_mean=1.0)
    make_run(tmp_path / "b", "seed=1", return_mean=None)
    assert main(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[2])[2:4] == ["1", "1"]
    assert f"Not in it: {tmp_path / 'b'}: finished: no evaluation" in lines


def test_content_that_the_name_tells_is_not_told_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, content in enumerate(["0123456789ab", "ba9876543210"]):
        make_run(tmp_path / str(number), content_hash=content)
    assert main(["results", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Data ")]
    assert lines == [
        "Data pendulum-random (content 01234567): seeds 0.",
        "Data pendulum-random (content ba987654): seeds 0.",
    ]


def test_a_picture_is_a_png(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(runs), "--plot", "curves.jpg"]) == 2
    assert "only PNG is drawn" in capsys.readouterr().err


def test_without_a_run_there_is_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    make_run(tmp_path / "run", status="failed", error="x")
    assert main(["results", str(tmp_path), "--plot", str(tmp_path / "a.png")]) == 2
    assert "None of the runs has finished" in capsys.readouterr().err


def test_the_table_names_the_command_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["/x/bin/adv-worldmodel", "results", "my runs"])
    assert main(["results", str(tmp_path)]) == 0
    assert "Table by `adv-worldmodel results 'my runs'`, 20" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["/x/agents/__main__.py", "results"])
    assert main(["results", str(tmp_path)]) == 0
    assert "Table by `python -m agents results`, 20" in capsys.readouterr().out


def test_why_a_finished_run_is_not_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", evaluations_used=0)
    make_run(tmp_path / "b", "seed=1", evaluations_used=1)
    assert main(["results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"Not in it: {tmp_path / 'a'}: finished: no evaluation\n" in printed
    assert f"Not in it: {tmp_path / 'b'}: finished: its return is not finite\n" in printed
