"""Where the adversary may stand: environments, wrappers, algorithms and lists of callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.spaces import Box
from sb3_contrib import ARS, RecurrentPPO
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from adv_worldmodel import AdvWorldModelVecEnv, OfflineDataset, WorldModel, make_sb3_env
from tests.agents.adversaries import ITERATION, Make, Watched, adversary


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (VecNormalize, "VecNormalize"),
        (lambda env: VecFrameStack(env, 2), "VecFrameStack"),
        (lambda env: VecMonitor(VecNormalize(env)), "VecNormalize"),
    ],
)
def test_an_environment_in_other_units_is_refused(
    env: AdvWorldModelVecEnv, make_algorithm: Make, wrap: Callable[[Any], Any], name: str
) -> None:
    """The adversary would show the policy raw states, which it has never seen."""
    model = make_algorithm("PPO", wrap(env))
    with pytest.raises(ValueError, match=f"leave {name} out"):
        model.learn(ITERATION, callback=adversary())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0)),
        wrappers.NormalizeObservation,
        wrappers.NormalizeReward,
        lambda env: wrappers.TransformReward(env, lambda reward: -reward),
        lambda env: wrappers.FrameStackObservation(env, 2),
        lambda env: wrappers.TimeLimit(wrappers.NormalizeReward(env), 3),
    ],
)
def test_a_row_s_wrapper_that_changes_the_game_is_refused(
    pendulum: OfflineDataset,
    ending_model: WorldModel,
    make_algorithm: Make,
    wrap: Callable[[Any], Any],
) -> None:
    def make_one() -> gym.Env[Any, Any]:
        return wrap(
            gym.make("AdvWorldModel-v0", dataset=pendulum, world_model=ending_model, device="cpu")
        )

    name = "NormalizeReward" if isinstance(make_one(), wrappers.TimeLimit) else None
    name = name or type(make_one()).__name__
    model = make_algorithm("SAC", DummyVecEnv([make_one]))
    with pytest.raises(ValueError, match=f"leave {name} out"):
        model.learn(total_timesteps=10, callback=adversary())


class OtherActions(AdvWorldModelVecEnv):
    """Takes actions in [-1, 1] for the world's in [-2, 2], without being a wrapper."""

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def step_async(self, actions: Any) -> None:
        super().step_async(2.0 * actions)


def test_spaces_other_than_the_world_s_are_refused(
    env: AdvWorldModelVecEnv, make_algorithm: Make
) -> None:
    model = make_algorithm("SAC", OtherActions(env.world))
    with pytest.raises(ValueError, match=r"acts in Box\(-1.0, 1.0, .* takes Box\(-2.0, 2.0"):
        model.learn(ITERATION, callback=adversary())


def test_wrappers_that_only_watch_are_let_through(
    env: AdvWorldModelVecEnv,
    pendulum: OfflineDataset,
    ending_model: WorldModel,
    make_algorithm: Make,
) -> None:
    def make_one() -> gym.Env[Any, Any]:
        row = gym.make(
            "AdvWorldModel-v0", 4, dataset=pendulum, world_model=ending_model, device="cpu"
        )
        return Monitor(wrappers.RecordEpisodeStatistics(row))

    for watched in (VecCheckNan(VecMonitor(env)), DummyVecEnv([make_one] * 2)):
        callback = Watched(3e-2, 3, batch_size=32)
        n = watched.num_envs
        make_algorithm("SAC", watched).learn(total_timesteps=3 * 5 * n, callback=callback)
        assert callback.model_changes == 2


@pytest.mark.parametrize(
    "nested",
    [
        lambda callback: EveryNTimesteps(1, callback),
        lambda callback: CallbackList([EveryNTimesteps(1, callback)]),
        lambda callback: EveryNTimesteps(1, CallbackList([callback])),
    ],
    ids=["alone", "in-a-list", "around-a-list"],
)
def test_inside_another_callback_it_would_never_run(
    build: Make, nested: Callable[[BaseCallback], BaseCallback]
) -> None:
    with pytest.raises(ValueError, match="inside EveryNTimesteps would never run: pass it to"):
        build("RAMBO").learn(total_timesteps=ITERATION, callback=nested(adversary()))


@pytest.mark.parametrize(
    "listed",
    [
        lambda callback, other: [other, callback],
        lambda callback, other: CallbackList([callback, other]),
        lambda callback, other: CallbackList([CallbackList([other, callback])]),
    ],
    ids=["list", "CallbackList", "nested-lists"],
)
def test_in_a_list_it_works(build: Make, tmp_path: Any, listed: Callable[..., Any]) -> None:
    callback = Watched(3e-2, 3, batch_size=32)
    other = CheckpointCallback(save_freq=5, save_path=str(tmp_path))
    build("RAMBO").learn(total_timesteps=3 * ITERATION, callback=listed(callback, other))
    assert callback.model_changes == 2
    assert len(list(tmp_path.glob("*.zip"))) == 3


