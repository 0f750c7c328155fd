"""Stretches of work timed between measurements of the machine's matrix-product rate."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.benchmarks.flops import Work, times

Rates = Mapping[int, float]  #: operations per second, by width of the layer
PROBE_SECONDS = 0.06


class Probe:
    """Measures products of ``(batch, w)`` with ``(w, w)``, the rows and layers of an update.

    :param widths: of the layers.
    :param seconds: that one call takes for each.
    """

    def __init__(self, batch: int, widths: Sequence[int], seconds: float = PROBE_SECONDS) -> None:
        self.seconds = seconds
        generator = torch.Generator().manual_seed(0)
        self._products: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for w in widths:
            x, weight = (torch.randn(n, w, generator=generator) for n in (batch, w))
            self._products[w] = (x, weight, torch.empty(batch, w))
        self()  # the first products are slower

    def __call__(self) -> dict[int, float]:
        """The present rates."""
        return {width: self._rate(*tensors) for width, tensors in self._products.items()}

    def _rate(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> float:
        done, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < self.seconds:
            for _ in range(20):
                torch.mm(x, weight, out=out)
            done += 20
        return 2.0 * x.shape[0] * weight.numel() * done / elapsed


def mean_rates(before: Rates, after: Rates) -> dict[int, float]:
    """Rates during what lay between two measurements."""
    return {width: 0.5 * (before[width] + after[width]) for width in before}


def product_seconds(work: Work, rates: Rates) -> float:
    """Time in which the products alone could be done."""
    return sum(operations / rates[width] for width, operations in work.items())


@dataclass
class Part:
    """Something to be timed.

    :param run: does n pieces of it and returns how many units of work they were.
    :param unit: what is counted.
    :param work: useful operations of one unit.
    :param fixed: seconds of a run of any n that are none of its pieces'; taken off.
    """

    name: str
    unit: str
    run: Callable[[int], float]
    work: Work
    fixed: Callable[[], float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Stretches:
    """What was timed of one part so far."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.units = self.seconds = self.product_seconds = 0.0
        self.rates: list[dict[int, float]] = []

    def add(self, units: float, seconds: float, rates: dict[int, float]) -> None:
        """One stretch, and the rates during it."""
        self.units += units
        self.seconds += seconds
        self.product_seconds += product_seconds(times(self.part.work, units), rates)
        self.rates.append(rates)

    def result(self) -> dict[str, Any]:
        """A row of the table; rates in GFLOP/s, ``share`` of the machine's."""
        operations = float(sum(self.part.work.values()))
        counted = operations > 0
        return {
            "part": self.part.name,
            "unit": self.part.unit,
            "units": self.units,
            "seconds": self.seconds,
            "per_second": self.units / self.seconds,
            "milliseconds": 1e3 * self.seconds / self.units,
            "flop": operations,
            "gflops": operations * self.units / self.seconds / 1e9 if counted else None,
            "machine_gflops": {
                str(width): sum(r[width] for r in self.rates) / len(self.rates) / 1e9
                for width in self.rates[0]
            },
            "share": self.product_seconds / self.seconds if counted else None,
            **self.part.extra,
        }


def timed(part: Part, n: int) -> tuple[float, float]:
    """Units and seconds of n pieces."""
    start = time.perf_counter()
    units = part.run(n)
    seconds = time.perf_counter() - start
    return units, seconds if part.fixed is None else max(seconds - part.fixed(), 1e-9)


def pieces_in(part: Part, seconds: float) -> int:
    """How many pieces take about so long; at least one."""
    part.run(1)  # allocations, and compilations where there are any
    n = 1
    while (taken := timed(part, n)[1]) < 0.25 * seconds:
        n *= 2
    return max(1, round(n * seconds / taken))


def measure(parts: Sequence[Part], probe: Probe, seconds: float, rounds: int) -> list[Stretches]:
    """Time parts side by side: A, B, A, B, ..., the machine's rate between any two.

    :param seconds: for each part, in ``rounds`` stretches of at least one piece.
    """
    pieces = [pieces_in(part, seconds / rounds) for part in parts]
    found = [Stretches(part) for part in parts]
    before = probe()
    for _ in range(rounds):
        for part, n, stretches in zip(parts, pieces, found, strict=True):
            units, taken = timed(part, n)
            after = probe()
            stretches.add(units, taken, mean_rates(before, after))
            before = after
    return found


def peak_mib() -> float:
    """Peak resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
