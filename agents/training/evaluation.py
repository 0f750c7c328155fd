"""Returns of a policy in the real environment, once or while it trains.

Evaluation is P B.6's: the deterministic policy (with its greedy step, if any), 10 episodes.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.vec_env import DummyVecEnv

from adv_worldmodel.checks import check_whole
from adv_worldmodel.data.scores import normalised_score
from agents.printed import number
from agents.training.real_env import check_spaces, make_real_env

__all__ = [
    "Evaluation",
    "EvaluationCallback",
    "EvaluationRow",
    "Evaluator",
    "evaluate",
    "is_due",
    "read_evaluations",
]


class EvaluationRow(TypedDict):
    """One row of `evaluations.csv`; the score is empty there where it is None here."""

    iteration: int
    return_mean: float
    return_std: float
    length_mean: float
    score: float | None


EVALUATION_COLUMNS = tuple(EvaluationRow.__annotations__)

#: Of an environment at most, each with its own episodes.
COPIES = 10


def first_start(seed: int) -> int:
    """Seed of the first of an evaluation's `COPIES` starts.

    NumPy's older generators, which an environment may have, take no seed from 2^32 on: where the
    starts of `seed` would reach that, they are those of a smaller one.
    """
    return COPIES * (seed % (2**32 // COPIES))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Undiscounted returns `(n,)` and lengths `(n,)` (steps) of n episodes in `env_id`."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    env_id: str

    @property
    def return_mean(self) -> float:
        """Mean return over the episodes."""
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        """Standard deviation of the return over the episodes (divided by n)."""
        return float(self.returns.std())

    @property
    def length_mean(self) -> float:
        """Mean number of steps of an episode."""
        return float(self.lengths.mean())

    @property
    def score(self) -> float | None:
        """Normalised score of the mean return (0 random, 100 expert), None without a reference."""
        score = normalised_score(self.env_id, self.return_mean)
        return None if score is None else score.value


class Evaluator:
    """Copies of a real environment, kept open between evaluations.

    Each `evaluate` seeds them anew, so that equal policies get equal returns from equal starts.
    Within a training the starts are drawn from seed and iteration: ten fixed ones, shared by all
    iterations and seeds, would leave most of the noise out of the spread over seeds. Close it, or
    use it as a context manager.

    :param env_id: Gymnasium id or `module:ID`.
    :param episodes: per evaluation.
    :param seed: of the starts, where no iteration is given: episode i < 10 begins with
        `reset(seed=10 * seed + i)`, so that other seeds give other starts.
    :raises ValueError: `episodes` < 1, or the environment is unknown or cannot be built.
    """

    def __init__(self, env_id: str, *, episodes: int = 10, seed: int = 0) -> None:
        check_whole(at_least=1, episodes=episodes)
        self.env_id = env_id
        self.episodes = episodes
        self.seed = seed
        # One copy per episode, up to a limit: the policy then answers them as one batch.
        self._envs = make_vec_env(
            lambda **kwargs: make_real_env(env_id, **kwargs),
            n_envs=min(episodes, COPIES),
            vec_env_cls=DummyVecEnv,
        )

    def evaluate(
        self, policy: Any, *, deterministic: bool = True, iteration: int | None = None
    ) -> Evaluation:
        """Returns of `policy`, an SB3 algorithm or policy (anything with SB3's `predict`).

        :param policy: what acts; it receives raw observations `(n, S)`.
        :param deterministic: the policy's deterministic action; else sampled, from a generator
            seeded like the starts.
        :param iteration: of a training, from which (and `seed`) its starts are drawn.
        :raises ValueError: the policy's spaces are not the environment's.
        """
        check_spaces(policy, self._envs.envs[0], self.env_id)  # type: ignore[attr-defined]
        seed = first_start(self.seed)  # SB3 gives copy i the seed + i
        if iteration is not None:
            seed = int(np.random.SeedSequence([self.seed, iteration]).generate_state(1)[0])
        self._envs.seed(seed)
        device = torch.device(getattr(policy, "device", "cpu"))
        # A stochastic policy draws from torch's global generator: leave that as it was found.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="gymnasium")
                returns, lengths = evaluate_policy(
                    policy,
                    self._envs,
                    n_eval_episodes=self.episodes,
                    deterministic=deterministic,
                    return_episode_rewards=True,
                )
        return Evaluation(
            np.asarray(returns, dtype=np.float64), np.asarray(lengths, dtype=np.int64), self.env_id
        )

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evaluate(
    policy: Any, env_id: str, *, episodes: int = 10, seed: int = 0, deterministic: bool = True
) -> Evaluation:
    """Evaluate once; see `Evaluator` for arguments and errors."""
    with Evaluator(env_id, episodes=episodes, seed=seed) as evaluator:
        return evaluator.evaluate(policy, deterministic=deterministic)


def is_due(iteration: int, every: int, each_from: int | None) -> bool:
    """Whether an iteration is evaluated, even if it is not the last one of its training."""
    return iteration % every == 0 or (each_from is not None and iteration >= each_from)


class EvaluationCallback(BaseCallback):
    """Evaluates every `every` iterations, from one on each, and after the last one.

    An iteration (rollout, then updates) is over when SB3 starts the next rollout or ends the
    training: those are the two hooks. Iterations are `model.iteration` where the algorithm
    counts them, else rollouts seen. SB3's EventCallbacks do not forward the hook: use this one
    at top level, alone or in a list.

    :param evaluator: what evaluates; the caller closes it.
    :param every: iterations between evaluations.
    :param each_from: iteration from which on each is evaluated; None: none.
    :param path: `evaluations.csv`, which is begun anew: one flushed row per evaluation; None for no
        file.
    :param history: rows of a training that goes on; those that are not due by now are left out.
    :param verbose: 1 prints each evaluation.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        every: int = 1,
        each_from: int | None = None,
        path: str | Path | None = None,
        history: Iterable[EvaluationRow] = (),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_whole(at_least=1, every=every)
        self.evaluator = evaluator
        self.every = every
        self.each_from = each_from
        self.path = None if path is None else Path(path)
        #: one row per evaluation
        self.history: list[EvaluationRow] = [
            row for row in history if is_due(row["iteration"], every, each_from)
        ]
        self._rollouts = 0
        self._last = 0

    def _on_training_start(self) -> None:
        self._last = self._iteration()
        if self.history and self.history[-1]["iteration"] == self._last:
            self._log(self.history[-1])  # for the dump of the iteration that comes
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(EVALUATION_COLUMNS)
        for row in self.history:
            self._append(row)

    def _on_rollout_start(self) -> None:
        iteration = self._iteration()
        if is_due(iteration, self.every, self.each_from):
            self._evaluate(iteration)

    def _on_rollout_end(self) -> None:
        self._rollouts += 1

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate(self._iteration())

    def _iteration(self) -> int:
        return int(getattr(self.model, "iteration", self._rollouts))

    def _evaluate(self, iteration: int) -> None:
        if iteration <= self._last:  # nothing trained since the last one
            return
        if getattr(self.model, "not_finite", None) is not None:  # `learn` says so and stops
            return
        self._last = iteration
        evaluation = self.evaluator.evaluate(self.model, iteration=iteration)
        row: EvaluationRow = {
            "iteration": iteration,
            "return_mean": evaluation.return_mean,
            "return_std": evaluation.return_std,
            "length_mean": evaluation.length_mean,
            "score": evaluation.score,
        }
        self.history.append(row)
        self._append(row)
        self._log(row)
        self._to_tensorboard(row)
        if self.verbose:
            print(f"iteration {iteration}: return {number(evaluation.return_mean)}")

    def _log(self, row: EvaluationRow) -> None:
        """To SB3's logger, whose next dump comes with the next iteration's metrics."""
        for key, value in _values(row).items():
            self.logger.record(key, value, exclude="tensorboard")

    def _to_tensorboard(self, row: EvaluationRow) -> None:
        """At once, at the step evaluated: the last evaluation has no next iteration, and the step
        of the next dump would be late by an iteration.
        """
        values = _values(row)
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.write(dict(values), dict.fromkeys(values, ()), self.num_timesteps)

    def _append(self, row: EvaluationRow) -> None:
        """Opened and closed for each row: an interrupted run leaves whole rows.

        `repr` keeps every digit, so that equal runs give equal files.
        """
        if self.path is None:
            return
        cells = ["" if value is None else repr(value) for value in row.values()]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def _values(row: EvaluationRow) -> dict[str, Any]:
    return {f"eval/{key}": value for key, value in row.items() if value is not None}


def read_evaluations(path: str | Path) -> list[EvaluationRow]:
    """Rows of an `evaluations.csv`, or of the one in the run folder `path`.

    :raises FileNotFoundError: there is none.
    :raises ValueError: a column is missing or a cell is no number; names the line.
    """
    path = Path(path)
    path = path / "evaluations.csv" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"No evaluations in '{path}'; expected the file of a training run.")
    rows: list[EvaluationRow] = []
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is no CSV text ({error}): train again.") from error
    for line, cells in enumerate(lines, start=2):
        try:
            rows.append(
                {
                    "iteration": int(cells["iteration"]),
                    "return_mean": float(cells["return_mean"]),
                    "return_std": float(cells["return_std"]),
                    "length_mean": float(cells["length_mean"]),
                    "score": float(cells["score"]) if cells["score"] else None,
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"'{path}', line {line}: cannot be read ({error!r}): leave the run out, or train "
                "again."
            ) from error
    return rows
