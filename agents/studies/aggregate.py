"""The table of many runs: statistics over the seeds of each group, as Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.printed import number
from agents.studies.intervals import Summary, summarise
from agents.studies.planned_runs import PlannedRun
from agents.studies.provenance import made_from
from agents.studies.run_groups import DamagedRun, Group, Run, known, usual_settings
from agents.training.atomic_files import write_text_where_named

__all__ = ["Row", "aggregate", "markdown", "markdown_table", "number", "write_csv"]

#: Of fewer seeds bootstrap intervals are too narrow to be left without a word.
FEW_SEEDS = 10


@dataclass(frozen=True)
class Row:
    """One data set and configuration; the statistics are over the runs with a return."""

    dataset: str
    configuration: str  #: all settings in which the data set's groups differ, as overrides
    seeds: int  #: runs that finished and have a return
    returns: Summary | None  #: of `return_mean`, in the environment's reward
    scores: Summary | None  #: of `score`; None where no reference returns are known
    failed: int  #: runs that diverged or failed
    unfinished: int  #: runs that were interrupted, or are running
    minutes: float | None  #: wall clock of a finished run, on average


def aggregate(groups: Sequence[Group]) -> list[Row]:
    """Statistics of each group, in the groups' order."""
    return [
        Row(
            dataset=group.dataset,
            configuration=group.overrides,
            seeds=len(known(group.finished, "return_mean")),
            returns=summarise(known(group.finished, "return_mean")),
            scores=summarise(known(group.finished, "score")),
            failed=len(group.failed),
            unfinished=len(group.runs) - len(group.finished) - len(group.failed),
            minutes=_minutes(group.finished),
        )
        for group in groups
    ]


def _minutes(runs: Sequence[Run]) -> float | None:
    totals = [wall["total"] for run in runs if "total" in (wall := run.result.get("wall_s", {}))]
    return statistics.fmean(totals) / 60 if totals else None


def markdown(
    rows: Sequence[Row],
    groups: Sequence[Group],
    *,
    left_out: int = 0,
    planned: Sequence[PlannedRun] = (),
    damaged: Sequence[DamagedRun] = (),
) -> str:
    """The table, what its columns mean, why runs are missing in it, and what it was made from.

    :param rows: of `aggregate(groups)`.
    :param groups: the runs.
    :param left_out: how many runs were left out for others of the same settings and seed.
    :param planned: runs without a result, of which no group knows.
    :param damaged: runs that cannot be read, of which no group knows either.
    """
    scored = any(row.scores is not None for row in rows)
    header = ["data set", "configuration", "seeds", *_headers("return")]
    header += _headers("score") if scored else []
    header += ["failed", "unfinished", "minutes"]
    cells = []
    for row, group in zip(rows, groups, strict=True):
        line = [row.dataset, group.label, str(row.seeds)]
        line += _cells(row.returns) + (_cells(row.scores) if scored else [])
        cells.append([*line, str(row.failed), str(row.unfinished), number(row.minutes)])
    lines = [markdown_table(header, cells), ""]
    lines.append(
        "Over the seeds that finished and have a return. IQM: mean without the least and the "
        "largest quarter; in brackets, 95 % bootstrap intervals; minutes: of one run."
    )
    if any(1 < row.seeds < FEW_SEEDS for row in rows):
        lines.append(
            f"With fewer than {FEW_SEEDS} seeds the intervals are too narrow: they miss the true "
            "mean more often than 5 times in 100."
        )
    lines += usual_settings(groups)
    references = {run.result.get("score_reference") for group in groups for run in group.finished}
    lines += [f"Score: {reference}." for reference in sorted(filter(None, references))]
    runs = [run for group in groups for run in group.runs]
    missing = [(run, why) for run in runs if (why := _missing(run)) is not None]
    lines += [f"Not in it: {run.folder.path}: {why}" for run, why in missing]
    lines += [f"Not in it: {run.folder}: planned, without a result" for run in planned]
    lines += [f"Not in it: {run.folder}: cannot be read" for run in damaged]
    gone_on = [run for run in runs if run.diverged_and_went_on]
    lines += [f"Diverged, and went on: {run.folder.path}" for run in gone_on]
    if left_out:
        lines.append(f"Left out: {left_out} runs, done again with the same settings and seed")
    lines += made_from(groups)
    return "\n".join(lines) + "\n"


def _missing(run: Run) -> str | None:
    """Why a run's return is not in the table; None if it is."""
    if run.status != "finished":
        return ": ".join(filter(None, [run.status, run.result.get("error")]))
    if known([run], "return_mean"):
        return None
    used = run.result.get("evaluations_used")
    return f"finished: {'its return is not finite' if used else 'no evaluation'}"


def _headers(quantity: str) -> list[str]:
    return [f"mean {quantity}", "std", f"IQM of {quantity}"]


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["-", "-", "-"]
    return [
        number(summary.mean) + _brackets(summary.mean_interval),
        number(summary.std),
        number(summary.iqm) + _brackets(summary.iqm_interval),
    ]


def _brackets(interval: tuple[float, float] | None) -> str:
    return f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text too."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in cells
    )


def write_csv(rows: Sequence[Row], path: str | Path) -> Path:
    """Write the rows unrounded, intervals as two columns each; a cell is empty for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quantities = ("return", "score")
    writer.writerow(
        ["dataset", "configuration", "seeds"]
        + [f"{quantity}_{name}" for quantity in quantities for name in _flat(None)]
        + ["failed", "unfinished", "minutes"]
    )
    for row in rows:
        numbers = [*_flat(row.returns).values(), *_flat(row.scores).values()]
        end = [row.failed, row.unfinished, row.minutes]
        writer.writerow([row.dataset, row.configuration, row.seeds, *numbers, *end])
    write_text_where_named(Path(path), text.getvalue())
    return Path(path)


def _flat(summary: Summary | None) -> dict[str, Any]:
    """The statistics by column name, in the columns' order."""
    values = dataclasses.asdict(summary) if summary else {}
    columns: dict[str, Any] = {name: values.get(name) for name in ("mean", "std", "iqm")}
    for name in ("mean", "iqm"):
        low, high = values.get(f"{name}_interval") or (None, None)
        columns |= {f"{name}_low": low, f"{name}_high": high}
    return columns
