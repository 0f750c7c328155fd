"""Plots: files come out, and they show the numbers that went in."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure

from agents import plots
from agents.evaluation import EvaluationRow
from agents.plots import _curves, _figure, _stack, compare_curves, plot_learning_curve


def rows(*returns: float, every: int = 1) -> list[EvaluationRow]:
    return [
        {
            "iteration": every * i,
            "return_mean": value,
            "return_std": 1.0,
            "length_mean": 10.0,
            "score": None,
        }
        for i, value in enumerate(returns, start=1)
    ]


def test_a_learning_curve_is_a_png_that_depends_on_the_data_only(tmp_path: Path) -> None:
    first = plot_learning_curve(
        rows(1, 2, 3), tmp_path / "a.png", behaviour_return=2.5, cloning_return=None, title="a"
    )
    again = plot_learning_curve(rows(1, 2, 3), tmp_path / "b.png", behaviour_return=2.5, title="a")
    other = plot_learning_curve(rows(1, 2, 4), tmp_path / "c.png", behaviour_return=2.5, title="a")
    assert imageio.imread(first).shape[:2] == (600, 960)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_group_is_stacked_over_common_iterations() -> None:
    iterations, returns = _stack("g", [rows(1, 2, 3, 4), rows(20, 40, every=2)])
    assert iterations.tolist() == [2, 4]
    np.testing.assert_array_equal(returns, [[2, 4], [20, 40]])


def test_the_band_is_the_interval_over_the_seeds() -> None:
    _, (axes,) = _figure(["title"])
    _curves(axes, {"two": [rows(1, 2), rows(3, 6)], "one": [rows(5, 5)]})
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2, 4], [5, 5]]
    (band,) = axes.collections  # one seed has no interval; that of two spans both
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (1.0, 1.0), (2.0, 2.0), (2.0, 6.0), (1.0, 3.0),
    }  # fmt: skip


def test_groups_are_read_from_run_folders(tmp_path: Path) -> None:
    (tmp_path / "evaluations.csv").write_text(
        "iteration,return_mean,return_std,length_mean,score\n1,2.0,0.0,5.0,\n2,3.0,0.0,5.0,\n"
    )
    path = compare_curves({"a": [tmp_path, rows(1, 2)], "b": [rows(3)]}, tmp_path / "c.png")
    assert imageio.imread(path).ndim == 3


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation yet"):
        plot_learning_curve([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="'g' have no evaluated iteration in common"):
        compare_curves({"g": [rows(1), rows(1, every=2)]}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="No groups"):
        compare_curves({}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_curve_band_and_lines_are_where_their_numbers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    known = {"behaviour_return": 2.0, "cloning_return": 7.0}
    plot_learning_curve(rows(1, 3), tmp_path / "a.png", **known)
    compare_curves({"g": [rows(1, 3)]}, tmp_path / "b.png", **known)
    for figure in drawn:
        curve, *lines = figure.axes[0].lines
        assert list(curve.get_ydata()) == [1, 3]
        found = {str(line.get_label()): float(line.get_ydata()[0]) for line in lines}
        assert found == {"behaviour (2)": 2.0, "clone (7)": 7.0}
    (band,) = drawn[0].axes[0].collections  # the mean and one standard deviation, 1
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (1.0, 0.0), (2.0, 2.0), (2.0, 4.0), (1.0, 2.0),
    }  # fmt: skip
