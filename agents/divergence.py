"""A run whose critics run away ends as a failure that says so, instead of going on for days."""

from __future__ import annotations

import math

from stable_baselines3.common.callbacks import BaseCallback

from adv_worldmodel.data import OfflineDataset
from agents.progress import MetricsHistory


class DivergenceError(RuntimeError):
    """The critics' values are no values any more: not finite, or far beyond what is possible."""


def value_limit(dataset: OfflineDataset, gamma: float, alpha: float = 1.0) -> float:
    """Return what no mean |Q| of a sound run exceeds: twice the largest possible soft value.

    Per step that is a reward of at most max |r| and an entropy bonus of at most alpha dim(A) log 2
    (the entropy of uniform actions in [-1, 1]), for 1 / (1 - gamma) steps. Twice that leaves room
    for what critics overestimate on the way.

    Args:
        dataset: whose rewards count.
        gamma: discount per step; 1 has no limit.
        alpha: entropy coefficient; its learned value starts at 1.
    """
    if gamma >= 1:
        return math.inf
    largest = float(abs(dataset.rewards).max())
    entropy = alpha * int(dataset.actions.shape[1]) * math.log(2)
    return 2 * (largest + entropy) / (1 - gamma)


class DivergenceCallback(BaseCallback):
    """Raises `DivergenceError` after an iteration whose mean Q leaves `value_limit`.

    Args:
        dataset: the data trained on.
        gamma: the agent's discount.
        history: where the metrics `train/q_mean` and `train/alpha` arrive.
    """

    def __init__(self, dataset: OfflineDataset, gamma: float, history: MetricsHistory) -> None:
        super().__init__()
        self._dataset = dataset
        self._gamma = gamma
        self._history = history

    def _on_rollout_start(self) -> None:
        self._check()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._check()

    def _check(self) -> None:
        q_means = self._history.series("train/q_mean")
        if not q_means:
            return
        alphas = self._history.series("train/alpha")
        limit = value_limit(self._dataset, self._gamma, max([1.0, *alphas]))
        if abs(q_means[-1]) <= limit:  # False for NaN
            return
        raise DivergenceError(
            f"mean Q is {q_means[-1]:.4g} after iteration {len(q_means)}, but rewards as in the "
            f"data give less than {limit:.4g}: the critics diverged. Try agent.layer_norm=true, "
            "a smaller adversary.weight, or more adversary.updates per agent update"
        )
