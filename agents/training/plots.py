"""Learning curves as PNG files. Drawn on a canvas of their own: nothing global, no display.

Titles and labels hold names of files, in which a dollar sign begins no formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from agents.training.evaluation import EvaluationRow, read_evaluations

Rows = Sequence[EvaluationRow]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
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

    :param run: run folder, `evaluations.csv`, or rows of evaluations.
    :param path: PNG to write.
    :param behaviour_return: mean episode return of the data set, a dashed line.
    :param cloning_return: return after behaviour cloning, a dotted line.
    :param title: usually the data set and the environment.
    :param label: of the curve.
    :raises FileNotFoundError, ValueError: nothing to draw, or an unreadable file.
    """
    rows = rows_of(run)
    figure, (axes,) = panels_of([title])
    iterations = np.array([row["iteration"] for row in rows])
    mean = np.array([row["return_mean"] for row in rows])
    spread = np.array([row["return_std"] for row in rows])
    axes.plot(iterations, mean, color=COLOURS[0], label=label, marker=marker(iterations))
    axes.fill_between(
        iterations, mean - spread, mean + spread, color=COLOURS[0], alpha=0.2, linewidth=0
    )
    reference_lines(axes, behaviour_return, cloning_return)
    return save_figure(figure, path)


def rows_of(run: str | Path | Rows) -> Rows:
    rows = read_evaluations(run) if isinstance(run, (str, Path)) else run
    if not rows:
        where = f"'{run}'" if isinstance(run, (str, Path)) else "The run"
        raise ValueError(f"{where} holds no evaluation yet, so there is no curve to draw.")
    return rows


def panels_of(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each title, side by side."""
    figure = Figure(figsize=(6.4 * len(titles), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, parse_math=False)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return in the real environment")
    return figure, panels


def marker(iterations: NDArray[np.int64]) -> str:
    """Few points are marked: a single one would be no line at all."""
    return "o" if len(iterations) <= 15 else ""


def reference_lines(axes: Axes, behaviour: float | None, clone: float | None) -> None:
    values = {"behaviour": behaviour, "clone": clone}
    for name, value in values.items():
        if value is not None and np.isfinite(value):
            colour, style = _REFERENCE_STYLES[name]
            axes.axhline(value, color=colour, linestyle=style, label=f"{name} ({value:.0f})")


def save_figure(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    rows = [_legend_below(axes) for axes in figure.axes]
    figure.set_figheight(figure.get_figheight() + 0.22 * max(rows, default=0))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version that matplotlib writes into the file, equal runs give equal files.
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
    return path


def _legend_below(axes: Axes) -> int:
    """A legend that hides no curve; the rows it has."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return 0
    longest = max(map(len, labels))
    columns = 2 if longest <= 46 else 1
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, frameon=False,
        fontsize=min(8.0, 680.0 / longest),
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return math.ceil(len(labels) / columns)
