"""A run whose critics run away ends as a failure that says so, instead of going on for days."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.dynamics.fitting import FitDivergedError
from agents.training.progress import MetricsHistory

#: Iterations of a quantity that ran away which a result tells of.
HISTORY = 100
#: Share of its first spread below which the advantage counts as collapsed.
COLLAPSED = 1e-3
#: Nats per predicted number by which held-out data may fit worse than they did.
LOST_FIT = 0.5
#: Beyond the data's rewards, in units of the bound and of at least 1: what rounding may do.
REWARD_SLACK = 1e-3


class DivergenceError(RuntimeError):
    """The critics' values are no values any more: not finite, or far beyond what is possible.

    :param message: for the user.
    :param quantity: which number ran away, its `history` up to then, and the `limit` that it left
        (None: it is not finite).
    :param iteration: after which that was seen.
    """

    def __init__(
        self,
        message: str,
        quantity: str,
        history: Sequence[float],
        limit: float | None,
        iteration: int,
    ) -> None:
        super().__init__(message)
        self.details = _details(quantity, history, limit, iteration)

    def __reduce__(self) -> tuple[Any, ...]:  # else a copy from another process would fail
        found = self.details
        given = (found[key] for key in ("quantity", "history", "limit", "iteration"))
        return type(self), (str(self), *given)


def _details(
    quantity: str, history: Sequence[float], limit: float | None, iteration: int
) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "iteration": iteration,
        "value": history[-1],
        "limit": limit,
        "history": list(history[-HISTORY:]),
    }


def details_of(error: DivergenceError | FloatingPointError) -> dict[str, Any] | None:
    """What `result.json` says of a run that ran away, in training or, by epochs, before it."""
    if isinstance(error, DivergenceError):
        return error.details
    if isinstance(error, FitDivergedError):
        return _details(error.quantity, error.history, None, 0)
    return None


def value_limit(
    dataset: OfflineDataset, gamma: float, alpha: float = 1.0, entropy: float = 0.0
) -> float:
    """Return what no mean Q of a sound run exceeds in size: twice the largest soft value.

    Per step that is a reward of at most max |r| and alpha times an entropy, for 1 / (1 - gamma)
    steps. The entropy is at most that of uniform actions in [-1, 1], dim(A) log 2, and has no lower
    bound: a narrow policy's is far below zero. Twice the sum leaves room for what critics
    overestimate on the way.

    :param dataset: whose rewards count.
    :param gamma: discount per step; 1 has no limit.
    :param alpha: the largest entropy coefficient so far; 0 where the targets leave entropy out.
    :param entropy: the largest |entropy| of the policy so far (nats).
    """
    if gamma >= 1:
        return math.inf
    largest = float(abs(dataset.rewards).max())
    entropy = max(entropy, int(dataset.actions.shape[1]) * math.log(2))
    return 2 * (largest + alpha * entropy) / (1 - gamma)


class DivergenceCallback(BaseCallback):
    """Raises `DivergenceError` after an iteration that ran away, and warns of what leads there.

    A run has diverged when a metric is not finite, or when mean Q leaves `value_limit`. That
    limit goes with the entropy coefficient: one that runs away is warned of.

    :param dataset: the data trained on.
    :param gamma: the agent's discount.
    :param history: where the metrics arrive.
    :param alpha: where the entropy coefficient starts; 0 where the targets leave entropy out.
    :param stop: False warns instead, and lets the run go on, unless a metric is not finite.
    :param warn: called with each warning, once for each kind.
    :param found: details of a divergence before this one was made.
    """

    def __init__(
        self,
        dataset: OfflineDataset,
        gamma: float,
        history: MetricsHistory,
        *,
        alpha: float = 1.0,
        stop: bool = True,
        warn: Callable[[str], None] = warnings.warn,
        found: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._gamma = gamma
        self._history = history
        self._alpha = alpha
        self._stop = stop
        self._warn = warn
        self._warned: set[str] = set()
        self._rewards = float(dataset.rewards.min()), float(dataset.rewards.max())
        #: details of the first divergence, None without one
        self.found = found

    def _on_rollout_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        self._watch()
        try:
            self._check()
        except DivergenceError as error:
            self.found = self.found or error.details
            if self._stop or error.details["limit"] is None:  # with no numbers nothing goes on
                raise
            self._once("divergence", f"diverged, and goes on as asked: {error}")

    def _check(self) -> None:
        q_means = self._history.series("train/q_mean")
        iteration = len(q_means)  # other keys may have begun later
        for key, value in self._history.latest.items():
            # the real environment's numbers do not tell of the critics
            if not math.isfinite(value) and not key.startswith("eval/"):
                message = f"{key} is {value} after iteration {iteration}: the run diverged"
                raise DivergenceError(message, key, self._history.series(key), None, iteration)
        if not q_means:
            return
        alphas, entropies = self._entropy_terms()
        limit = value_limit(
            self._dataset, self._gamma, max(alphas), max(map(abs, entropies), default=0.0)
        )
        if abs(q_means[-1]) <= limit:
            return
        message = (
            f"mean Q is {q_means[-1]:.4g} after iteration {iteration}, but rewards as in the "
            f"data give less than {limit:.4g}: the critics diverged. Try agent.layer_norm=true, "
            "a smaller adversary.weight, or more adversary.updates per agent update"
        )
        raise DivergenceError(message, "train/q_mean", q_means, limit, iteration)

    def _entropy_terms(self) -> tuple[list[float], list[float]]:
        """Coefficient, from its start on, and entropy of each iteration."""
        found = self._history.series("train/ent_coef") if self._alpha > 0.0 else []
        return [self._alpha, *found], self._history.series("train/entropy")

    def _watch(self) -> None:
        """Signs that a run may go wrong."""
        nll = self._history.series("adversary/holdout_nll")
        n_targets = self._dataset.observations.shape[1] + 1
        if nll and nll[-1] > min(nll) + LOST_FIT * n_targets:
            self._once(
                "fit",
                f"the model fits held-out data worse than before: {nll[-1]:.2f} nats per "
                f"transition after {min(nll):.2f}; a smaller adversary.weight or learning rate "
                "helps",
            )
        spread = self._history.series("adversary/advantage_std")
        if spread and spread[-1] < COLLAPSED * spread[0]:
            self._once(
                "advantage",
                f"the advantage hardly varies any more ({spread[-1]:.2g}, at first "
                f"{spread[0]:.2g}): normalised, its noise is what drives the adversary",
            )
        alphas, entropies = self._entropy_terms()
        # by more than float32 rounds the start
        if entropies and alphas[-1] > (1.0 + 1e-6) * max(alphas[:-1], default=math.inf):
            bonus = alphas[-1] * abs(entropies[-1])
            if bonus > max(map(abs, self._rewards)):
                self._once(
                    "entropy",
                    f"the entropy coefficient has risen to {alphas[-1]:.3g}: the critics learn "
                    f"more of entropy ({bonus:.3g} per step) than of rewards; "
                    "agent.entropy_in_target=false or a fixed agent.ent_coef helps",
                )
        reward = self._history.series("model/reward_mean")
        low, high = self._rewards
        below, above = (REWARD_SLACK * max(1.0, abs(bound)) for bound in (low, high))
        if reward and not low - below <= reward[-1] <= high + above:
            why = "the policy exploits the model"
            if reward[-1] < low:
                why = "the policy has left the data; are the action bounds those of the plant?"
            self._once(
                "reward",
                f"the model's mean reward, {reward[-1]:.4g}, lies outside the data's range "
                f"({low:.4g} to {high:.4g}): {why}",
            )

    def _once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(message)
