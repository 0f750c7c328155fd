"""One experiment from data to result: fit, clone, train, evaluate, and keep it in a run folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

from adv_worldmodel import (
    WorldModel,
    cached_world_model,
    fit_world_model,
    make_sb3_env,
)
from agents.callbacks import RamboCallback
from agents.config import TrainConfig, dump_config
from agents.divergence import DivergenceCallback, DivergenceError
from agents.evaluation import EvaluationCallback, Evaluator
from agents.plots import plot_learning_curve
from agents.preparation import Preparation, prepare
from agents.progress import LapCallback, MetricsHistory, PhaseClock, ProgressCallback
from agents.rambo import RAMBO
from agents.results import q_summary, return_summary, returns_table, versions
from agents.run_folder import (
    RunFolder,
    new_run_folder,
    signals_held,
    write_json,
    write_text,
    written_aside,
)

__all__ = ["Preparation", "prepare", "run", "train"]


def train(config: TrainConfig, *, progress: bool = True) -> Path:
    """Run the experiment that `config` describes and return its run folder.

    `result.json` in it holds, beside what the run was made from:

    * `behaviour_return`: mean episode return of the data, `cloning_return`: of the clone (null
      without cloning);
    * `return_mean`, `return_std`: mean over the last `evaluation.last` evaluations of their mean
      and of their standard deviation over the episodes (P B.6); `evaluations_used` says how many
      there were;
    * `score`: normalised score of `return_mean`, with `score_reference`; null without one;
    * `q_avg`: mean Q of the last iteration, `q_var`: variance of that mean over the last 100
      iterations (P B.5), `q_ceiling`: what the data's largest reward can sum to, r_max / (1 -
      gamma);
    * `status`: "running", "finished", "interrupted", "diverged" or "failed"; `error` says why.

    Args:
        config: every random draw follows from its seed; on one machine's CPU equal configurations
            give equal `evaluations.csv`.
        progress: show bars on stderr, and on stdout the returns and, as the last line, the folder.

    Raises:
        ValueError, FileNotFoundError: `config` names something that is not there or does not fit
            (see `prepare`); nothing has been written.
        DivergenceError, FloatingPointError: the critics or the fit ran away.
        KeyboardInterrupt: passed on when the run's files are written.
    """
    return run(prepare(config), progress=progress)


def run(prepared: Preparation, *, progress: bool = True) -> Path:
    """Run a checked experiment; see `train`."""
    config = prepared.config
    folder = new_run_folder(config.out, config.name, config.seed)
    with _torch_threads(config.n_threads):
        experiment = _Experiment(prepared, folder, progress)
        try:
            experiment.fit()
            experiment.clone()
            experiment.learn()
        except KeyboardInterrupt:
            experiment.conclude("interrupted", "stopped by the user")
            raise
        except (DivergenceError, FloatingPointError) as error:
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

    def __init__(self, prepared: Preparation, folder: RunFolder, progress: bool) -> None:
        self.config, self.dataset = prepared.config, prepared.dataset
        self.prepared, self.folder, self.progress = prepared, folder, progress
        self.bars = progress and sys.stderr.isatty()  # in a file they would be hundreds of lines
        self.clock = PhaseClock({"data": prepared.seconds})
        self.history = MetricsHistory()
        self.evaluator = Evaluator(prepared.env_id, episodes=self.config.evaluation.episodes)
        self.world_model: WorldModel | None = None
        self.agent: RAMBO | None = None
        self.logger: Logger | None = None
        self.bar: ProgressCallback | None = None
        self.evaluation: EvaluationCallback | None = None
        self.cloning_return: float | None = None
        write_text(folder.config, dump_config(prepared.resolved_config))
        self.write_result("running")
        data = self.dataset
        self.say(f"data         {data.name}: {len(data)} transitions, {prepared.env_id}")
        if prepared.env_note:
            self.say(f"             {prepared.env_note}")

    def say(self, line: str) -> None:
        if self.progress:
            print(line, flush=True)

    def fit(self) -> None:
        """Fit the world model, or take it from the cache, and make the agent in it."""
        config, prepared = self.config, self.prepared
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
        self.say(f"world model  {info['steps']} steps, holdout NLL {info['holdout_nll']:.2f}")
        self.agent = self.make_agent(model)

    def make_agent(self, world_model: WorldModel) -> RAMBO:
        config, agent = self.config, self.config.agent
        env = make_sb3_env(
            self.dataset,
            config.rollout.starts,
            config.rollout.horizon,
            seed=config.seed,
            world_model=world_model,
            member_per=config.rollout.member_per,
        )
        return RAMBO(
            "MlpPolicy",
            env,
            agent.critic_learning_rate,
            actor_learning_rate=agent.actor_learning_rate,
            entropy_learning_rate=agent.entropy_learning_rate,
            real_ratio=agent.real_ratio,
            retain_iterations=config.rollout.retain_iterations,
            rollout_policy=config.rollout.policy,
            gradient_steps=agent.updates,
            batch_size=agent.batch_size,
            gamma=agent.gamma,
            tau=agent.tau,
            ent_coef=agent.ent_coef,
            target_entropy=agent.target_entropy,
            critic_warmup=agent.critic_warmup,
            entropy_in_target=agent.entropy_in_target,
            fresh_outcomes=agent.fresh_outcomes,
            policy_kwargs={
                "net_arch": list(agent.hidden_sizes),
                "n_critics": agent.n_critics,
                "layer_norm": agent.layer_norm,
            },
            seed=config.seed,
            device=self.prepared.device,
        )

    def clone(self) -> None:
        """Clone the data's behaviour (P C.4) and evaluate the clone."""
        cloning, agent = self.config.cloning, self.agent
        assert agent is not None
        if cloning.epochs == 0:
            return
        with self.clock.phase("clone"):
            agent.clone(
                cloning.epochs,
                cloning.learning_rate,
                self.config.agent.batch_size,
                progress=self.bars,
            )
        with self.clock.phase("evaluation"):
            self.cloning_return = self.evaluator.evaluate(agent).return_mean
        self.say(f"clone        return {self.cloning_return:.1f}")

    def learn(self) -> None:
        """Train in the world model while the adversary changes it (P algorithm 1)."""
        config, agent = self.config, self.agent
        assert agent is not None
        self.folder.tensorboard.mkdir()
        self.logger = Logger(
            str(self.folder.path),
            [
                CSVOutputFormat(str(self.folder.progress)),
                TensorBoardOutputFormat(str(self.folder.tensorboard)),
                self.history,
            ],
        )
        agent.set_logger(self.logger)
        self.evaluation = EvaluationCallback(
            self.evaluator, every=config.evaluation.every, path=self.folder.evaluations
        )
        adversary = RamboCallback(
            config.adversary.weight,  # type: ignore[arg-type]  # a text is "auto"
            config.adversary.updates,
            score=config.adversary.score,
            learning_rate=config.adversary.learning_rate,
            batch_size=config.adversary.batch_size,
            continue_fit=config.adversary.continue_fit,
            xi=config.adversary.xi,
            max_weight=config.adversary.max_weight,
            seed=config.seed,
        )
        callbacks: list[BaseCallback] = [
            LapCallback(self.clock, "agent", rollout=True),
            DivergenceCallback(self.dataset, config.agent.gamma, self.history),
            self.evaluation,
            LapCallback(self.clock, "evaluation"),
        ]
        if self.progress:
            self.bar = ProgressCallback(config.iterations, lambda: agent.iteration, self.note)
            callbacks.append(self.bar)
        callbacks += [adversary, LapCallback(self.clock, "adversary")]
        agent.learn(config.iterations * agent.timesteps_per_iteration, callback=callbacks)
        self.logger.dump(step=agent.iteration)  # the last evaluation, which no iteration follows

    def note(self) -> str:
        """What stands beside the progress bar."""
        parts = []
        if self.evaluation is not None and self.evaluation.history:
            parts.append(f"return {self.evaluation.history[-1]['return_mean']:.1f}")
        if q_means := self.history.series("train/q_mean"):
            parts.append(f"Q {q_means[-1]:.1f}")
        return ", ".join(parts)

    def conclude(self, status: str, error: str | None = None) -> None:
        """Write everything that there is by now, the result last; signals wait until then."""
        with signals_held():
            self._conclude(status, error)

    def _conclude(self, status: str, error: str | None) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.agent is not None:
            with written_aside(self.folder.policy) as aside:
                self.agent.save(aside)
        if self.world_model is not None:
            with written_aside(self.folder.adversarial_model) as aside:
                self.world_model.save(aside)
        if self.evaluation is not None and self.evaluation.history:
            with written_aside(self.folder.learning_curve) as aside:
                plot_learning_curve(
                    self.evaluation.history,
                    aside,
                    behaviour_return=self.dataset.behaviour_return,
                    cloning_return=self.cloning_return,
                    title=f"{Path(self.dataset.name).name}, evaluated in {self.prepared.env_id}",
                )
        result = self.write_result(status, error)
        if status == "finished":
            for line in returns_table(result):
                self.say(line)
        self.say(str(self.folder.path))

    def write_result(self, status: str, error: str | None = None) -> dict[str, Any]:
        """Write `result.json` as things stand and return its content."""
        config, prepared = self.config, self.prepared
        rows = self.evaluation.history if self.evaluation is not None else []
        result = {
            "status": status,
            "error": error,
            "env_id": prepared.env_id,
            "env_note": prepared.env_note,
            "dataset": config.dataset,
            "content_hash": self.dataset.content_hash,
            "seed": config.seed,
            "iterations": self.agent.iteration if self.agent is not None else 0,
            "behaviour_return": self.dataset.behaviour_return,
            "cloning_return": self.cloning_return,
            **return_summary(rows, config.evaluation.last, prepared.env_id),
            **q_summary(
                self.history.series("train/q_mean"),
                float(self.dataset.rewards.max()),
                config.agent.gamma,
            ),
            "fit": {} if self.world_model is None else self.world_model.fit_info,
            "wall_s": self.clock.report(),
            "versions": versions(),
        }
        write_json(self.folder.result, result)
        return result

    def close(self) -> None:
        """Close the log files and the environments."""
        if self.logger is not None:
            self.logger.close()
        self.evaluator.close()


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
