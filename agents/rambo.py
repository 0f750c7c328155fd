"""RAMBO's agent: SB3's SAC with mixed replay, three learning rates and rollouts on the device."""

from __future__ import annotations

import copy
import io
import math
import operator
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    RolloutReturn,
    TrainFreq,
)
from stable_baselines3.common.vec_env import VecEnv

from adv_worldmodel.checks import check_finite, check_whole
from adv_worldmodel.envs.sb3 import AdvWorldModelVecEnv
from adv_worldmodel.seeding import make_generator
from agents.agent_settings import (
    begin_alpha_anew_where_lost,
    check_devices,
    check_settings,
    put_into_effect,
    take_settings,
)
from agents.agent_step import AgentStep, Update
from agents.buffers import Batch, MixedReplayBuffer
from agents.cloning import clone_behaviour
from agents.explicit_updates import ExplicitSACUpdate, is_explicit
from agents.policies import RAMBOPolicy, Standardise
from agents.rollouts import roll_out
from agents.updates import METRICS, SACParts, sac_update
from agents.values import SquashedPolicy
from agents.weights import load_weights, save_weights


class RAMBO(SAC):
    """SAC in an adversarial world model (Rigter et al. 2022, algorithm 1).

    One iteration of ``learn``: ``n_envs`` rollouts of k = ``env.horizon`` steps from data-set
    states into the replay buffer, then ``gradient_steps`` updates on batches of which a share
    ``real_ratio`` is data. :class:`agents.RamboCallback` adds the adversary; without it this is
    model-based policy optimisation on a fixed model.

    :param policy: ``"MlpPolicy"`` or a :class:`RAMBOPolicy` class.
    :param env: from :func:`adv_worldmodel.make_sb3_env`.
    :param learning_rate: of the critics.
    :param actor_learning_rate: of the actor.
    :param entropy_learning_rate: of the entropy coefficient.
    :param real_ratio: f, share of data in a batch (exactly ``round(f * batch_size)`` rows).
    :param retain_iterations: iterations of rollouts that the buffer holds.
    :param rollout_policy: who acts in the rollouts: ``"current"``, or ``"random"`` for uniform
        actions.
    :param gradient_steps: updates per iteration.
    :param critic_warmup: iterations in which only the critics learn: they evaluate the cloned
        policy, in the model, before it starts to change (with ``tau`` raised to 0.05 at least).
    :param entropy_in_target: whether the critics' targets hold the entropy bonus (SAC's soft
        value); without, alpha only keeps the actor stochastic.
    :param fresh_outcomes: give a synthetic (s, a) the reward, successor and termination of the
        present model when it is drawn from the buffer, instead of those it had in its rollout.
    :param cloning_weight: keep the policy near the data: add this, times mean |Q|, times the
        negative log-likelihood of the batch's data actions to the actor's loss (as Fujimoto and Gu
        2021 do in TD3+BC with squared errors); 0 is RAMBO's own loss. A learned entropy coefficient
        then rises no further than where it starts.
    :param policy_kwargs: SB3's, and ``layer_norm`` for the critics and ``greedy_step`` of
        :class:`agents.policies.RAMBOPolicy`. States are standardised
        with the data's statistics unless a features extractor is given.

    The other arguments are SAC's. The environment's horizon takes the place of its ``train_freq``
    and ``retain_iterations`` that of ``buffer_size``; there is no action noise and no gSDE.
    ``learn`` counts synthetic transitions, as SB3 does:
    ``total_timesteps = iterations * model.timesteps_per_iteration``. Its ``log_interval`` has no
    effect: metrics are written once per iteration, before the next callback is called, which finds
    them in ``model.last_metrics``. After :meth:`load` the random numbers of the seed begin anew, as
    SB3's do; ``adv-worldmodel train --resume`` goes on with them.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": RAMBOPolicy}
    #: names of the numbers that an update returns
    metrics: ClassVar[tuple[str, ...]] = METRICS
    #: blocks of standard normals (B, A) that an update takes
    noises_per_update: ClassVar[int] = 2
    policy: RAMBOPolicy
    replay_buffer: MixedReplayBuffer

    def __init__(
        self,
        policy: str | type[RAMBOPolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        *,
        actor_learning_rate: float = 1e-4,
        entropy_learning_rate: float = 1e-4,
        real_ratio: float = 0.5,
        retain_iterations: int = 5,
        rollout_policy: str = "current",
        gradient_steps: int = 1000,
        batch_size: int = 256,
        gamma: float = 0.99,
        tau: float = 0.005,
        ent_coef: str | float = "auto",
        target_entropy: str | float = "auto",
        critic_warmup: int = 0,
        entropy_in_target: bool = True,
        fresh_outcomes: bool = False,
        cloning_weight: float = 0.0,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if isinstance(policy, type) and not issubclass(policy, RAMBOPolicy):
            raise ValueError(
                f"{policy.__name__} is no RAMBOPolicy: give 'MlpPolicy', or subclass RAMBOPolicy"
            )
        if not callable(learning_rate):  # a schedule is refused by check_settings
            check_finite(learning_rate=learning_rate)
            learning_rate = float(learning_rate)  # SB3 takes no number of NumPy's
        if seed is not None:
            check_whole(at_least=0, seed=seed)
            seed = operator.index(seed)
        self.actor_learning_rate = actor_learning_rate
        self.entropy_learning_rate = entropy_learning_rate
        self.real_ratio, self.retain_iterations = real_ratio, retain_iterations
        self.rollout_policy, self.critic_warmup = rollout_policy, critic_warmup
        self.entropy_in_target, self.fresh_outcomes = entropy_in_target, fresh_outcomes
        self.cloning_weight = cloning_weight
        #: replay the update as a CUDA graph, on a GPU
        self.graphs = True
        #: what ``ent_coef`` was when the coefficient in use was made of it
        self._made_with_ent_coef: str | float | None = None
        #: the values of settings that optimisers and the buffer have been given
        self._in_effect: dict[str, float] = {}
        self._step: AgentStep | None = None
        self._acting: SquashedPolicy | None = None
        #: from :meth:`load_weights`: gamma and the entropy coefficient are not those of training
        self.weights_only = False
        #: the metric of the last iteration that is no number, if any: training cannot go on
        self.not_finite: str | None = None
        #: finished iterations (rollout and updates)
        self.iteration = 0
        #: the last iteration's ``train/*``, which the logger has written and forgotten by then
        self.last_metrics: dict[str, float] = {}
        policy_kwargs = dict(policy_kwargs or {})
        if policy_kwargs.get("optimizer_class") in (None, torch.optim.Adam, torch.optim.AdamW):
            policy_kwargs.setdefault("optimizer_kwargs", {"fused": True})
        if device == "auto" and isinstance(env, AdvWorldModelVecEnv):
            device = env.world.device
        if _init_setup_model:
            env = _as_model_env(env)
            if torch.device(device).type != env.world.device.type:
                raise ValueError(
                    f"the agent is asked for on {device}, its world model is on "
                    f"{env.world.device}: give both the same device"
                )
            if "features_extractor_class" not in policy_kwargs:
                states = env.dataset.observations.astype("float64")
                policy_kwargs["features_extractor_class"] = Standardise
                statistics = {"mean": states.mean(0).tolist(), "std": states.std(0).tolist()}
                given = policy_kwargs.get("features_extractor_kwargs") or {}
                policy_kwargs["features_extractor_kwargs"] = {**statistics, **given}
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # None while loading for prediction
            learning_rate,
            learning_starts=0,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            gradient_steps=gradient_steps,
            ent_coef=ent_coef,
            target_entropy=target_entropy,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )
        if critic_warmup > 0 and ent_coef == "auto" and entropy_in_target:
            warnings.warn(
                "critic_warmup evaluates the cloned policy with the entropy coefficient at its "
                "start, 1, whose bonus may outweigh all rewards: give ent_coef='auto_0.05', or "
                "entropy_in_target=False",
                stacklevel=2,
            )

    @property
    def timesteps_per_iteration(self) -> int:
        """Synthetic transitions of one iteration: ``n_envs`` times the horizon."""
        env = _as_model_env(self.env)
        return env.num_envs * env.horizon

    @property
    def alpha_in_target(self) -> float:
        """The entropy coefficient, as it is now, in the critics' targets; 0 where they have none.

        Waits for the device.
        """
        if not self.entropy_in_target:
            return 0.0
        if self.log_ent_coef is None:
            return float(self.ent_coef_tensor)
        return float(self.log_ent_coef.detach().exp())

    def set_random_seed(self, seed: int | None = None) -> None:
        """SB3's, and the generators of this agent and its buffer."""
        super().set_random_seed(seed)
        if seed is not None:
            self.seed = seed
            self._generator = make_generator(seed, "agent", self.device)
            self.replay_buffer.generator = make_generator(seed, "replay", self.device)

    def _setup_model(self) -> None:
        if self._made_with_ent_coef is None:  # else it comes from a zip
            self._made_with_ent_coef = self.ent_coef
        check_settings(self)
        self.replay_buffer_class = MixedReplayBuffer
        saved, self.replay_buffer = self.replay_buffer, None  # type: ignore[assignment]
        self._attach_data()
        if isinstance(saved, MixedReplayBuffer):  # from save(include=["replay_buffer"])
            self.replay_buffer.take_rollouts(saved)
        super()._setup_model()
        self._generator = make_generator(self.seed, "agent", self.device)
        #: where a learned log entropy coefficient starts
        self.first_log_alpha: torch.Tensor | None = None
        if self.log_ent_coef is not None:
            self.first_log_alpha = self.log_ent_coef.detach().clone()
            self.ent_coef_optimizer = torch.optim.Adam(
                [self.log_ent_coef], lr=self.entropy_learning_rate, fused=True
            )
        put_into_effect(self)

    def _attach_data(self) -> None:
        """Size the schedule and the buffer by the environment, and put its data on the device."""
        self._step = None
        dataset, old = None, self.replay_buffer
        if self.env is not None:  # a policy loaded for prediction has none
            env = _as_model_env(self.env)
            check_devices(self.device, env.world.device)
            dataset = env.dataset
            self.train_freq = (int(env.horizon), "step")
            self._convert_train_freq()
            self.buffer_size = self.retain_iterations * self.timesteps_per_iteration
        self.replay_buffer = MixedReplayBuffer(
            self.buffer_size,
            self.observation_space,
            self.action_space,  # type: ignore[arg-type]
            self.device,
            self.n_envs,
            dataset=dataset,
            real_ratio=self.real_ratio,
            seed=self.seed,
        )
        if isinstance(old, MixedReplayBuffer):  # whose draws are not to be drawn again
            self.replay_buffer.generator = old.generator

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Go on in another world model of the same spaces; synthetic rows are dropped.

        The data are the new environment's. The policy goes on standardising states by those that
        it was built with: its weights are for such inputs.
        """
        self._refuse_weights_only()
        super().set_env(_as_model_env(env), force_reset)
        self._attach_data()

    def save(self, path: str | Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> None:
        """SB3's, with the policy's greedy step as it is by now."""
        step = self.policy.greedy_step
        if step != self.policy_kwargs.get("greedy_step", 0.0):
            self.policy_kwargs = {**self.policy_kwargs, "greedy_step": step}
        super().save(path, *args, **kwargs)

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Write the synthetic rows, on the host, so that any machine can load them.

        Without the data, which are those of whoever loads.
        """
        rows = copy.copy(self.replay_buffer)
        rows.real = rows.generator = rows.bounds = None  # type: ignore[assignment]
        if rows.synthetic is not None:
            rows.synthetic = rows.synthetic.cpu()
        save_to_pkl(path, rows, self.verbose)

    def load_replay_buffer(
        self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """Take the synthetic rows from what ``save_replay_buffer`` wrote.

        The data and their share stay those of this agent. A pickle runs code: load your own only.

        :raises ValueError: it is no RAMBO's buffer, or one for other spaces.
        """
        found = load_from_pkl(path, self.verbose)
        if not isinstance(found, MixedReplayBuffer):
            raise ValueError(
                f"{path} holds a {type(found).__name__}: give what RAMBO.save_replay_buffer wrote"
            )
        self.replay_buffer.take_rollouts(found)
        self._step = None  # its graph reads the rows where they were

    def clone(
        self,
        epochs: int = 50,
        learning_rate: float = 1e-4,
        batch_size: int = 256,
        progress: bool = False,
    ) -> float:
        """Clone the data's behaviour into the actor before training (P C.4).

        :param epochs: passes over the data.
        :param learning_rate: Adam's.
        :param batch_size: rows per step.
        :param progress: show a bar.
        :return: mean negative log-likelihood of the data's actions in the last epoch (nats per
            transition).
        :raises FitDivergedError: a FloatingPointError, the loss is not finite.
        :raises ValueError: there are no data: the agent was loaded without an environment; or
            ``epochs`` or ``batch_size`` is no count.
        """
        check_whole(at_least=0, epochs=epochs)
        check_whole(at_least=1, batch_size=batch_size)
        buffer = self.replay_buffer
        if buffer.real is None:
            raise ValueError("cloning needs the data: give env=make_sb3_env(dataset, ...)")
        data = buffer.unpack(buffer.real)
        self.policy.set_training_mode(True)
        return clone_behaviour(
            self.actor, data.obs, data.action, self._generator,
            epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, progress=progress,
        )  # fmt: skip

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Rollouts, updates and callbacks, in turn; see the class for what is counted.

        :param tb_log_name: of TensorBoard's runs; default the class's name.
        :raises FloatingPointError: a metric ``train/*`` of an iteration is not finite.
        """
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        super().learn(
            total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar
        )
        self._refuse_to_go_on_with_nan()
        return self

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """k steps of every row from fresh data-set states, on the device from end to end.

        SB3's loop with SB3's callbacks, once per batched step; its own moves each row through
        lists and dictionaries on the host. So callbacks' ``locals`` have ``actions``, ``new_obs``,
        ``rewards`` and ``dones``, on a GPU as tensors (but ``dones``, which SB3's callbacks read),
        and no ``infos``.
        """
        self.policy.set_training_mode(False)
        callback.on_rollout_start()  # the adversary changes the model here
        self._refuse_to_go_on_with_nan()
        horizon = _as_model_env(env).horizon
        if horizon != train_freq.frequency:
            raise ValueError(
                f"the horizon became {horizon} in a training with {train_freq.frequency}: another "
                "one counts from the next learn() on"
            )
        take_settings(self)
        if self._acting is None:
            self._acting = SquashedPolicy(self)
        return roll_out(self, self._acting, _as_model_env(env), callback, train_freq.frequency)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """``gradient_steps`` SAC updates on mixed batches, then one row of metrics."""
        start = time.perf_counter()
        take_settings(self)  # a callback may have changed them in the rollout
        self.policy.set_training_mode(True)
        step, frozen = self._step, self.iteration < self.critic_warmup
        if step is None or not step.serves(batch_size, actor_frozen=frozen):
            step = self._step = AgentStep(self, batch_size, actor_frozen=frozen)
        sums = torch.zeros(len(self.metrics), device=self.device)
        for draws in step.draws(gradient_steps):
            sums += step(*draws)
        step.note_outside()
        means = (sums / gradient_steps).tolist()  # the one wait for the device
        self._n_updates += gradient_steps
        self.iteration += 1
        seconds = time.perf_counter() - start
        self.not_finite = None
        names = (f"train/{name}" for name in self.metrics)
        self.last_metrics = dict(zip(names, means, strict=True))
        for name, mean in self.last_metrics.items():
            self.logger.record(name, mean)
            if not math.isfinite(mean):
                self.not_finite = f"{name} is {mean}"
        self.logger.record("train/n_updates", self._n_updates)
        self.logger.record("time/iteration", self.iteration)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("time/updates_s", seconds)
        self.logger.record("time/updates_per_second", gradient_steps / seconds)
        self.logger.dump(step=self.num_timesteps)  # SB3's axis, on which its callbacks write too

    def _make_update(self, parts: SACParts, batch_size: int) -> Update:
        """The update of a batch and noise ``(noises_per_update, B, A)``, which gives ``metrics``.

        An algorithm of another loss overrides this.
        """
        if is_explicit(parts):
            return ExplicitSACUpdate(parts, batch_size)
        return partial(_sac_update, parts)

    def save_weights(self, folder: str | Path) -> None:
        """Write the policy's weights and architecture into ``folder``, as safetensors and JSON.

        :raises ValueError: an activation or a class that JSON cannot name; :meth:`save` can.
        """
        save_weights(self, folder)

    @classmethod
    def load_weights(cls, folder: str | Path, device: torch.device | str = "auto") -> Self:
        """An agent for prediction from :meth:`save_weights`; no code in ``folder`` can run.

        To go on training, :meth:`load` what :meth:`save` wrote; that one runs code in its file.

        :raises FileNotFoundError: a file is missing.
        :raises ValueError: a file is damaged or from a newer version.
        """
        return load_weights(cls, folder, device)

    def check_own_settings(self) -> None:
        """Raise ValueError for a wrong setting that an algorithm has beside RAMBO's."""

    def settings_of_updates(self) -> tuple[Any, ...]:
        """The settings that an update takes as they are when it is made."""
        names = (
            "gamma", "tau", "target_entropy", "entropy_in_target", "cloning_weight",
            "fresh_outcomes",
        )  # fmt: skip
        return tuple(getattr(self, name) for name in names)

    def _refuse_weights_only(self) -> None:
        if self.weights_only:
            raise ValueError(
                f"an agent from load_weights knows no settings of its training: to go on, "
                f"{type(self).__name__}.load what save wrote"
            )

    def _refuse_to_go_on_with_nan(self) -> None:
        if self.not_finite is not None:
            raise FloatingPointError(
                f"{self.not_finite} after iteration {self.iteration}: the training diverged"
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._refuse_weights_only()
        self.not_finite = None  # weights may have been put back
        begin_alpha_anew_where_lost(self)
        self._in_effect = {}  # learning rates in a zip are the ones it was saved with
        take_settings(self)
        self._step = self._acting = None  # networks may have been loaded since: begin anew
        if self.train_freq.frequency != _as_model_env(self.env).horizon:  # type: ignore[union-attr]
            self._attach_data()  # as in another environment
        elif self.buffer_size != self.retain_iterations * self.timesteps_per_iteration:
            rows = self.replay_buffer
            self._attach_data()
            self.replay_buffer.take_rollouts(rows)
        return super()._setup_learn(*args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        # the last observations are data-set states, n_envs of them
        states = ["_last_obs", "_last_original_obs", "_last_episode_starts"]
        caches = [
            "_generator", "_step", "_acting", "_in_effect", "not_finite", "first_log_alpha",
            "last_metrics",
        ]  # fmt: skip
        return [*super()._excluded_save_params(), *caches, *states]


def _sac_update(parts: SACParts, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
    return sac_update(parts, batch, noise[0], noise[1])


def _as_model_env(env: Any) -> AdvWorldModelVecEnv:
    if isinstance(env, AdvWorldModelVecEnv):
        return env
    found = "no environment" if env is None else type(env).__name__
    raise ValueError(
        f"RAMBO trains in adv_worldmodel.make_sb3_env(dataset, n_envs=..., horizon=...), "
        f"got {found}"
    )
