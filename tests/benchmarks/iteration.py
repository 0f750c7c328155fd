"""A whole iteration of the algorithm through ``model.learn``, and where its time goes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback

from adv_worldmodel.dynamics.model_gradient import Score
from agents import RAMBO, RamboCallback
from tests.benchmarks import flops
from tests.benchmarks.configuration import Configuration
from tests.benchmarks.timing import Probe, Rates, mean_rates, product_seconds

#: Updates of the iteration before: buffer, critics and optimisers are then in use.
FIRST_UPDATES = 3


@dataclass(frozen=True)
class Moment:
    """A border between phases: the clock before and after the machine's rate was measured there."""

    before: float
    after: float
    rates: Rates

    @classmethod
    def now(cls, probe: Probe) -> Moment:
        """Measure the rate here."""
        before = time.perf_counter()
        rates = probe()
        return cls(before, time.perf_counter(), rates)


class Border(BaseCallback):
    """Marks where a rollout starts, before or after the adversary by its place in the list."""

    def __init__(self, probe: Probe, moments: list[Moment], *, at_end: bool) -> None:
        super().__init__()
        self.probe, self.moments, self.at_end = probe, moments, at_end

    def _on_rollout_start(self) -> None:
        self.moments.append(Moment.now(self.probe))

    def _on_rollout_end(self) -> None:
        if self.at_end:
            self.moments.append(Moment.now(self.probe))

    def _on_step(self) -> bool:
        return True


def measure_iteration(c: Configuration, agent: RAMBO, probe: Probe) -> dict[str, Any]:
    """Adversary, rollout and agent's updates of a second iteration; the first warms up.

    The measurements of the machine's rate in between are no part of its time.
    """
    adversary = RamboCallback(adversary_updates=FIRST_UPDATES, score=cast(Score, c.score), seed=0)
    moments: list[Moment] = []
    before, after = (Border(probe, moments, at_end=at_end) for at_end in (False, True))
    steps = agent.timesteps_per_iteration
    agent.gradient_steps = FIRST_UPDATES
    agent.learn(steps, callback=[before, adversary, after])
    moments.clear()
    agent.gradient_steps, adversary.adversary_updates = c.updates, c.updates
    agent.learn(steps, callback=[before, adversary, after], reset_num_timesteps=False)
    moments.append(Moment.now(probe))

    works = (
        flops.times(flops.adversary_update(c, c.score), c.updates) + flops.holdout(c),
        flops.times(flops.rollout_step(c), c.starts * c.horizon),
        flops.times(flops.agent_update(c), c.updates),
    )
    phases: list[dict[str, Any]] = []
    names = ("adversary", "rollout", "agent")
    for name, work, start, end in zip(names, works, moments[:-1], moments[1:], strict=True):
        seconds = end.before - start.after
        rates = mean_rates(start.rates, end.rates)
        phases.append(
            {
                "phase": name,
                "seconds": seconds,
                "flop": float(sum(work.values())),
                "product_seconds": product_seconds(work, rates),
                "share": product_seconds(work, rates) / seconds,
                "machine_gflops": {str(width): rate / 1e9 for width, rate in rates.items()},
            }
        )
    seconds, products, operations = (
        sum(float(phase[key]) for phase in phases) for key in ("seconds", "product_seconds", "flop")
    )
    return {
        "seconds": seconds,
        "flop": operations,
        "gflops": operations / seconds / 1e9,
        "product_seconds": products,
        "share": products / seconds,
        "outside_products": 1.0 - products / seconds,
        "score": c.score,
        "updates": c.updates,
        "transitions": c.starts * c.horizon,
        "phases": phases,
    }
