"""The returns of many runs seed by seed, and how far configurations differ on shared seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

from agents.printed import number
from agents.studies.aggregate import markdown_table
from agents.studies.run_groups import Group, known

__all__ = ["by_seed", "paired_p"]


def by_seed(groups: Sequence[Group], against: str | None = None) -> str:
    """Markdown: the return of each seed that finished, a line for each group.

    :param groups: of `group_runs`.
    :param against: the label of a configuration. Each line then has how much more it returns than
        that one on the same data set, on average over the seeds that both have, and p.
    :raises ValueError: no group has that label.
    """
    returns = [_returns(group) for group in groups]
    references = {
        group.dataset: own
        for group, own in zip(groups, returns, strict=True)
        if group.label == against
    }
    if against is not None and not references:
        labels = "; ".join(dict.fromkeys(group.label for group in groups))
        raise ValueError(
            f"no configuration is called {against!r} in the table; there are: {labels}"
        )
    seeds = sorted({seed for own in returns for seed in own})
    header = ["data set", "configuration", *(f"seed {seed}" for seed in seeds)]
    header += [] if against is None else ["more than the reference", "p"]
    rows = []
    for group, own in zip(groups, returns, strict=True):
        row = [group.dataset, group.label, *(number(own.get(seed)) for seed in seeds)]
        if against is not None:
            row += _difference(own, references.get(group.dataset, {}), group.label == against)
        rows.append(row)
    lines = [markdown_table(header, rows), "", "Mean return of each seed that finished."]
    if against is not None:
        lines.append(
            f"Reference: {against}. The difference is over the seeds that both have; p of a paired "
            "t-test, two-sided, not corrected for the number of lines."
        )
    return "\n".join(lines) + "\n"


def paired_p(differences: Sequence[float]) -> float | None:
    """p of a two-sided t-test that the mean of `differences`, one per seed, is 0.

    None of fewer than two, and where all are equal.
    """
    if len(set(differences)) < 2:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _returns(group: Group) -> dict[int, float]:
    """By seed, of the runs that finished and have one."""
    return {run.seed: value for run in group.finished for value in known([run], "return_mean")}


def _difference(
    own: Mapping[int, float], reference: Mapping[int, float], is_reference: bool
) -> list[str]:
    """Two cells: the mean difference over shared seeds, and p."""
    differences = [own[seed] - reference[seed] for seed in own if seed in reference]
    if is_reference or not differences:
        return ["-", "-"]
    p = paired_p(differences)
    return [number(statistics.fmean(differences)), "-" if p is None else f"{p:.2g}"]
