"""What a table or picture was made from: data, seeds, dates, versions and the command."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from agents.studies.run_groups import Group
from agents.training.results import versions

__all__ = ["made_from", "made_now"]


def made_now() -> str:
    """A line for what the running script computes itself: its command, the date, the versions."""
    return f"{_command()}, {_text(versions())}"


def made_from(groups: Sequence[Group]) -> list[str]:
    """Lines for a table of runs that finished: data, seeds and dates by data set; the versions.

    First the command that made the table; what made each run is its `config.yaml`.
    """
    lines = [f"Table by {_command()}."]
    for dataset in dict.fromkeys(group.dataset for group in groups):
        runs = [run for group in groups if group.dataset == dataset for run in group.finished]
        if not runs:
            continue
        content = f" (content {runs[0].content[:8]})" if runs[0].content else ""
        content = "" if dataset.endswith(content) else content  # its name tells it already
        parts = ["seeds " + ", ".join(map(str, sorted({run.seed for run in runs})))]
        days = sorted({run.result["written"][:10] for run in runs if run.result.get("written")})
        if days:
            parts.append("trained " + " to ".join(dict.fromkeys((days[0], days[-1]))))
        lines.append(f"Data {dataset}{content}: {', '.join(parts)}.")
    software = Counter(
        _text(run.result["versions"])
        for group in groups
        for run in group.finished
        if run.result.get("versions")
    )
    alone = len(software) == 1
    lines += [f"With {text}{'' if alone else f' ({n} runs)'}." for text, n in software.items()]
    return lines


def _command() -> str:
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name]
    else:
        words = ["python", str(program)] if program.suffix == ".py" else [program.name]
    words += sys.argv[1:]
    return f"`{shlex.join(words)}`, {datetime.now():%Y-%m-%d}"


def _text(found: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in found.items())
