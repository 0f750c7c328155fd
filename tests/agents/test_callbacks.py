"""The adversary between SB3's rollouts: what it changes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import math
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
    ConvertCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from torch import Tensor, nn

from adv_worldmodel import AdvWorldModelVecEnv, OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO, RamboCallback
from agents.training.progress import MetricsHistory

Make = Callable[..., Any]
ALGORITHMS = ["SAC", "TD3", "PPO", "TQC", "CrossQ", "RAMBO"]
ITERATION = 80  # transitions: 16 rows, 5 steps


@pytest.fixture
def env(pendulum: OfflineDataset, ending_model: WorldModel) -> AdvWorldModelVecEnv:
    return make_sb3_env(pendulum, 16, 5, world_model=ending_model, device="cpu", seed=0)


@pytest.fixture
def build(env: AdvWorldModelVecEnv, make_algorithm: Make) -> Make:
    def build(name: str, environment: Any = env) -> Any:
        if name != "RAMBO":
            return make_algorithm(name, environment)
        small = {"gradient_steps": 5, "batch_size": 32, "policy_kwargs": {"net_arch": [16, 16]}}
        return RAMBO(env=environment, seed=0, device="cpu", **small)

    return build


def adversary(weight: float = 3e-2, updates: int = 5, **kwargs: Any) -> RamboCallback:
    return RamboCallback(weight, updates, batch_size=32, **kwargs)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (running statistics too), copied."""
    return copy.deepcopy(module.state_dict())


