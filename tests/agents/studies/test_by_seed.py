"""The table of returns by seed, and the differences on shared seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.cli import main
from agents.studies.by_seed import paired_p
from tests.agents.made_up_runs import make_run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """RAMBO on seeds 0 to 2, without its adversary on seeds 1 to 3; seed 3 of RAMBO diverged."""
    for seed, value in enumerate([10.0, 20.0, 30.0]):
        make_run(tmp_path / f"a-{seed}", f"seed={seed}", return_mean=value)
    make_run(tmp_path / "a-3", "seed=3", status="diverged", return_mean=-1e9)
    for seed, value in enumerate([17.0, 25.0, 70.0], start=1):
        make_run(tmp_path / f"b-{seed}", f"seed={seed}", "adversary.weight=0", return_mean=value)
    return tmp_path


def second_table(printed: str) -> list[str]:
    lines = printed.splitlines()
    start = [i for i, line in enumerate(lines) if line.startswith("| data set")][1]
    return lines[start:]


def test_each_seed_has_its_column(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(runs), "--by-seed"]) == 0
    header, _, frozen, rambo, *_ = second_table(capsys.readouterr().out)
    assert cells(header) == ["data set", "configuration", "seed 0", "seed 1", "seed 2", "seed 3"]
    assert cells(frozen)[1:] == ["adversary.weight=0", "-", "17.0", "25.0", "70.0"]
    assert cells(rambo)[1:] == ["adversary.weight=0.0003", "10.0", "20.0", "30.0", "-"]


def test_differences_are_over_the_seeds_that_both_have(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "c", "dataset=another", return_mean=1.0)
    file = tmp_path / "table.md"
    words = ["results", str(runs), "--against", "adversary.weight=0.0003", "--markdown", str(file)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert file.read_text() == printed
    header, _, other, frozen, rambo, *notes = second_table(printed)
    assert cells(header)[-2:] == ["more than the reference", "p"]
    # 17 - 20 and 25 - 30: mean -4, standard error 1; t = -4 with one degree of freedom
    assert cells(frozen)[-2:] == ["-4", "0.16"]
    assert cells(rambo)[-2:] == ["-", "-"]
    assert cells(other)[-2:] == ["-", "-"]  # whose data set has no such configuration
    assert any("Reference: adversary.weight=0.0003." in note for note in notes)


def test_a_reference_that_is_not_there_is_bad_input(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(runs), "--against", "adversary.weight=1"]) == 2
    error = capsys.readouterr().err
    assert "'adversary.weight=1'" in error
    assert "there are: adversary.weight=0; adversary.weight=0.0003" in error


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([], None),
        ([3.0], None),
        ([3.0, 3.0], None),
        ([-3.0, -5.0], 0.156),  # t distribution of one degree of freedom is Cauchy's
        ([1.0, -1.0], 1.0),
    ],
)
def test_p_of_a_paired_t_test(differences: list[float], p: float | None) -> None:
    assert paired_p(differences) == (None if p is None else pytest.approx(p, abs=1e-3))
