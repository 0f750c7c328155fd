"""Offline choice among configurations, and how far to trust it.

By RAMBO-OFF's heuristic (P B.5), or by whole episodes of the policies in their runs' fits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agents.printed import number
from agents.studies.aggregate import markdown_table
from agents.studies.episodes_in_fit import EpisodesInFit
from agents.studies.planned_runs import PlannedRun
from agents.studies.run_groups import DamagedRun, Group, Run, known, usual_settings
from agents.training.results import Q_VAR_ITERATIONS

__all__ = ["Candidate", "Selection", "report", "select"]

#: Settings that change what a value means: between them, values say nothing.
VALUE_SETTINGS = (
    "agent.gamma", "agent.entropy_in_target", "agent.ent_coef", "agent.target_entropy",
    "agent.cloning_weight", "agent.n_critics", "data.reward_offset",
    "agent.real_ratio", "rollout.policy",  # which states and actions mean Q is over
    "iterations",  # values rise as they are learnt
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One configuration; means over its runs that finished, None where none has the number.

    A run that diverged and went on counts for nothing, unless there is no other.
    """

    group: Group
    seeds: int  #: runs that count
    q_avg: float | None  #: mean Q of the last iteration
    q_var: float | None  #: variance of mean Q over the last 100 iterations
    heuristic: float | None  #: Q_avg + Q_var
    in_fit: float | None  #: return of whole episodes in the runs' fits, where that is what counts
    in_fit_error: float | None  #: standard error of that by its episodes; None where unknown
    mean_return: float | None
    mean_score: float | None

    @property
    def label(self) -> str:
        return self.group.label

    @property
    def cost(self) -> float | None:
        """What is to be least."""
        return self.heuristic if self.in_fit is None else -self.in_fit


@dataclass(frozen=True)
class Selection:
    """The choice on one data set."""

    dataset: str
    candidates: tuple[Candidate, ...]
    #: the least heuristic, or the largest return in the fits; None where no run finished
    choice: Candidate | None
    best: Candidate | None  #: the largest return; None where none is known
    doubts: tuple[str, ...]  #: why the choice cannot be trusted; empty if it can
    by_episodes: bool = False  #: in the fits, not by the heuristic
    as_good: tuple[Candidate, ...] = ()  #: in the fits, within two standard errors of the choice

    @property
    def regret(self) -> float | None:
        """What the choice costs in return against the best candidate."""
        if self.choice is None or self.best is None:
            return None
        return _difference(self.best.mean_return, self.choice.mean_return)

    @property
    def score_regret(self) -> float | None:
        """The same in normalised score."""
        if self.choice is None or self.best is None:
            return None
        return _difference(self.best.mean_score, self.choice.mean_score)


def select(
    groups: Sequence[Group],
    missing: Iterable[PlannedRun] = (),
    damaged: Sequence[DamagedRun] = (),
    in_fit: EpisodesInFit | None = None,
) -> list[Selection]:
    """Choose a configuration on each data set by the least mean Q_avg + Q_var (P B.5).

    With ``in_fit`` by the largest return there: what a value means no longer matters then.

    Only runs that finished count: what a run that ran away says of its values is worth nothing.
    Planned runs that are missing are a reason for doubt; so are, on each data set, runs that cannot
    be read, since nobody knows what they were trained on.
    """
    names = {run.settings["dataset"]: group.dataset for group in groups for run in group.runs}
    absent: dict[str, list[PlannedRun]] = {group.dataset: [] for group in groups}
    for run in missing:
        absent.setdefault(names.get(run.dataset, run.dataset), []).append(run)
    return [
        _select(name, [g for g in groups if g.dataset == name], absent[name], damaged, in_fit)
        for name in absent
    ]


def _select(
    dataset: str,
    groups: Sequence[Group],
    missing: Sequence[PlannedRun],
    damaged: Sequence[DamagedRun],
    in_fit: EpisodesInFit | None,
) -> Selection:
    candidates = tuple(_candidate(group, in_fit) for group in groups)
    what = "Q_avg + Q_var" if in_fit is None else "return in the fit"
    choice = _least([(c.cost, c) for c in candidates])
    best = _least([(None if c.mean_return is None else -c.mean_return, c) for c in candidates])
    doubts = _doubts(groups, in_fit)
    if choice is not None:
        doubts += [
            f"{choice.label} and {c.label} have the same {what}"
            for c in candidates
            if c is not choice and c.cost == choice.cost
        ]
    doubts += [f"{run.folder}: planned, without a result" for run in missing]
    doubts += [f"{run.folder}: cannot be read, and may be one of these" for run in damaged]
    as_good = tuple(c for c in candidates if choice is not None and _as_good(c, choice))
    return Selection(dataset, candidates, choice, best, tuple(doubts), in_fit is not None, as_good)


def _as_good(candidate: Candidate, choice: Candidate) -> bool:
    """Whether its episodes in the fits do not tell it from the choice."""
    if candidate is choice or candidate.in_fit is None or choice.in_fit is None:
        return False
    errors = [c.in_fit_error for c in (candidate, choice)]
    known_errors = [error for error in errors if error is not None]
    less = choice.in_fit - candidate.in_fit
    return len(known_errors) < 2 or less < 2.0 * math.hypot(*known_errors)


def _least(rated: Sequence[tuple[float | None, Candidate]]) -> Candidate | None:
    with_number = [(value, candidate) for value, candidate in rated if value is not None]
    return min(with_number, key=lambda pair: pair[0])[1] if with_number else None


