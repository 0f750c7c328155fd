"""Plans of sweeps that tests of several files make."""

from __future__ import annotations

from pathlib import Path

from agents.studies.sweep import SweepPlan, plan_sweep


def plan(folder: Path, *overrides: str, **options: object) -> SweepPlan:
    """Of `pendulum-random`; its folder is free again."""
    found = plan_sweep("pendulum-random", [f"out={folder}", *overrides], **options)  # type: ignore[arg-type]
    found.lock.close()
    return found
