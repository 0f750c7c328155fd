"""What a run amounts to: the numbers of `result.json` and the table printed at its end."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from adv_worldmodel import __version__
from adv_worldmodel.data.scores import normalised_score
from agents.printed import number
from agents.training.evaluation import EvaluationRow

PACKAGES = ("torch", "stable-baselines3", "gymnasium", "mujoco", "minari", "numpy")
#: P B.5: Q_var is the variance of the mean Q over this many last iterations.
Q_VAR_ITERATIONS = 100


def return_summary(rows: Sequence[EvaluationRow], last: int, env_id: str | None) -> dict[str, Any]:
    """Return `return_mean`, `return_std`, `evaluations_used`, `score`, `score_reference`.

    Mean and standard deviation (of the return over an evaluation's episodes) are averaged over the
    `last` evaluations, or over all if there are fewer (P B.6); `score` is the normalised score of
    the mean. None without an evaluation, scores also without reference returns for `env_id`.
    """
    used = rows[-last:]
    mean = statistics.fmean(row["return_mean"] for row in used) if used else None
    score = None if mean is None or env_id is None else normalised_score(env_id, mean)
    return {
        "return_mean": mean,
        "return_std": statistics.fmean(row["return_std"] for row in used) if used else None,
        "evaluations_used": len(used),
        "score": None if score is None else score.value,
        "score_reference": None if score is None else score.reference,
    }


def q_summary(
    q_means: Sequence[float], largest_reward: float, gamma: float, *, ends: bool
) -> dict[str, Any]:
    """Return `q_avg`, `q_var` and `q_ceiling` of the mean Q of each iteration, in their order.

    `q_avg` is the last, `q_var` the variance over the last 100 (divided by their number): the
    offline choice among settings takes the least sum (P B.5). `q_ceiling` is what the data's
    largest reward can sum to, r_max / (1 - gamma); with `ends`, where the task can end, a negative
    r_max sums to less than its end at once.
    """
    if ends:
        largest_reward = max(largest_reward, 0.0)
    return {
        "q_avg": q_means[-1] if q_means else None,
        "q_var": statistics.pvariance(q_means[-Q_VAR_ITERATIONS:]) if q_means else None,
        "q_ceiling": largest_reward / (1 - gamma) if gamma < 1 else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that numbers depend on."""
    found = {"python": platform.python_version(), "adv-worldmodel": __version__}
    found |= {package: version(package) for package in PACKAGES}
    found["torch"] = str(torch.__version__)  # with its build, such as +cu124
    return found


def returns_table(result: Mapping[str, Any]) -> list[str]:
    """Lines that set the returns (and scores) of the data, its clone and RAMBO side by side."""
    returns = {
        "behaviour": result["behaviour_return"],
        "clone": result["cloning_return"],
        "RAMBO": result["return_mean"],
    }
    scored = result["score"] is not None
    lines = [f"{'':12} {'return':>10}" + (f" {'score':>8}" if scored else "")]
    for name, value in returns.items():
        if value is None:
            continue
        score = normalised_score(result["env_id"], value) if scored else None
        lines.append(f"{name:12} {number(value):>10}" + (f" {score.value:8.1f}" if score else ""))
    if scored:
        lines.append(f"score: {result['score_reference']}")
    return lines


def seeds_table(results: Mapping[int, Mapping[str, Any]], errors: Mapping[int, str]) -> list[str]:
    """Lines with each seed's return (and score), then mean and std over those that finished.

    :param results: `result.json` by seed; empty where there is none.
    :param errors: why a seed's run did not finish.

    The standard deviation is that of a sample, divided by n - 1.
    """
    lines = [f"{'seed':12} {'return':>10} {'score':>8}"]
    for seed, result in results.items():
        remark = f"  {errors[seed]}" if seed in errors else ""
        cells = _cells(result.get("return_mean"), result.get("score"))
        lines.append(f"{seed!s:12} {cells}{remark}")
    finished = [result for seed, result in results.items() if seed not in errors]
    columns = [
        [result[key] for result in finished if result[key] is not None]
        for key in ("return_mean", "score")
    ]
    means = (statistics.fmean(values) if values else None for values in columns)
    deviations = (statistics.stdev(values) if len(values) > 1 else None for values in columns)
    return [*lines, f"{'mean':12} {_cells(*means)}", f"{'std':12} {_cells(*deviations)}"]


def _cells(mean_return: float | None, score: float | None) -> str:
    shown = "-" if score is None else f"{score:.1f}"
    return f"{number(mean_return):>10} {shown:>8}"
