"""The adversary between SB3's rollouts: what it changes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    ConvertCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import Logger
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO, RamboCallback
from agents.rollouts import OnHost
from agents.training.progress import MetricsHistory
from tests.agents.adversaries import ITERATION, Make, Watched, adversary, equal, state_of

ALGORITHMS = ["SAC", "TD3", "PPO", "TQC", "CrossQ", "RAMBO"]


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
        assert row["time/adversary_s"] > 0


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
    RAMBO(env=world, gamma=0.8, device="cpu", **small).learn(96, callback=callback)
    assert callback.adversary is foe  # it plays on, at the agent's discount
    assert foe.gamma == 0.8
    longer = make_sb3_env(pendulum, 16, 5, world_model=pendulum_model, device="cpu", seed=0)
    RAMBO(env=longer, gamma=0.8, device="cpu", **small).learn(160, callback=callback)
    assert callback.adversary is foe  # its constraint is still on what the model was
    assert (foe.horizon, foe.n_updates) == (5, 2)


def test_the_adversary_follows_a_model_that_another_callback_sets(
    build: Make, fitted_once: WorldModel
) -> None:
    other = copy.deepcopy(fitted_once)

    class Swap(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.training_env.set_attr("world_model", other)

    callback, model = adversary(), build("RAMBO")
    model.learn(total_timesteps=3 * ITERATION, callback=[callback, Swap()])
    assert callback.adversary is not None
    assert callback.adversary.model is other
    assert not torch.equal(other.ensemble.weights[0], fitted_once.ensemble.weights[0])


def test_a_second_learn_goes_on_with_the_same_adversary(build: Make) -> None:
    callback, model = adversary(), build("RAMBO")
    model.learn(total_timesteps=2 * ITERATION, callback=callback)
    first = callback.adversary
    model.learn(total_timesteps=2 * ITERATION, callback=callback, reset_num_timesteps=False)
    assert callback.adversary is first
    assert first is not None
    # the critic has learnt by now: no rollout of the second call is without it
    assert first.n_updates == (1 + 2) * 5


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


def test_flags_of_a_gpu_are_read_as_an_array_is() -> None:
    """SB3's own callback does so; as a tensor it could not."""
    flags = OnHost(torch.tensor([True, False, True]))
    assert (flags.sum(), flags.shape, len(flags), bool(flags[1])) == (2, (3,), 3, False)
    assert list(flags) == [True, False, True]
    assert (~flags).tolist() == [False, True, False]
    assert (flags == np.array([True, True, True])).tolist() == [True, False, True]
    stop = StopTrainingOnMaxEpisodes(max_episodes=2)
    stop._total_max_episodes = 2
    stop.locals = {"dones": flags}
    assert not stop._on_step()
    assert stop.n_episodes == 2


def test_a_discount_that_changes_in_mid_training_is_the_adversary_s_too(build: Make) -> None:
    class Changed(RamboCallback):
        def _on_rollout_start(self) -> None:
            if self.model._n_updates > 0:
                self.model.gamma = 0.5  # type: ignore[attr-defined]
            super()._on_rollout_start()

    callback = Changed(adversary_updates=2, batch_size=32)
    build("RAMBO").learn(3 * ITERATION, callback=callback)
    assert callback.adversary is not None
    assert callback.adversary.explicit is not None
    assert (callback.adversary.gamma, callback.adversary.explicit.gamma) == (0.5, 0.5)


def test_a_seed_that_is_none_is_refused_at_once() -> None:
    for seed in (-1, 1.5):
        with pytest.raises(ValueError, match="seed = "):
            RamboCallback(seed=seed)  # type: ignore[arg-type]
