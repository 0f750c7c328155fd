"""Plots: files come out, and they show the numbers that went in."""

from pathlib import Path

import imageio.v3 as imageio
import pytest
from matplotlib.figure import Figure

from agents.training import plots
from agents.training.plots import panels_of, plot_learning_curve, save_figure
from tests.agents.made_up_runs import evaluation_rows as rows


def test_a_learning_curve_is_a_png_that_depends_on_the_data_only(tmp_path: Path) -> None:
    first = plot_learning_curve(
        rows(1, 2, 3), tmp_path / "a.png", behaviour_return=2.5, cloning_return=None, title="a"
    )
    again = plot_learning_curve(rows(1, 2, 3), tmp_path / "b.png", behaviour_return=2.5, title="a")
    other = plot_learning_curve(rows(1, 2, 4), tmp_path / "c.png", behaviour_return=2.5, title="a")
    assert imageio.imread(first).shape[1] == 960
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation yet"):
        plot_learning_curve([], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_curve_band_and_lines_are_where_their_numbers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    plot_learning_curve(rows(1, 3), tmp_path / "a.png", behaviour_return=2.0, cloning_return=7.0)
    curve, *lines = drawn[0].axes[0].lines
    assert list(curve.get_ydata()) == [1, 3]
    found = {str(line.get_label()): float(line.get_ydata()[0]) for line in lines}
    assert found == {"behaviour (2)": 2.0, "clone (7)": 7.0}
    (band,) = drawn[0].axes[0].collections  # the mean and one standard deviation, 1
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (1.0, 0.0), (2.0, 2.0), (2.0, 4.0), (1.0, 2.0),
    }  # fmt: skip


@pytest.mark.parametrize("label", ["short", "a=1, " * 17])
def test_the_legend_hides_nothing(tmp_path: Path, label: str) -> None:
    """It lies below its axes, and within the picture."""
    figure, panels = panels_of(["one", "two"])
    for axes in panels:
        for number in range(9):
            axes.plot([1, 2], [number, number], label=f"{label}{number}")
    save_figure(figure, tmp_path / "curves.png")
    figure.draw_without_rendering()  # at its own resolution, for the extents
    for axes in panels:
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y1 < axes.bbox.y0
        assert legend.get_window_extent().x0 >= 0
        boxes = [text.get_window_extent() for text in legend.get_texts()]
        assert min(box.y0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= figure.bbox.x1


@pytest.mark.parametrize("name", ["x$^$", r"a_$\nothing$"])
def test_names_are_not_read_as_formulas(tmp_path: Path, name: str) -> None:
    drawn = plot_learning_curve(rows(1, 2), tmp_path / "a.png", title=name, label=name)
    other = plot_learning_curve(rows(1, 2), tmp_path / "b.png", title="x", label="x")
    assert drawn.read_bytes() != other.read_bytes()
