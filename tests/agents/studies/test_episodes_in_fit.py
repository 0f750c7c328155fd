"""What is said of runs whose episodes in their fits are not to be believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.cli import main
from agents.studies.episodes_in_fit import run_episodes
from agents.studies.run_groups import find_runs, group_runs
from agents.training import run_check
from tests.agents.tiny import TINY


@pytest.mark.parametrize(
    ("found", "doubt"),
    [
        ({}, None),
        ({"rewards": (1.0, 2.0)}, "per step, where the data's rewards lie between 1 and 2"),
        ({"ran_away": np.array([True])}, "1 episodes left all bounds"),
        ({"behaviour": (1e6, 0.0)}, "the clone returns {clone:.1f} there, and the data 1000000.0"),
    ],
)
def test_why_a_return_is_not_to_be_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], doubt: str | None
) -> None:
    words = [*TINY, "cloning.epochs=1", f"out={tmp_path / 'run'}"]
    assert main(["train", "pendulum-random", *words]) == 0
    checks = []

    def changed(*args: Any, **given: Any) -> Any:
        checks.append(replace(run_check.check_run(*args, **given), **found))
        return checks[-1]

    monkeypatch.setattr("agents.studies.episodes_in_fit.check_run", changed)
    judged = run_episodes(group_runs(find_runs([tmp_path])), episodes=1)
    assert judged.returns == {tmp_path / "run": checks[0].returns[0]}
    assert judged.standard_errors == {tmp_path / "run": None}  # of one episode
    if doubt is None:
        assert judged.doubts == {}
    else:
        assert doubt.format(clone=checks[0].clone_returns[0]) in judged.doubts[tmp_path / "run"]


def test_policies_of_other_discounts_run_as_long_as_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows in no order, whose environment nobody knows: what is compared are sums over steps."""
    rng = np.random.default_rng(0)
    log = tmp_path / "log.npz"
    states = rng.normal(size=(50, 2))
    np.savez(
        log, observations=states, actions=rng.uniform(-1, 1, (50, 1)), rewards=np.ones(50),
        next_observations=rng.normal(size=(50, 2)), terminals=np.zeros(50, bool),
        action_low=[-1.0], action_high=[1.0],
    )  # fmt: skip
    for gamma in ("0.9", "0.95"):
        words = [f"dataset={log}", f"agent.gamma={gamma}", f"out={tmp_path / 'runs' / gamma}"]
        words += ["evaluation.episodes=0", "model.termination=never"]
        assert main(["train", "pendulum-random", *TINY, *words]) == 0
    steps = []

    def watched(*args: Any, **given: Any) -> Any:
        check = run_check.check_run(*args, **given)
        steps.append(check.max_steps)
        return check

    monkeypatch.setattr("agents.studies.episodes_in_fit.check_run", watched)
    run_episodes(group_runs(find_runs([tmp_path / "runs"])), episodes=1)
    assert steps == [60, 60]  # 0.95^60 leaves 5 %, as 0.9^30 does