def test_environments_without_a_world_model_are_refused() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    with pytest.raises(ValueError, match="needs a world model to change: train in adv_worldmodel"):
        model.learn(total_timesteps=10, callback=adversary())


def one_row(dataset: OfflineDataset, model: WorldModel) -> gym.Env[Any, Any]:
    return gym.make("AdvWorldModel-v0", dataset=dataset, world_model=model, device="cpu")


def test_gymnasium_environments_that_share_a_model(
    pendulum: OfflineDataset, ending_model: WorldModel, make_algorithm: Make
) -> None:
    callback = Watched(3e-2, 3, batch_size=32)
    model = make_algorithm("SAC", DummyVecEnv([partial(one_row, pendulum, ending_model)] * 2))
    model.learn(total_timesteps=30, callback=callback)  # 2 rows x 5 steps, three times
    assert callback.model_changes == 2


def test_an_environment_in_another_process_has_a_model_of_its_own(
    pendulum: OfflineDataset, ending_model: WorldModel, make_algorithm: Make
) -> None:
    env = SubprocVecEnv([partial(one_row, pendulum, ending_model)], start_method="fork")
    model = make_algorithm("SAC", env)
    with pytest.raises(ValueError, match="processes have world models of their own"):
        model.learn(total_timesteps=10, callback=adversary())
    env.close()


def test_gymnasium_environments_with_models_of_their_own_are_refused(
    pendulum: OfflineDataset, ending_model: WorldModel, make_algorithm: Make
) -> None:
    def make_one() -> gym.Env[Any, Any]:
        own = copy.deepcopy(ending_model)
        return gym.make("AdvWorldModel-v0", dataset=pendulum, world_model=own, device="cpu")

    model = make_algorithm("SAC", DummyVecEnv([make_one] * 2))
    with pytest.raises(ValueError, match="hold different world models"):
        model.learn(total_timesteps=30, callback=adversary())


@pytest.mark.parametrize("kind", [ARS, RecurrentPPO])
def test_algorithms_without_a_value_of_a_state_are_refused(
    pendulum: OfflineDataset, ending_model: WorldModel, kind: Any
) -> None:
    env = make_sb3_env(pendulum, 2, 3, world_model=ending_model, device="cpu", seed=0)
    policy = "MlpLstmPolicy" if kind is RecurrentPPO else "LinearPolicy"
    with pytest.raises(ValueError, match=f"{kind.__name__} has no value function of the state"):
        kind(policy, env, device="cpu").learn(10, callback=adversary())


@pytest.mark.parametrize(("limits", "expected"), [((4, 3), 3), ((9, 9), 5)])
def test_the_adversary_s_rollouts_end_with_the_agent_s(
    pendulum: OfflineDataset,
    ending_model: WorldModel,
    make_algorithm: Make,
    limits: tuple[int, int],
    expected: int,
) -> None:
    """At the world's own horizon, which is 5, or at a shorter limit of ``gym.make``."""

    def make_one(limit: int) -> gym.Env[Any, Any]:
        settings = {"dataset": pendulum, "world_model": ending_model, "device": "cpu"}
        return gym.make("AdvWorldModel-v0", limit, **settings)  # type: ignore[arg-type]

    callback = adversary()
    env = DummyVecEnv([partial(make_one, limit) for limit in limits])
    make_algorithm("SAC", env).learn(total_timesteps=10, callback=callback)
    assert callback.adversary is not None
    assert callback.adversary.horizon == expected


def test_an_agent_on_another_device_than_its_world_is_refused(build: Make) -> None:
    agent = build("PPO")
    agent.device = torch.device("meta")  # SB3 advises PPO to stay on the CPU, the world may not
    with pytest.raises(ValueError, match="the agent is on meta, its world model on cpu"):
        agent.learn(ITERATION, callback=adversary())


def test_the_model_that_the_rows_step_in_is_the_one_that_changes(
    pendulum: OfflineDataset, ending_model: WorldModel, make_algorithm: Make
) -> None:
    """``DummyVecEnv.set_attr`` sets attributes of the outermost wrapper, which no world reads."""

    def make_one() -> gym.Env[Any, Any]:
        return gym.make(
            "AdvWorldModel-v0", dataset=pendulum, world_model=ending_model, device="cpu"
        )

    env = DummyVecEnv([make_one, make_one])
    env.set_attr("world_model", copy.deepcopy(ending_model))
    env.set_attr("horizon", 3)
    callback = adversary()
    make_algorithm("PPO", env).learn(ITERATION, callback=callback)
    assert callback.adversary is not None
    assert callback.adversary.model is ending_model
    assert callback.adversary.horizon == 5


def test_settings_are_those_that_the_callback_was_made_with() -> None:
    with pytest.raises(AttributeError, match="settings"):
        adversary().settings = None  # type: ignore[misc,assignment]
