"""What several seeds say together: mean, interquartile mean, and bootstrap intervals of both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
N_RESAMPLES = 9999


@dataclass(frozen=True)
class Summary:
    """Statistics of one number per seed; intervals are `(low, high)`, None of a single seed."""

    n: int
    mean: float
    std: float | None  #: of a sample, divided by n - 1
    iqm: float  #: interquartile mean: of what is left without a quarter at either end
    mean_interval: tuple[float, float] | None
    iqm_interval: tuple[float, float] | None


def summarise(values: Sequence[float]) -> Summary | None:
    """Statistics of `values`, one per seed; None without any."""
    if not values:
        return None
    several = len(values) > 1
    return Summary(
        n=len(values),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if several else None,
        iqm=float(interquartile_mean(values)),
        mean_interval=_pair(bootstrap_interval(values, np.mean)) if several else None,
        iqm_interval=_pair(bootstrap_interval(values, interquartile_mean)) if several else None,
    )


def interquartile_mean(values: ArrayLike, axis: int = 0) -> Any:
    """Mean without the least and the largest quarter, each rounded down to whole values.

    Of five values it is the mean of the middle three; of fewer than four the plain mean.
    """
    return stats.trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(
    values: ArrayLike, statistic: Callable[..., Any] = np.mean
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of `statistic` over the first axis: percentiles of the resampled statistic.

    :param values: `(n,)` or `(n, m)`, n >= 2 seeds, which are drawn with replacement.
    :param statistic: called with an array and `axis`.
    :return: low and high, `()` or `(m,)`; equal arguments give equal intervals.
    """
    interval = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        statistic,
        axis=0,
        vectorized=True,
        n_resamples=N_RESAMPLES,
        batch=100,  # of curves of thousands of iterations, all at once would be a gigabyte
        confidence_level=CONFIDENCE,
        # Percentiles also of equal values, for which scipy's default, BCa, is not defined.
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def _pair(interval: tuple[Any, Any]) -> tuple[float, float]:
    return float(interval[0]), float(interval[1])
