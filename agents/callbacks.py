"""The adversary as an SB3 callback: before each rollout the model turns against the agent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.spaces import Box
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
)

from adv_worldmodel.checks import check_whole
from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.dynamics import Adversary, AdversarySettings, WorldModel
from adv_worldmodel.dynamics.model_gradient import Score
from adv_worldmodel.graphs import parts_of
from agents.agent_settings import check_devices
from agents.values import policy_and_value

#: What may stand between an agent and its world: they change no observation, action or reward.
HARMLESS = (
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.TimeLimit,
    Monitor,
    VecCheckNan,
    VecMonitor,
)


class RamboCallback(BaseCallback):
    """Adversarial updates of the world model before each rollout, once the agent has learnt.

    P algorithm 1. ``learn`` raises ValueError where it is nested in another callback (in a list in
    another: when that one's event first comes), without a world model, behind a wrapper that
    changes what the agent sees (``VecNormalize``, say), or with an algorithm that has no value
    function.

    Works with any SB3 algorithm for which :func:`agents.values.policy_and_value` knows V and Q:
    RAMBO, SAC, TD3, TQC, CrossQ, PPO, A2C. Pass it to ``learn`` itself or in a list: those inside
    another (``EvalCallback(callback_on_new_best=...)``, ``EveryNTimesteps``) hear of no rollouts.
    To go on in another ``learn`` pass the same one: its random numbers, its optimiser and what
    ``"auto"`` measures against would begin anew in a new one.

    :param adversary_weight: lambda of P eq. 9; 0 leaves the model as it is, ``"auto"`` finds it
        by dual ascent on P's constraint.
    :param adversary_updates: updates before each rollout.
    :param score: ``"mixture"``, ``"member"`` or ``"pathwise"``.
    :param learning_rate: Adam's.
    :param batch_size: rows of data and of model rollouts per update.
    :param continue_fit: with weight 0, go on fitting the model to the data.
    :param xi: with ``"auto"``, nats per transition by which the model's negative log-likelihood on
        the data may exceed the best it has been.
    :param max_weight: what lambda may then rise to.
    :param seed: of the adversary's draws; default the one that the algorithm was made with, of
        which SB3's ``set_random_seed`` does not tell.
    """

    def __init__(
        self,
        adversary_weight: float | Literal["auto"] = 3e-4,
        adversary_updates: int = 1000,
        *,
        score: Score = "mixture",
        learning_rate: float = 3e-4,
        batch_size: int = 256,
        continue_fit: bool = False,
        xi: float = 0.1,
        max_weight: float = 0.1,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_whole(at_least=0, adversary_updates=adversary_updates)
        if seed is not None:
            check_whole(at_least=0, seed=seed)
        self._settings = AdversarySettings(
            weight=adversary_weight,
            score=score,
            batch_size=batch_size,
            learning_rate=learning_rate,
            continue_fit=continue_fit,
            xi=xi,
            max_weight=max_weight,
        )
        self.adversary_updates = adversary_updates
        self.seed = seed
        self.adversary: Adversary | None = None

    @property
    def settings(self) -> AdversarySettings:
        """Those of the adversary when it is made."""
        return self._settings

    def _init_callback(self) -> None:
        self._refuse_nesting()
        env = self.training_env
        if isinstance(env.unwrapped, SubprocVecEnv):
            raise ValueError(
                "a SubprocVecEnv's processes have world models of their own: use "
                "make_sb3_env(dataset, n_envs=...), whose rows share one"
            )
        try:
            models = cast("list[WorldModel]", _of_worlds(env, "world_model"))
            dataset = cast(OfflineDataset, _of_worlds(env, "dataset")[0])
            horizon = min([int(_of_worlds(env, "horizon")[0]), *_time_limits(env)])
        except AttributeError as e:
            raise ValueError(
                "RamboCallback needs a world model to change: train in "
                "adv_worldmodel.make_sb3_env(dataset, ...)"
            ) from e
        if any(model is not models[0] for model in models):
            raise ValueError(
                "the environments hold different world models: use make_sb3_env(dataset, "
                "n_envs=...), whose rows share one, or pass the same world_model= to each"
            )
        check_devices(self.model.device, models[0].device)
        self._refuse_another_game(dataset)
        self._foes = policy_and_value(self.model)
        gamma = float(self.model.gamma)  # type: ignore[attr-defined]
        game, old = (models[0], dataset.content_hash), self.adversary
        if old is not None and (old.model, old.content_hash) == game:
            old.horizon = horizon
        else:
            self.adversary = Adversary(
                models[0],
                dataset,
                self.settings,
                horizon=horizon,
                gamma=gamma,
                seed=self.model.seed if self.seed is None else self.seed,
            )
            if old is not None and old.model.device == models[0].device:
                self.adversary.generator = old.generator  # its draws are not to be drawn again

    def _on_rollout_start(self) -> None:
        assert self.adversary is not None
        if self.model._n_updates == 0 or getattr(self.model, "not_finite", None):
            return  # the critic has learnt nothing yet that could be lowered, or is lost
        if _of_worlds(self.training_env, "world_model")[0] is not self.adversary.model:
            self._init_callback()  # another callback has put another one there
        start = time.perf_counter()
        self.adversary.discount_by(float(self.model.gamma))  # type: ignore[attr-defined]
        self.model.policy.set_training_mode(False)
        networks = parts_of(self.model.policy)
        found = self.adversary.run(self.adversary_updates, *self._foes, networks)
        for name, mean in found.items():
            self.logger.record(f"adversary/{name}", mean)
        self.logger.record("time/adversary_s", time.perf_counter() - start)

    def _on_step(self) -> bool:
        self._refuse_nesting()  # again: a list tells its parent only after its start
        return True

    def _refuse_another_game(self, dataset: OfflineDataset) -> None:
        """The adversary plays on raw observations, actions and rewards; so must the agent."""
        for wrapper in _wrappers(self.training_env):
            if not isinstance(wrapper, HARMLESS):
                name = type(wrapper).__name__
                raise ValueError(
                    f"RamboCallback in a {name} environment: the world model's observations, "
                    "actions and rewards are raw, the agent's would be others. RAMBO standardises "
                    f"states by itself; leave {name} out"
                )
        agent, actions = self.model, dataset.action_space
        world = (
            dataset.observations.shape[1:],
            Box(actions.low, actions.high, dtype=np.float32),
        )
        if (agent.observation_space.shape, agent.action_space) != world:
            raise ValueError(
                f"the agent sees {agent.observation_space.shape} and acts in {agent.action_space}, "
                f"its world shows {world[0]} and takes {world[1]}: they must be the same"
            )

    def _refuse_nesting(self) -> None:
        parent = self.parent
        while isinstance(parent, CallbackList):
            parent = parent.parent
        if parent is not None:
            raise ValueError(
                f"RamboCallback inside {type(parent).__name__} would never run: pass it to learn() "
                "itself, alone or in a list"
            )


def _of_worlds(env: VecEnv, name: str) -> list[Any]:
    """An attribute of each row's world itself: ``DummyVecEnv.set_attr`` sets that of a wrapper."""
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        return [getattr(row.unwrapped, name) for row in inner.envs]
    return env.get_attr(name)


def _time_limits(env: VecEnv) -> Iterator[int]:
    """Steps after which a wrapper ends the agent's episodes."""
    for wrapper in _wrappers(env):
        if isinstance(wrapper, wrappers.TimeLimit):
            yield int(wrapper._max_episode_steps)


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper | gym.Wrapper[Any, Any, Any, Any]]:
    """All that stands between an agent and its world."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    for row in env.envs if isinstance(env, DummyVecEnv) else ():
        while isinstance(row, gym.Wrapper):
            yield row
            row = row.env
