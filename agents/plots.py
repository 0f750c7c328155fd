"""Learning curves as PNG files. Drawn on a canvas of their own: nothing global, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from agents.evaluation import EvaluationRow, read_evaluations
from agents.intervals import bootstrap_interval
from agents.run_groups import Group, known

Rows = Sequence[EvaluationRow]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
_LINE_STYLES = ("-", "--", "-.", ":")  # one after the other, once all colours are taken
_REFERENCE_STYLES = {"behaviour": ("#555555", "--"), "clone": ("#555555", ":")}


def plot_learning_curve(
    run: str | Path | Rows,
    path: str | Path,
    *,
    behaviour_return: float | None = None,
    cloning_return: float | None = None,
    title: str = "",
    label: str = "RAMBO",
) -> Path:
    """Return against iteration with the spread over episodes, and what the data hold.

    Args:
        run: run folder, `evaluations.csv`, or rows of evaluations.
        path: PNG to write.
        behaviour_return: mean episode return of the data set, a dashed line.
        cloning_return: return after behaviour cloning, a dotted line.
        title: usually the data set and the environment.
        label: of the curve.

    Raises:
        FileNotFoundError, ValueError: nothing to draw, or an unreadable file.
    """
    rows = _rows(run)
    figure, (axes,) = _figure([title])
    iterations = np.array([row["iteration"] for row in rows])
    mean = np.array([row["return_mean"] for row in rows])
    spread = np.array([row["return_std"] for row in rows])
    axes.plot(iterations, mean, color=_COLOURS[0], label=label, marker=_marker(iterations))
    axes.fill_between(
        iterations, mean - spread, mean + spread, color=_COLOURS[0], alpha=0.2, linewidth=0
    )
    _references(axes, behaviour_return, cloning_return)
    return _save(figure, path)


def compare_curves(
    groups: Mapping[str, Sequence[str | Path | Rows]],
    path: str | Path,
    *,
    behaviour_return: float | None = None,
    cloning_return: float | None = None,
    title: str = "",
) -> Path:
    """One curve for each group of runs: mean over its seeds, its 95 % bootstrap interval as a band.

    Args:
        groups: label -> runs (folders, CSV files or rows). Only iterations that all runs of a
            group have evaluated are drawn.
        path: PNG to write.
        behaviour_return, cloning_return, title: see `plot_learning_curve`.

    Raises:
        FileNotFoundError, ValueError: nothing to draw, runs of a group without a common
            iteration, or an unreadable file.
    """
    if not groups:
        raise ValueError("No groups of runs to compare.")
    figure, (axes,) = _figure([title])
    _curves(axes, groups)
    _references(axes, behaviour_return, cloning_return)
    return _save(figure, path)


def plot_groups(groups: Sequence[Group], path: str | Path) -> Path:
    """Learning curves of the runs that finished, as `compare_curves` draws them, by data set.

    Groups that are not evaluated in a real environment are left out.

    Raises:
        FileNotFoundError, ValueError: as `compare_curves`.
    """
    done = [group for group in groups if group.finished]
    drawn = [group for group in done if group.evaluated]
    if not drawn:
        what = "that finished has evaluations" if done else "has finished"
        raise ValueError(f"None of the runs {what}, so there is no curve to draw.")
    datasets = list(dict.fromkeys(group.dataset for group in drawn))
    figure, panels = _figure(datasets)
    for dataset, axes in zip(datasets, panels, strict=True):
        own = [group for group in drawn if group.dataset == dataset]
        _curves(axes, {group.label: [run.folder.path for run in group.finished] for group in own})
        runs = [run for group in own for run in group.finished]
        returns = [known(runs, key) for key in ("behaviour_return", "cloning_return")]
        _references(axes, *(float(np.mean(values)) if values else None for values in returns))
    return _save(figure, path)


def _curves(axes: Axes, groups: Mapping[str, Sequence[str | Path | Rows]]) -> None:
    """The curves and bands of `compare_curves`."""
    for number, (label, runs) in enumerate(groups.items()):
        iterations, returns = _stack(label, [_rows(run) for run in runs])
        colour = _COLOURS[number % len(_COLOURS)]
        style = _LINE_STYLES[number // len(_COLOURS) % len(_LINE_STYLES)]
        seeds = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
        axes.plot(
            iterations,
            returns.mean(axis=0),
            color=colour,
            linestyle=style,
            label=seeds,
            marker=_marker(iterations),
        )
        if len(runs) > 1:
            low, high = bootstrap_interval(returns)
            axes.fill_between(iterations, low, high, color=colour, alpha=0.2, linewidth=0)


def _rows(run: str | Path | Rows) -> Rows:
    rows = read_evaluations(run) if isinstance(run, (str, Path)) else run
    if not rows:
        where = f"'{run}'" if isinstance(run, (str, Path)) else "The run"
        raise ValueError(f"{where} holds no evaluation yet, so there is no curve to draw.")
    return rows


def _stack(label: str, runs: Sequence[Rows]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Common iterations `(n,)` and returns `(runs, n)`."""
    if not runs:
        raise ValueError(f"Group '{label}' holds no run.")
    curves = [{row["iteration"]: row["return_mean"] for row in run} for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        raise ValueError(f"The runs of group '{label}' have no evaluated iteration in common.")
    return np.array(common), np.array([[curve[i] for i in common] for curve in curves])


def _figure(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each title, side by side."""
    figure = Figure(figsize=(6.4 * len(titles), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return in the real environment")
    return figure, panels


def _marker(iterations: NDArray[np.int64]) -> str:
    """Few points are marked: a single one would be no line at all."""
    return "o" if len(iterations) <= 15 else ""


def _references(axes: Axes, behaviour: float | None, clone: float | None) -> None:
    values = {"behaviour": behaviour, "clone": clone}
    for name, value in values.items():
        if value is not None and np.isfinite(value):
            colour, style = _REFERENCE_STYLES[name]
            axes.axhline(value, color=colour, linestyle=style, label=f"{name} ({value:.0f})")


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    for axes in figure.axes:
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version that matplotlib writes into the file, equal runs give equal files.
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
    return path