def _candidate(group: Group, in_fit: EpisodesInFit | None) -> Candidate:
    runs = [run for run in group.finished if _judged_by(run, in_fit) is not None]
    returning = runs or group.finished  # of the same runs as what they are judged by
    judged = [value for run in runs if (value := _judged_by(run, in_fit)) is not None]
    return Candidate(
        group=group,
        seeds=len(returning),
        q_avg=_mean(known(runs, "q_avg")),
        q_var=_mean(known(runs, "q_var")),
        heuristic=_mean(judged) if in_fit is None else None,
        in_fit=None if in_fit is None else _mean(judged),
        in_fit_error=None if in_fit is None else _error(runs, in_fit),
        mean_return=_mean(known(returning, "return_mean")),
        mean_score=_mean(known(returning, "score")),
    )


def _error(runs: Sequence[Run], in_fit: EpisodesInFit) -> float | None:
    """Standard error of the mean over the runs' own means; None where one has none."""
    errors = [in_fit.standard_errors.get(run.folder.path) for run in runs]
    found = [error for error in errors if error is not None]
    return math.hypot(*found) / len(found) if found and len(found) == len(errors) else None


def _judged_by(run: Run, in_fit: EpisodesInFit | None) -> float | None:
    if run.diverged_and_went_on:
        return None
    return _heuristic(run) if in_fit is None else in_fit.returns.get(run.folder.path)


def _heuristic(run: Run) -> float | None:
    q_avg, q_var = run.result.get("q_avg"), run.result.get("q_var")
    return None if q_avg is None or q_var is None else float(q_avg + q_var)


def _doubts(groups: Sequence[Group], in_fit: EpisodesInFit | None) -> list[str]:
    doubts = []
    if len(groups) == 1:
        doubts.append("there is one candidate only")
    differing = groups[0].settings if groups else {}
    if in_fit is None:
        doubts += [
            f"{key} differs between candidates: their values cannot be compared"
            for key in VALUE_SETTINGS
            if key in differing
        ]
    else:
        doubts += [
            f"{key} differs between candidates: they are judged in different models"
            for key in differing
            if key.startswith("model.")
        ]
    seeds = sorted({run.seed for group in groups for run in group.runs})
    for group in groups:
        present = {run.seed for run in group.runs}
        absent = [str(seed) for seed in seeds if seed not in present]
        if absent:
            doubts.append(f"{group.label}: no run of seed {', '.join(absent)}")
        doubts += [f"{group.label}: {doubt}" for doubt in _doubts_of(group, in_fit)]
    lengths = [run.result.get("iterations", 0) for group in groups for run in group.finished]
    if in_fit is None and lengths and min(lengths) < 2 * Q_VAR_ITERATIONS:
        doubts.append(
            f"Q_var is over the last {Q_VAR_ITERATIONS} iterations: in a run of {min(lengths)} it "
            "holds how the values came from 0 to their size"
        )
    return doubts


def _doubts_of(group: Group, in_fit: EpisodesInFit | None) -> list[str]:
    doubts = []
    for run in group.runs:
        error = run.result.get("error")
        if run.status != "finished":
            why = f" ({error})" if error else ""
            doubts.append(f"seed {run.seed} {_STATUSES.get(run.status, run.status)}{why}")
        elif run.diverged_and_went_on:
            doubts.append(f"seed {run.seed} diverged, and went on")
        elif in_fit is not None:
            if (doubt := in_fit.doubts.get(run.folder.path)) is not None:
                doubts.append(f"seed {run.seed} {doubt}")
        elif _heuristic(run) is None:
            doubts.append(f"seed {run.seed} has no mean Q")
        elif (ceiling := run.result.get("q_ceiling")) is not None and run.result["q_avg"] > ceiling:
            doubts.append(
                f"seed {run.seed} has a mean Q of {number(run.result['q_avg'])}, above the "
                f"{number(ceiling)} that the data's largest reward can sum to"
            )
    return doubts


_STATUSES = {"interrupted": "was interrupted", "running": "is running, or was killed"}


def report(selection: Selection) -> str:
    """The candidates as a table, the choice, its cost, and why it cannot be trusted."""
    judged = ["in the fit"] if selection.by_episodes else ["Q_avg", "Q_var", "Q_avg + Q_var"]
    header = ["candidate", "seeds", *judged, "mean return"]
    rows = []
    for c in selection.candidates:
        numbers = [c.in_fit] if selection.by_episodes else [c.q_avg, c.q_var, c.heuristic]
        rows.append([c.label, str(c.seeds), *map(number, [*numbers, c.mean_return])])
    lines = [f"data set  {selection.dataset}", markdown_table(header, rows)]
    lines += usual_settings(candidate.group for candidate in selection.candidates)
    if selection.choice is None:
        of = "an episode in its fit" if selection.by_episodes else "a mean Q"
        lines.append(f"choice    none: no run that counts finished with {of}")
    else:
        lines.append(f"choice    {selection.choice.label}")
        lines += [
            f"as good   {c.label}: the episodes do not tell it from the choice"
            for c in selection.as_good
        ]
        lines += [f"cost      {_cost(selection)}"] if selection.best is not None else []
    if selection.doubts:
        lines.append("The choice cannot be trusted:" if selection.choice else "Because:")
        lines += [f"  {doubt}" for doubt in selection.doubts]
    return "\n".join(lines)


def _cost(selection: Selection) -> str:
    best, regret, in_score = selection.best, selection.regret, selection.score_regret
    if best is None or regret is None:
        return "unknown: the choice has no return"
    if regret == 0:
        return "none: no candidate has a larger return"
    score = f", {number(in_score)} in score," if in_score is not None else ""
    return f"{number(regret)} in return{score} against the best, {best.label}"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
