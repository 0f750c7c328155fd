"""Curves of groups: each shows the seeds' mean, and their interval as a band."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure

from agents.studies import curves
from agents.studies.curves import _curves, _stack, compare_curves, plot_groups
from agents.studies.run_groups import find_runs, group_runs
from agents.training.plots import panels_of
from tests.agents.made_up_runs import evaluation_rows as rows
from tests.agents.made_up_runs import make_run


def test_a_group_is_stacked_over_common_iterations() -> None:
    iterations, returns = _stack("g", [rows(1, 2, 3, 4), rows(20, 40, every=2)])
    assert iterations.tolist() == [2, 4]
    np.testing.assert_array_equal(returns, [[2, 4], [20, 40]])


def test_the_band_is_the_interval_over_the_seeds() -> None:
    _, (axes,) = panels_of(["title"])
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


def test_a_run_without_its_evaluations_stops_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    for seed in range(3):
        make_run(tmp_path / f"{seed}", f"seed={seed}", return_mean=1.0)
        (tmp_path / f"{seed}" / "evaluations.csv").write_text(
            f"iteration,return_mean,return_std,length_mean,score\n1,{seed},0.0,5.0,\n"
        )
    (tmp_path / "2" / "evaluations.csv").unlink()
    groups = group_runs(find_runs([tmp_path]))
    with pytest.warns(UserWarning, match=f"not drawn: .*{tmp_path / '2'}"):
        plot_groups(groups, tmp_path / "a.png")
    (curve,) = drawn[0].axes[0].lines
    assert list(curve.get_ydata()) == [0.5]
    assert str(curve.get_label()).endswith("(2 seeds)")


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'g' have no evaluated iteration in common"):
        compare_curves({"g": [rows(1), rows(1, every=2)]}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="No groups"):
        compare_curves({}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_lines_for_data_and_clone_are_where_their_numbers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    groups = {"g": [rows(1, 3)]}
    compare_curves(groups, tmp_path / "a.png", behaviour_return=2.0, cloning_return=7.0)
    curve, *lines = drawn[0].axes[0].lines
    assert list(curve.get_ydata()) == [1, 3]
    found = {str(line.get_label()): float(line.get_ydata()[0]) for line in lines}
    assert found == {"behaviour (2)": 2.0, "clone (7)": 7.0}


def test_groups_with_dollar_signs_in_their_names_are_drawn(tmp_path: Path) -> None:
    path = compare_curves({"x=$^$": [rows(1, 2)]}, tmp_path / "c.png", title="x$^$.npz")
    assert imageio.imread(path).ndim == 3
