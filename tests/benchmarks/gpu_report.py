"""What was measured on a GPU as a table, beside the goals."""

from __future__ import annotations

from typing import Any

from agents.training.config import TrainConfig
from agents.training.evaluation import is_due
from tests.benchmarks.report import number, table

#: Least units per second of a part, on an H200.
RATE_GOALS = {"agent": 4000.0, "adversary-mixture": 2500.0, "rollout": 20e6}
#: Most seconds of an iteration of the paper's setting, in Hopper.
ITERATION_GOAL = 0.75
#: As `train` makes it by default.
RUN = TrainConfig(dataset="any")
#: Most minutes of its iterations: one run, and five at once.
RUN_GOAL, PROCESSES_GOAL = 25.0, 60.0
HEADER = ("", "plain", "graphs", "ratio", "goal", "")

Result = dict[str, Any]
Row = tuple[str, ...]


def goal_cells(value: float, goal: float | None, *, least: bool, unit: str = "") -> tuple[str, str]:
    """The goal, and whether the value reaches it."""
    if goal is None:
        return "-", ""
    ok = value >= goal if least else value <= goal
    return number(goal) + unit, "reached" if ok else "MISSED"


def ratio(one: float | None, other: float | None) -> str:
    """How often the second goes into the first."""
    return "-" if one is None or other is None else f"{one / other:.2f}"


def part_rows(graphs: list[Result], plain: list[Result]) -> list[Row]:
    """Rates of the parts."""
    others = {row["part"]: float(row["per_second"]) for row in plain}
    rows: list[Row] = []
    for row in graphs:
        name, rate, other = row["part"], float(row["per_second"]), others.get(row["part"])
        goal = goal_cells(rate, RATE_GOALS.get(name), least=True, unit="/s")
        label = f"{name}, {row['unit']}s/s"
        rows.append((label, number(other), number(rate), ratio(rate, other), *goal))
    return rows


def times_in_a_run() -> dict[str, int]:
    """How often `train` does what it does beside its iterations, as it is by default."""
    every, each_from = RUN.evaluation.every, RUN.iterations - RUN.evaluation.each_of_last + 1
    due = sum(is_due(i, every, each_from) for i in range(1, RUN.iterations + 1))
    return {"evaluation": due, "checkpoint": RUN.iterations // RUN.checkpoint_every}


def iteration_rows(
    graphs: Result, plain: Result | None, beside: dict[str, float], *, hopper: bool
) -> list[Row]:
    """Seconds of an iteration and its phases, and what a whole run would take."""
    one, other = float(graphs["seconds"]), None if plain is None else float(plain["seconds"])
    goal = goal_cells(one, ITERATION_GOAL if hopper else None, least=False)
    rows: list[Row] = [("iteration, s", number(other), number(one), ratio(other, one), *goal)]
    for phase, seconds in graphs["phases"].items():
        slow = None if plain is None else plain["phases"][phase]
        cells = (number(slow), number(seconds), ratio(slow, seconds))
        rows.append((f"  {phase}, s", *cells, "-", ""))
    minutes = one * RUN.iterations / 60
    goal = goal_cells(minutes, RUN_GOAL if hopper else None, least=False)
    rows.append((f"{RUN.iterations} iterations, minutes", "-", number(minutes), "-", *goal))
    for name, times in times_in_a_run().items():
        if name in beside:
            minutes += beside[name] * times / 60
            goal = goal_cells(minutes, RUN_GOAL if hopper else None, least=False)
            rows.append((f"{name}, s", "-", number(beside[name]), "-", "-", ""))
            rows.append((f"  with {times} of them, minutes", "-", number(minutes), "-", *goal))
    return rows


def process_rows(measured: Result, how: str, *, hopper: bool) -> list[Row]:
    """Several processes at once: as long as the slowest takes."""
    n, seconds = measured["processes"], float(measured["slowest"])
    minutes = seconds * RUN.iterations / 60
    goal = goal_cells(minutes, PROCESSES_GOAL if hopper else None, least=False)
    return [
        (f"iteration, {n} {how}, s", "-", number(seconds), "-", "-", ""),
        (f"{RUN.iterations} iterations, {n} {how}, minutes", "-", number(minutes), "-", *goal),
    ]


def speed_rows(result: Result) -> list[Row]:
    """All that was measured of a task; stages that were left out or failed are None or absent."""
    rows = part_rows(result.get("parts_graphs") or [], result.get("parts_plain") or [])
    hopper = result["task"] == "hopper"
    if (graphs := result.get("iterations_graphs")) is not None:
        plain, beside = result.get("iterations_plain"), result.get("beside") or {}
        rows += iteration_rows(graphs, plain, beside, hopper=hopper)
    for stage, how in (("processes", "at once"), ("mps", "at once with MPS")):
        if (measured := result.get(stage)) is not None:
            rows += process_rows(measured, how, hopper=hopper)
    return rows


def speed_text(result: Result) -> str:
    """Heading and table of one task."""
    c = result["configuration"]
    lines = [
        f"{result['task']}: S = {c['obs_dim']}, A = {c['action_dim']}, {c['rows']:,} rows, "
        f"{c['starts']:,} x {c['horizon']} rollouts, {c['updates']} + {c['updates']} updates"
    ]
    for path in ("graphs", "plain"):
        peak = (result.get(f"iterations_{path}") or {}).get("peak_mib")
        if peak is not None:
            lines.append(
                f"peak memory, {path}: {peak['allocated']:,.0f} MiB of tensors, "
                f"{peak['reserved']:,.0f} MiB taken"
            )
    return "\n".join([*lines, table([HEADER, *speed_rows(result)])])
