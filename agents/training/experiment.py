"""One experiment from data to result: fit, clone, train, evaluate, and keep it in a run folder."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Logger

from adv_worldmodel import (
    WorldModel,
    cached_world_model,
    fit_world_model,
)
from agents.policies import RAMBOPolicy
from agents.printed import number
from agents.rambo import RAMBO
from agents.training.assembly import build_adversary, build_agent
from agents.training.atomic_files import write_json, write_text, written_aside
from agents.training.checkpoints import CheckpointCallback, Snapshot, restore_counters
from agents.training.config import TrainConfig, dump_config, flat_settings
from agents.training.divergence import DivergenceCallback, DivergenceError, details_of
from agents.training.evaluation import EvaluationCallback, Evaluator
from agents.training.plots import plot_learning_curve
from agents.training.preparation import Preparation, load_world_model, prepare
from agents.training.progress import (
    EventFiles,
    LapCallback,
    MetricsHistory,
    PhaseClock,
    ProgressCallback,
    on_terminal,
    print_unless_gone,
)
from agents.training.results import q_summary, return_summary, returns_table, versions
from agents.training.resumption import Resumption
from agents.training.run_folder import RunFolder, new_run_folder, run_locked
from agents.training.signals import signals_held

__all__ = ["Preparation", "prepare", "run", "train"]


def train(config: TrainConfig, *, progress: bool = True) -> Path:
    """Run the experiment that `config` describes and return its run folder.

    `result.json` in it holds, beside what the run was made from:

    * `behaviour_return`: mean episode return of the data (null where most rows are of cut ones),
      `cloning_return`: of the clone (null without cloning);
    * `env_id`: where the policy is evaluated; null, and nothing is known of returns, with
      `evaluation.episodes` = 0;
    * `return_mean`, `return_std`: mean over the last `evaluation.last` evaluations of their mean
      and of their standard deviation over the episodes (P B.6); `evaluations_used` says how many
      there were;
    * `score`: normalised score of `return_mean`, with `score_reference`; null without one;
    * `q_avg`: mean Q of the last iteration, `q_var`: variance of that mean over the last 100
      iterations (P B.5), `q_ceiling`: what the data's largest reward can sum to (see `q_summary`);
    * `divergence`: which quantity ran away, when, and its history; null where none did;
    * `written`: the local time, and with what `versions`;
    * `status`: "running", "finished", "interrupted", "diverged" or "failed"; `error` says why.

    :param config: every random draw follows from its seed; on one machine's CPU equal
        configurations give equal `evaluations.csv`.
    :param progress: show bars on stderr, and on stdout the returns and, as the last line, the
        folder.
    :raises ValueError, FileNotFoundError: `config` names something that is not there or does not
        fit (see `prepare`); nothing has been written.
    :raises DivergenceError, FloatingPointError: the critics or the fit ran away.
    :raises KeyboardInterrupt: passed on when the run's files are written.
    """
    return run(prepare(config), progress=progress)


def run(
    prepared: Preparation, *, progress: bool = True, resumption: Resumption | None = None
) -> Path:
    """Run a checked experiment, or go on with one; see `train`."""
    config = prepared.config
    if resumption is None:
        overwrite = prepared.overwrite
        folder = new_run_folder(config.out, config.name, config.seed, overwrite=overwrite)
    else:
        folder = resumption.folder
    snapshot = None if resumption is None else resumption.snapshot
    with run_locked(folder.path), _torch_threads(config.n_threads):
        if resumption is not None:
            folder.remove_asides()
        experiment = _Experiment(prepared, folder, progress, snapshot)
        try:
            experiment.fit()
            experiment.clone()
            experiment.learn()
        except KeyboardInterrupt:
            experiment.conclude("interrupted", "stopped by the user")
            raise
        except (DivergenceError, FloatingPointError) as error:
            experiment.diverged = details_of(error)
            experiment.conclude("diverged", str(error))
            raise
        except BaseException as error:
            experiment.conclude("failed", f"{type(error).__name__}: {error}")
            raise
        else:
            experiment.conclude("finished")
        finally:
            experiment.close()
    return folder.path


class _Experiment:
    """The phases of a run, in their order, and what they have found so far."""

    def __init__(
        self,
        prepared: Preparation,
        folder: RunFolder,
        progress: bool,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.config, self.dataset = prepared.config, prepared.dataset
        self.prepared, self.folder, self.progress = prepared, folder, progress
        self.bars = progress and on_terminal()  # in a file they would be hundreds of lines
        self.snapshot = snapshot
        before = {} if snapshot is None else snapshot.numbers["experiment"]
        self.clock = PhaseClock(before.get("seconds", {"data": prepared.seconds}))
        self.history = MetricsHistory(before.get("metrics"))
        self.evaluator: Evaluator | None = None
        if prepared.env_id is not None:
            episodes, seed = self.config.evaluation.episodes, self.config.seed
            self.evaluator = Evaluator(prepared.env_id, episodes=episodes, seed=seed)
        self.world_model: WorldModel | None = None
        self.agent: RAMBO | None = None
        self.logger: Logger | None = None
        self.bar: ProgressCallback | None = None
        self.evaluation: EvaluationCallback | None = None
        self.checkpoints: CheckpointCallback | None = None
        self.divergence: DivergenceCallback | None = None
        self.diverged: dict[str, Any] | None = before.get("divergence")
        self.cloning_return: float | None = before.get("cloning_return")
        write_text(folder.config, dump_config(prepared.resolved_config))
        self.write_result("running")
        data = self.dataset
        where = prepared.env_id or "no evaluation in a real environment"
        self.say(f"data         {data.name}: {len(data)} transitions, {where}")
        if prepared.env_note:
            self.say(f"             {prepared.env_note}")

    def say(self, line: str) -> None:
        if self.progress:
            print_unless_gone(line)

    def fit(self) -> None:
        """Fit the world model, or take it from the cache, and make the agent in it."""
        config, prepared = self.config, self.prepared
        if self.snapshot is not None:
            self.world_model = load_world_model(
                self.folder.world_model, prepared.termination, prepared.device
            )
            self.agent = build_agent(prepared, self.world_model)
            self.say(f"checkpoint   after iteration {self.snapshot.iteration}")
            return
        fit = cached_world_model if config.model.cache else fit_world_model
        self.say("world model  fitting (or reading a fit from the cache)")
        with self.clock.phase("fit"):
            model = fit(
                self.dataset,
                prepared.fit,
                termination=prepared.termination,
                device=prepared.device,
                progress=self.bars,
            )
        self.world_model = model
        with written_aside(self.folder.world_model) as aside:
            model.save(aside)
        info = model.fit_info
        errors = [info["holdout_mse"][i] for i in info["elites"]]
        self.say(
            f"world model  {info['steps']} steps; on held-out data NLL {info['holdout_nll']:.2f}, "
            f"squared error {sum(errors) / len(errors):.3g} of the variance"
        )
        self.agent = build_agent(prepared, model)

    def clone(self) -> None:
        """Clone the data's behaviour (P C.4), keep the clone and evaluate it.

        Its critics have learnt nothing yet: the clone takes no greedy step.
        """
        cloning, agent = self.config.cloning, self.agent
        assert agent is not None
        if cloning.epochs == 0 or self.snapshot is not None:
            return
        with self.clock.phase("clone"):
            nll = agent.clone(
                cloning.epochs,
                cloning.learning_rate,
                self.config.agent.batch_size,
                progress=self.bars,
            )
        with _without_step(agent.policy):
            with written_aside(self.folder.clone) as aside:
                agent.save_weights(aside)
            if self.evaluator is None:
                self.say(f"clone        NLL {nll:.2f}")
                return
            with self.clock.phase("evaluation"):
                self.cloning_return = self.evaluator.evaluate(agent, iteration=0).return_mean
        self.say(f"clone        return {number(self.cloning_return)}")

    def learn(self) -> None:
        """Train in the world model while the adversary changes it (P algorithm 1)."""
        config, agent, snapshot = self.config, self.agent, self.snapshot
        assert agent is not None
        self.folder.tensorboard.mkdir(exist_ok=True)
        table = CSVOutputFormat(str(self.folder.progress))  # begins the file anew
        for row in self.history.rows:
            table.write(row, dict.fromkeys(row, ()))
        outputs = [table, EventFiles(str(self.folder.tensorboard)), self.history]
        self.logger = Logger(str(self.folder.path), outputs)
        agent.set_logger(self.logger)
        if self.evaluator is not None:
            self.evaluation = EvaluationCallback(
                self.evaluator,
                every=config.evaluation.every,
                each_from=config.iterations - config.evaluation.each_of_last + 1,
                path=self.folder.evaluations,
                history=() if snapshot is None else snapshot.numbers["experiment"]["evaluations"],
            )
        adversary = build_adversary(config)
        self.checkpoints = CheckpointCallback(
            self.folder.checkpoints,
            config.checkpoint_every,
            adversary,
            self.state,
            snapshot,
        )
        self.divergence = DivergenceCallback(
            self.dataset,
            config.agent.gamma,
            self.history,
            alpha=agent.alpha_in_target,
            stop=config.on_divergence == "stop",
            warn=lambda message: print_unless_gone(f"warning: {message}", sys.stderr),
            found=self.diverged,
        )
        callbacks: list[BaseCallback] = [
            LapCallback(self.clock, "agent", rollout=True),
            self.divergence,
        ]
        if self.evaluation is not None:
            callbacks += [self.evaluation, LapCallback(self.clock, "evaluation")]
        if self.progress:
            self.bar = ProgressCallback(config.iterations, lambda: agent.iteration, self.note)
            callbacks.append(self.bar)
        callbacks += [self.checkpoints, LapCallback(self.clock, "checkpoint")]
        callbacks += [adversary, LapCallback(self.clock, "adversary")]
        total = config.iterations * agent.timesteps_per_iteration
        if snapshot is not None:
            restore_counters(agent, snapshot)
        agent.learn(total - agent.num_timesteps, callback=callbacks, reset_num_timesteps=False)
        if self.evaluation is not None:  # the last one, which no iteration follows
            self.logger.dump(step=agent.num_timesteps)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state of the training."""
        evaluations = [] if self.evaluation is None else list(self.evaluation.history)
        found = {
            "metrics": self.history.packed(),
            "evaluations": evaluations,
            "cloning_return": self.cloning_return,
            "divergence": self.found_divergence(),
            "settings": flat_settings(self.prepared.resolved_config),
            "seconds": dict(self.clock.seconds),
        }
        return {"experiment": found}

    def found_divergence(self) -> dict[str, Any] | None:
        """Details of the first quantity that ran away."""
        found = None if self.divergence is None else self.divergence.found
        return found or self.diverged

    def note(self) -> str:
        """What stands beside the progress bar."""
        parts = []
        if self.evaluation is not None and self.evaluation.history:
            parts.append(f"return {number(self.evaluation.history[-1]['return_mean'])}")
        if q_means := self.history.series("train/q_mean"):
            parts.append(f"Q {number(q_means[-1])}")
        return ", ".join(parts)

    def conclude(self, status: str, error: str | None = None) -> None:
        """Write everything that there is by now, and draw it last; signals wait until then.

        Where that fails, on a full disk, `result.json` says so, if it can be written.
        """
        with signals_held():
            try:
                self._conclude(status, error)
            except OSError as failed:
                why = f"{type(failed).__name__}: {failed}"
                with suppress(OSError):
                    self.write_result("failed", why if error in (None, why) else f"{error}; {why}")
                raise
            finally:
                self.say(str(self.folder.path))

    def _conclude(self, status: str, error: str | None) -> None:
        if self.bar is not None:
            self.bar.close()
        if status == "interrupted" and self.checkpoints is not None:
            self.checkpoints.write()
        if self.agent is not None:
            with written_aside(self.folder.policy_zip) as aside:
                self.agent.save(aside)
            with written_aside(self.folder.policy) as aside:
                self.agent.save_weights(aside)
        if self.world_model is not None:
            with written_aside(self.folder.adversarial_model) as aside:
                self.world_model.save(aside)
        result = self.write_result(status, error)
        self.draw()
        if status == "finished":
            for line in returns_table(result):
                self.say(line)
            if self.evaluator is None:
                self.say("what the model and the critics say of it: evaluate RUN --in-model fit")

    def draw(self) -> None:
        """Draw the learning curve, if there is one; the run stands also where that fails."""
        if self.evaluation is None or not self.evaluation.history:
            return
        try:
            with written_aside(self.folder.learning_curve) as aside:
                plot_learning_curve(
                    self.evaluation.history,
                    aside,
                    behaviour_return=self.dataset.behaviour_return,
                    cloning_return=self.cloning_return,
                    title=f"{Path(self.dataset.name).name}, evaluated in {self.prepared.env_id}",
                )
        except Exception as error:
            warnings.warn(
                f"{self.folder.learning_curve} could not be drawn: {type(error).__name__}: {error}",
                stacklevel=2,
            )

    def write_result(self, status: str, error: str | None = None) -> dict[str, Any]:
        """Write `result.json` as things stand and return its content."""
        config, prepared = self.config, self.prepared
        behaviour = self.dataset.behaviour_return
        rows = self.evaluation.history if self.evaluation is not None else []
        result = {
            "status": status,
            "error": error,
            "divergence": self.found_divergence(),
            "env_id": prepared.env_id,
            "env_note": prepared.env_note,
            "dataset": config.dataset,
            "content_hash": self.dataset.content_hash,
            "seed": config.seed,
            "iterations": self.agent.iteration if self.agent is not None else 0,
            "behaviour_return": None if math.isnan(behaviour) else behaviour,
            "cloning_return": self.cloning_return,
            **return_summary(rows, config.evaluation.last, prepared.env_id),
            **q_summary(
                self.history.series("train/q_mean"),
                float(self.dataset.rewards.max()),
                config.agent.gamma,
                ends=bool(self.dataset.terminations.any()),
            ),
            "fit": {} if self.world_model is None else self.world_model.fit_info,
            "wall_s": self.clock.report(),
            "written": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions(),
        }
        write_json(self.folder.result, result)
        return result

    def close(self) -> None:
        """Close the log files and the environments."""
        if self.logger is not None:
            self.logger.close()
        if self.evaluator is not None:
            self.evaluator.close()


@contextmanager
def _without_step(policy: RAMBOPolicy) -> Iterator[None]:
    """Let the policy deploy its mean action inside the block."""
    before, policy.greedy_step = policy.greedy_step, 0.0
    try:
        yield
    finally:
        policy.greedy_step = before


@contextmanager
def _torch_threads(n_threads: int | None) -> Iterator[None]:
    """Let torch use that many threads inside the block."""
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