def gradients_of(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


class Watched(RamboCallback):
    """Checks at each rollout that the adversary left the agent alone; counts those that acted."""

    model_changes = 0
    rollouts = 0

    def _on_rollout_start(self) -> None:
        assert self.adversary is not None
        policy, world = self.model.policy, self.adversary.model
        before, gradients, dynamics = state_of(policy), gradients_of(policy), state_of(world)
        super()._on_rollout_start()
        assert equal(before, state_of(policy))
        for a, b in zip(gradients, gradients_of(policy), strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b)
        self.rollouts += 1
        self.model_changes += not equal(dynamics, state_of(world))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_run_unmodified_against_the_adversary(
    build: Make, ending_model: WorldModel, name: str
) -> None:
    fixed = {k: v for k, v in state_of(ending_model).items() if not k.startswith("ensemble.")}
    callback = Watched(3e-2, 5, batch_size=32)
    model = build(name)
    model.learn(total_timesteps=30 * ITERATION, callback=callback)
    assert model.num_timesteps == 2400
    assert callback.rollouts == 30
    assert callback.model_changes == 29  # before each rollout but the first
    assert callback.adversary is not None
    assert callback.adversary.n_updates == 29 * 5
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
    assert all(torch.isfinite(p).all() for p in ending_model.parameters())
    assert equal(fixed, state_of(ending_model))  # scales and bounds are no part of the fit


@pytest.mark.parametrize("score", ["mixture", "member", "pathwise"])
@pytest.mark.parametrize("name", ["RAMBO", "CrossQ", "PPO"])
def test_every_score_leaves_the_agent_alone(build: Make, name: str, score: Any) -> None:
    callback = Watched(3e-2, 3, score=score, batch_size=32)
    build(name).learn(total_timesteps=3 * ITERATION, callback=callback)
    assert callback.model_changes == 2


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


def test_no_adversary_before_the_first_rollout(build: Make, ending_model: WorldModel) -> None:
    before, callback = state_of(ending_model), adversary()
    build("RAMBO").learn(total_timesteps=ITERATION, callback=callback)
    assert callback.adversary is not None
    assert callback.adversary.n_updates == 0
    assert equal(before, state_of(ending_model))


def test_weight_zero_leaves_the_model_as_it_is(build: Make, ending_model: WorldModel) -> None:
    before, callback = state_of(ending_model), adversary(weight=0.0)
    build("RAMBO").learn(total_timesteps=3 * ITERATION, callback=callback)
    assert equal(before, state_of(ending_model))


def test_no_updates_leave_the_model_as_it_is(build: Make, ending_model: WorldModel) -> None:
    before = state_of(ending_model)
    build("RAMBO").learn(total_timesteps=3 * ITERATION, callback=adversary(updates=0))
    assert equal(before, state_of(ending_model))


def test_weight_zero_with_the_fit_continued(build: Make, ending_model: WorldModel) -> None:
    """A model of 50 steps is not fitted yet: going on with its fit makes it better."""
    callback = adversary(weight=0.0, updates=50, continue_fit=True)
    build("RAMBO").learn(total_timesteps=ITERATION, callback=callback)
    assert callback.adversary is not None
    before = float(callback.adversary.holdout_nll())
    build("RAMBO").learn(total_timesteps=3 * ITERATION, callback=callback)
    assert float(callback.adversary.holdout_nll()) < before - 0.1


def test_without_the_callback_the_model_stays(build: Make, ending_model: WorldModel) -> None:
    before = state_of(ending_model)
    build("RAMBO").learn(total_timesteps=3 * ITERATION)
    assert equal(before, state_of(ending_model))


def test_equal_seeds_give_equal_models(
    pendulum: OfflineDataset, fitted_once: WorldModel, build: Make
) -> None:
    def trained(seed: int | None) -> dict[str, Tensor]:
        world = copy.deepcopy(fitted_once)
        env = make_sb3_env(pendulum, 16, 5, world_model=world, device="cpu")
        build("RAMBO", env).learn(total_timesteps=3 * ITERATION, callback=adversary(seed=seed))
        return state_of(world)

    assert equal(trained(1), trained(1))
    assert equal(trained(None), trained(None))  # the algorithm's seed
    assert not equal(trained(1), trained(2))


# --- where it may stand -------------------------------------------------------------------------


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


def test_a_second_learn_goes_on_with_the_same_adversary(build: Make) -> None:
    callback, model = adversary(), build("RAMBO")
    model.learn(total_timesteps=2 * ITERATION, callback=callback)
    first = callback.adversary
    model.learn(total_timesteps=2 * ITERATION, callback=callback, reset_num_timesteps=False)
    assert callback.adversary is first
    assert first is not None
    # the critic has learnt by now: no rollout of the second call is without it
    assert first.n_updates == (1 + 2) * 5


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adversary_updates": -1}, "adversary_updates = -1 must be at least 0"),
        ({"adversary_weight": -1.0}, "weight = -1.0 must be a finite number of at least 0"),
        ({"score": "elite"}, "'elite' is not one of mixture, member, pathwise"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"batch_size": 1}, "batch_size = 1: expected at least 2 rows"),
        ({"batch_size": 2.5}, "batch_size = 2.5: expected a whole number"),
        ({"adversary_updates": 2.5}, "adversary_updates = 2.5: expected a whole number"),
    ],
)
def test_wrong_settings_are_explained(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RamboCallback(**wrong)


# --- metrics ------------------------------------------------------------------------------------


def rows_of(model: Any, callback: RamboCallback, iterations: int) -> list[dict[str, float]]:
    history = MetricsHistory()
    model.set_logger(Logger(None, [history]))
    model.learn(total_timesteps=iterations * ITERATION, callback=callback)
    return history.rows


def test_metrics_of_every_iteration_that_had_an_adversary(build: Make) -> None:
    callback = adversary()
    first, *rest = rows_of(build("RAMBO"), callback, 4)
    names = {
        "adversary/objective", "adversary/advantage_mean", "adversary/advantage_std",
        "adversary/supervised_loss", "adversary/holdout_nll", "time/adversary_s",
    }  # fmt: skip
    assert not names & set(first)
    assert len(rest) == 3
    for row in rest:
        assert names <= set(row)
        assert all(math.isfinite(row[name]) for name in names)
        assert row["adversary/advantage_std"] > 0
    assert callback.seconds == pytest.approx(sum(row["time/adversary_s"] for row in rest))


def test_a_model_left_alone_still_reports_its_fit(build: Make, fitted_once: WorldModel) -> None:
    _, *rest = rows_of(build("RAMBO"), adversary(weight=0.0), 3)
    for row in rest:
        assert row["adversary/holdout_nll"] == pytest.approx(
            fitted_once.fit_info["holdout_nll"], rel=1e-4
        )
        assert "adversary/objective" not in row


def test_the_adversary_plays_the_agent_s_game(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    """Its horizon, discount and settings are those of environment, agent and callback."""
    world = make_sb3_env(pendulum, 16, 3, world_model=pendulum_model, device="cpu", seed=0)
    small: dict[str, Any] = {"gradient_steps": 1, "policy_kwargs": {"net_arch": [8]}}
    callback = RamboCallback("auto", 1, learning_rate=5e-3, xi=0.2, max_weight=0.7, seed=3)
    RAMBO(env=world, gamma=0.9, device="cpu", **small).learn(48, callback=callback)
    foe = callback.adversary
    assert foe is not None
    assert (foe.horizon, foe.gamma) == (3, 0.9)
    assert foe.optimizer.param_groups[0]["lr"] == 5e-3
    assert foe.dual is not None
    assert (foe.dual.xi, foe.dual.largest) == (0.2, 0.7)
    RAMBO(env=world, gamma=0.8, device="cpu", **small).learn(48, callback=callback)
    assert callback.adversary is not foe  # another game
    assert callback.adversary is not None
    assert callback.adversary.gamma == 0.8


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


def test_other_data_make_another_adversary(
    pendulum: OfflineDataset, ending_model: WorldModel, build: Make
) -> None:
    """After ``set_env`` it keeps the model near the new data, not those of the first call."""
    columns = ("observations", "actions", "rewards", "next_observations", "terminations")
    half = OfflineDataset.from_arrays(
        *(getattr(pendulum, column)[:500] for column in columns),
        observation_space=pendulum.observation_space,
        action_space=pendulum.action_space,
    )
    callback, model = adversary(), build("RAMBO")
    model.learn(total_timesteps=2 * ITERATION, callback=callback)
    first = callback.adversary
    model.set_env(make_sb3_env(half, 16, 5, world_model=ending_model, device="cpu", seed=0))
    model.learn(total_timesteps=2 * ITERATION, callback=callback)
    assert callback.adversary is not first
    assert callback.adversary is not None
    assert torch.equal(callback.adversary.start_states, torch.as_tensor(half.observations))


def test_sb3_s_callbacks_count_episodes_in_rambo_s_rollouts(build: Make) -> None:
    """Two iterations of 16 rows that end after five steps; the third is not begun."""
    model = build("RAMBO")
    stop = StopTrainingOnMaxEpisodes(max_episodes=2)  # per environment
    seen: list[dict[str, Any]] = []

    def watch(found: dict[str, Any], _: Any) -> bool:
        seen.append({k: found[k] for k in ("actions", "rewards", "dones", "new_obs")})
        return True

    model.learn(30 * ITERATION, callback=[stop, ConvertCallback(watch)])
    shapes = {name: value.shape for name, value in seen[0].items()}
    assert shapes == {"actions": (16, 1), "rewards": (16,), "dones": (16,), "new_obs": (16, 3)}
    ended = np.cumsum([found["dones"].sum() for found in seen])
    assert ended[-1] >= 32 > ended[-2]
