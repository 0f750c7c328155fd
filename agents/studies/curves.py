"""Learning curves of several seeds: a mean and a band for each group of runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from adv_worldmodel.errors import one_line
from agents.studies.intervals import bootstrap_interval
from agents.studies.run_groups import Group, known
from agents.training.plots import (
    COLOURS,
    Rows,
    marker,
    panels_of,
    reference_lines,
    rows_of,
    save_figure,
)

__all__ = ["compare_curves", "plot_groups"]

_LINE_STYLES = ("-", "--", "-.", ":")  # one after the other, once all colours are taken


def compare_curves(
    groups: Mapping[str, Sequence[str | Path | Rows]],
    path: str | Path,
    *,
    behaviour_return: float | None = None,
    cloning_return: float | None = None,
    title: str = "",
) -> Path:
    """One curve for each group of runs: mean over its seeds, its 95 % bootstrap interval as a band.

    :param groups: label -> runs (folders, CSV files or rows). Only iterations that all runs of a
        group have evaluated are drawn.
    :param path: PNG to write.
    :param behaviour_return: see `plot_learning_curve`.
    :param cloning_return: see `plot_learning_curve`.
    :param title: see `plot_learning_curve`.
    :raises FileNotFoundError, ValueError: nothing to draw, runs of a group without a common
        iteration, or an unreadable file.
    """
    if not groups:
        raise ValueError("No groups of runs to compare.")
    figure, (axes,) = panels_of([title])
    _curves(axes, groups)
    reference_lines(axes, behaviour_return, cloning_return)
    return save_figure(figure, path)


def plot_groups(groups: Sequence[Group], path: str | Path) -> Path:
    """Learning curves of the runs that finished, as `compare_curves` draws them, by data set.

    Groups that are not evaluated in a real environment are left out, and with a warning the runs
    whose evaluations are gone or damaged.

    :raises ValueError: nothing to draw, or runs of a group without a common iteration.
    """
    done = [group for group in groups if group.finished]
    unread: list[str] = []
    found = [(group, _rows_by_run(group, unread)) for group in done if group.evaluated]
    drawn = [(group, rows) for group, rows in found if rows]
    if not drawn and unread:
        raise ValueError(unread[0])
    if not drawn:
        what = "that finished has evaluations" if done else "has finished"
        raise ValueError(
            f"None of the runs {what}, so there is no curve to draw: leave out --plot."
        )
    for error in unread:
        warnings.warn(f"not drawn: {error}", stacklevel=2)
    datasets = list(dict.fromkeys(group.dataset for group, _ in drawn))
    figure, panels = panels_of(datasets)
    for dataset, axes in zip(datasets, panels, strict=True):
        own = [(group, rows) for group, rows in drawn if group.dataset == dataset]
        _curves(axes, {group.label: list(rows.values()) for group, rows in own})
        runs = [run for group, _ in own for run in group.finished]
        returns = [known(runs, key) for key in ("behaviour_return", "cloning_return")]
        reference_lines(axes, *(float(np.mean(values)) if values else None for values in returns))
    return save_figure(figure, path)


def _rows_by_run(group: Group, unread: list[str]) -> dict[Path, Rows]:
    """The evaluations of its finished runs; `unread` gets why others cannot be read."""
    found: dict[Path, Rows] = {}
    for run in group.finished:
        try:
            found[run.folder.path] = rows_of(run.folder.path)
        except (OSError, ValueError) as error:
            unread.append(one_line(error))
    return found


def _curves(axes: Axes, groups: Mapping[str, Sequence[str | Path | Rows]]) -> None:
    """The curves and bands of `compare_curves`."""
    for number, (label, runs) in enumerate(groups.items()):
        iterations, returns = _stack(label, [rows_of(run) for run in runs])
        colour = COLOURS[number % len(COLOURS)]
        style = _LINE_STYLES[number // len(COLOURS) % len(_LINE_STYLES)]
        seeds = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
        axes.plot(
            iterations,
            returns.mean(axis=0),
            color=colour,
            linestyle=style,
            label=seeds,
            marker=marker(iterations),
        )
        if len(runs) > 1:
            low, high = bootstrap_interval(returns)
            axes.fill_between(iterations, low, high, color=colour, alpha=0.2, linewidth=0)


def _stack(label: str, runs: Sequence[Rows]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Common iterations `(n,)` and returns `(runs, n)`."""
    if not runs:
        raise ValueError(f"Group '{label}' holds no run.")
    curves = [{row["iteration"]: row["return_mean"] for row in run} for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        raise ValueError(f"The runs of group '{label}' have no evaluated iteration in common.")
    return np.array(common), np.array([[curve[i] for i in common] for curve in curves])
