"""Results as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Result = dict[str, Any]
HEADER = ("part", "per second", "ms", "MFLOP", "GFLOP/s", "share", "")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """As ``61 %``; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def part_row(part: Result) -> tuple[str, ...]:
    """One part's line."""
    remarks = []
    if "ratio_to_stock" in part:
        remarks.append(f"{part['ratio_to_stock']:.2f} x sb3-sac")
    if "ratio_to_autograd" in part:
        remarks.append(f"{part['ratio_to_autograd']:.2f} x autograd")
    if "mib" in part:
        remarks.append(f"{part['mib']:.1f} MiB")
    if "of_the_time_between" in part:
        remarks.append(f"{100 * part['of_the_time_between']:.2f} % of the time between two")
    return (
        part["part"],
        f"{number(part['per_second'])} {part['unit']}s/s",
        number(part["milliseconds"]),
        number(part["flop"] / 1e6) if part["flop"] else "-",
        number(part["gflops"]),
        percent(part["share"]),
        "; ".join(remarks),
    )


def iteration_rows(iteration: Result) -> Iterator[tuple[str, ...]]:
    """The whole iteration, then its phases."""
    yield (
        "whole iteration",
        f"{number(1 / iteration['seconds'])} iterations/s",
        number(1e3 * iteration["seconds"]),
        number(iteration["flop"] / 1e6),
        number(iteration["gflops"]),
        percent(iteration["share"]),
        f"{percent(iteration['outside_products'])} outside products",
    )
    for phase in iteration["phases"]:
        yield (
            f"  {phase['phase']}",
            "",
            number(1e3 * phase["seconds"]),
            number(phase["flop"] / 1e6),
            number(phase["flop"] / phase["seconds"] / 1e9),
            percent(phase["share"]),
            f"{percent(phase['seconds'] / iteration['seconds'])} of the time",
        )


def machine_rates(result: Result) -> str:
    """Mean over all measurements of one process, by width."""
    measured = [row["machine_gflops"] for row in result["parts"]]
    measured += [p["machine_gflops"] for p in result.get("iteration", {}).get("phases", ())]
    widths = sorted({int(width) for rates in measured for width in rates})
    means = {w: sum(r[str(w)] for r in measured) / len(measured) for w in widths}
    return ", ".join(f"{means[w]:.1f} GFLOP/s at width {w}" for w in widths)


def configuration_text(result: Result) -> str:
    """Heading and table of one configuration."""
    c = result["configuration"]
    threads = f"{c['threads']} thread" + ("s" if c["threads"] > 1 else "")
    rows = [HEADER, *map(part_row, result["parts"])]
    if "iteration" in result:
        rows += iteration_rows(result["iteration"])
    if c["env_id"] is not None:
        heading = f"{c['env_id']}: {c['episodes']} episodes, {threads}"
    else:
        heading = (
            f"{c['task']}: S = {c['obs_dim']}, A = {c['action_dim']}, {c['rows']:,} rows, {threads}"
        )
    lines = [heading, f"products: {machine_rates(result)}; load {result['load_average']:.1f}"]
    if "peak_mib" in result:
        peaks = result["peak_mib"].items()
        lines.append("peak memory, MiB: " + ", ".join(f"{k} {v:,.0f}" for k, v in peaks))
    return "\n".join([*lines, table(rows)])


def by_rows_text(results: Sequence[Result]) -> str:
    """Does an iteration's time depend on the size of the data set? One line per task."""
    lines = []
    for task in dict.fromkeys(r["configuration"]["task"] for r in results):
        found = [r for r in results if r["configuration"]["task"] == task and "iteration" in r]
        if len(found) < 2:
            continue
        texts = [
            f"{r['configuration']['rows']:,} rows {r['iteration']['seconds']:.2f} s "
            f"({r['iteration']['seconds'] / r['iteration']['product_seconds']:.2f} x products)"
            for r in found
        ]
        lines.append(f"iteration of {task}: " + ", ".join(texts))
    return "\n".join(lines)
