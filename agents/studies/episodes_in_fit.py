"""Runs judged by whole episodes of their policies in their own fits: no simulator, and no Q."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adv_worldmodel.errors import one_line
from agents.printed import number
from agents.studies.run_groups import Group, Run
from agents.training.run_check import check_run

__all__ = ["EpisodesInFit", "run_episodes"]


@dataclass(frozen=True)
class EpisodesInFit:
    """What the policies return there, by run folder."""

    returns: dict[Path, float] = field(default_factory=dict)  #: mean over the episodes
    #: of that mean; None of one episode
    standard_errors: dict[Path, float | None] = field(default_factory=dict)
    #: why a run has no return, or one that is not to be believed
    doubts: dict[Path, str] = field(default_factory=dict)


def run_episodes(
    groups: Sequence[Group],
    episodes: int,
    *,
    seed: int = 0,
    dataset: str | None = None,
    trust: bool = False,
    said: Callable[[Run, str], object] = lambda run, text: None,
) -> EpisodesInFit:
    """Deploy the policy of each run that finished in the model that it was fitted to begin with.

    Not of those that diverged and went on, which count for nothing.

    :param episodes: of each.
    :param seed: of all.
    :param dataset: where the runs' data are by now.
    :param trust: import the modules that the runs name.
    :param said: called with each run and what was found.
    """
    found = EpisodesInFit()
    runs = [(g, run) for g in groups for run in g.finished if not run.diverged_and_went_on]
    # returns that are compared are sums over equally many steps
    ahead = {
        dataset: max(run.config.agent.gamma for group, run in runs if group.dataset == dataset)
        for dataset in {group.dataset for group, _ in runs}
    }
    for group, run in runs:
        place = run.folder.path
        try:
            check = check_run(
                run.folder, "fit", episodes=episodes, seed=seed, dataset=dataset, trust=trust,
                look_ahead=ahead[group.dataset],
            )  # fmt: skip
        except (OSError, ValueError) as error:
            found.doubts[place] = f"cannot be judged ({one_line(error)})"
            said(run, found.doubts[place])
            continue
        found.returns[place] = float(check.returns.mean())
        if (doubt := check.doubt(in_fit=True)) is not None:
            found.doubts[place] = f"has a fit that is not to be believed ({doubt})"
        n = len(check.returns)
        standard = float(check.returns.std(ddof=1)) / n**0.5 if n > 1 else None
        found.standard_errors[place] = standard
        shown = "unknown" if standard is None else number(standard)
        said(
            run,
            f"{number(found.returns[place])} (standard error {shown}) in its fit, "
            f"{check.lengths.mean():.1f} steps",
        )
    return found
