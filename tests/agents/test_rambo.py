"""RAMBO: its iterations, its rollouts, and what equal seeds give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO, RamboCallback
from agents.policies import RAMBOPolicy
from agents.training.evaluation import EvaluationCallback, Evaluator
from tests.agents.small_agents import HORIZON, N_ENVS, UPDATES, MakeAgent, run


class Rows(KVWriter):
    """Keeps what the logger writes."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        self.rows.append((step, dict(key_values)))

    def close(self) -> None:
        """Nothing is held open."""


# --- iterations ---------------------------------------------------------------------------------


def test_learn_runs_whole_iterations(make_agent: MakeAgent) -> None:
    model = make_agent()
    assert model.timesteps_per_iteration == N_ENVS * HORIZON
    run(model, 2)
    assert (model.iteration, model.num_timesteps, model._n_updates) == (2, 120, 8)
    run(model, 1, reset_num_timesteps=False)
    assert (model.iteration, model.num_timesteps, model._n_updates) == (3, 180, 12)


def test_the_buffer_holds_the_last_iterations(make_agent: MakeAgent) -> None:
    model = make_agent(retain_iterations=2)
    sizes = []
    for _ in range(4):
        run(model, 1, reset_num_timesteps=False)
        sizes.append(model.replay_buffer.size())
    assert sizes == [60, 120, 120, 120]


def test_one_row_of_metrics_per_iteration(make_agent: MakeAgent) -> None:
    model, rows = make_agent(), Rows()
    model.set_logger(Logger(None, [rows]))
    run(model, 3)
    size = model.timesteps_per_iteration
    assert [step for step, _ in rows.rows] == [size, 2 * size, 3 * size]
    expected = {
        "train/q_mean", "train/ent_coef", "train/actor_loss", "train/critic_loss",
        "train/ent_coef_loss", "train/entropy", "train/n_updates", "model/reward_mean",
        "model/rollout_length", "time/iteration", "time/updates_per_second",
    }  # fmt: skip
    for i, (_, row) in enumerate(rows.rows, start=1):
        assert expected <= set(row)
        assert all(math.isfinite(row[key]) for key in expected)
        assert (row["time/iteration"], row["train/n_updates"]) == (i, i * UPDATES)
        assert row["time/total_timesteps"] == i * size
        assert row["model/rollout_length"] == HORIZON  # this model never terminates
        assert row["time/updates_per_second"] > 0


@pytest.mark.filterwarnings("ignore:Training and eval env")
def test_sb3_s_evaluation_writes_on_the_same_axis(make_agent: MakeAgent) -> None:
    model, rows = make_agent(), Rows()
    model.set_logger(Logger(None, [rows]))
    real = Monitor(gym.make("Pendulum-v1", max_episode_steps=3))
    run(model, 2, callback=EvalCallback(real, n_eval_episodes=1, eval_freq=HORIZON))
    steps = [step for step, _ in rows.rows]
    assert steps == sorted(steps)
    for step, row in rows.rows:
        assert row["time/total_timesteps"] == step
    assert sum("eval/mean_reward" in row for _, row in rows.rows) == 2


def test_terminations_shorten_the_rollouts(make_agent: MakeAgent, ending_model: WorldModel) -> None:
    model, rows = make_agent(world_model=ending_model, n_envs=200), Rows()
    model.set_logger(Logger(None, [rows]))
    run(model, 1)
    assert model.replay_buffer.synthetic is not None
    batch = model.replay_buffer.unpack(model.replay_buffer.synthetic[:600])
    # a row has no future exactly where the model ended it; the horizon is no end
    assert torch.equal(batch.continues == 0, batch.next_obs[:, 0] > 0)
    n_rollouts = 200 + int((batch.continues[:400] == 0).sum())
    assert rows.rows[0][1]["model/rollout_length"] == pytest.approx(600 / n_rollouts)
    assert rows.rows[0][1]["model/reward_mean"] == pytest.approx(float(batch.reward.mean()))


def rates(model: RAMBO) -> list[float]:
    """Critics', actor's, entropy coefficient's."""
    assert model.ent_coef_optimizer is not None
    optimisers = (model.critic.optimizer, model.actor.optimizer, model.ent_coef_optimizer)
    return [o.param_groups[0]["lr"] for o in optimisers]


def test_three_learning_rates_reach_the_three_optimisers(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    model = make_agent(learning_rate=1e-3, actor_learning_rate=2e-3, entropy_learning_rate=3e-3)
    assert rates(model) == [1e-3, 2e-3, 3e-3]
    assert rates(make_agent()) == [3e-4, 1e-4, 1e-4]
    run(model, 1).save(tmp_path / "policy")
    assert rates(model) == [1e-3, 2e-3, 3e-3]
    loaded = RAMBO.load(tmp_path / "policy", env=model.env, device="cpu")
    assert rates(run(loaded, 1)) == [1e-3, 2e-3, 3e-3]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [1e-3, 2e-3, 3e-3]),
        ({"learning_rate": 1e-6, "actor_learning_rate": 2e-6}, [1e-6, 2e-6, 3e-3]),
        ({"entropy_learning_rate": 3e-6}, [1e-3, 2e-3, 3e-6]),
    ],
)
def test_a_loaded_agent_may_go_on_with_other_learning_rates(
    make_agent: MakeAgent, tmp_path: Path, changed: dict[str, float], expected: list[float]
) -> None:
    model = make_agent(learning_rate=1e-3, actor_learning_rate=2e-3, entropy_learning_rate=3e-3)
    run(model, 1).save(tmp_path / "policy")
    loaded = RAMBO.load(tmp_path / "policy", env=model.env, device="cpu", **changed)
    assert rates(run(loaded, 1, reset_num_timesteps=False)) == expected
    for name, rate in changed.items():
        setattr(model, name, rate)
    assert rates(run(model, 1, reset_num_timesteps=False)) == expected


def test_learning_rates_are_what_the_optimisers_do(make_agent: MakeAgent) -> None:
    """Adam's first step moves a parameter by its learning rate (up to tiny gradients)."""
    model = make_agent(
        learning_rate=1e-3, actor_learning_rate=2e-3, entropy_learning_rate=3e-3, gradient_steps=1
    )
    assert model.log_ent_coef is not None
    before = [p.detach().clone() for p in (*model.critic.parameters(), *model.actor.parameters())]
    run(model, 1)
    after = (*model.critic.parameters(), *model.actor.parameters())
    moves = [float((a.detach() - b).abs().max()) for a, b in zip(after, before, strict=True)]
    n_critic = len(list(model.critic.parameters()))
    assert max(moves[:n_critic]) == pytest.approx(1e-3, rel=1e-2)
    assert max(moves[n_critic:]) == pytest.approx(2e-3, rel=1e-2)
    assert abs(float(model.log_ent_coef.detach())) == pytest.approx(3e-3, rel=1e-2)


# --- rollouts -----------------------------------------------------------------------------------


def kolmogorov_distance(sample: NDArray[Any], cdf: Callable[[Any], Any]) -> float:
    """Largest distance between a sample's distribution function and `cdf`."""
    values = np.sort(sample)
    expected = cdf(values)
    n = len(values)
    above = np.arange(1, n + 1) / n - expected
    return float(max(above.max(), (expected - np.arange(n) / n).max()))


def first_rollout(model: RAMBO) -> Any:
    run(model, 1)
    assert model.replay_buffer.synthetic is not None
    return model.replay_buffer.unpack(model.replay_buffer.synthetic[: model.num_timesteps])


def test_random_rollouts_act_uniformly(make_agent: MakeAgent) -> None:
    batch = first_rollout(make_agent(rollout_policy="random", n_envs=1000, horizon=2))
    distance = kolmogorov_distance(batch.action[:, 0].numpy(), lambda a: (a + 1) / 2)
    assert distance < 1.95 / 2000**0.5  # 0.1 % level


def test_current_rollouts_follow_the_policy(make_agent: MakeAgent) -> None:
    model = make_agent(n_envs=1000, horizon=2)
    actor = copy.deepcopy(model.actor)
    batch = first_rollout(model)
    with torch.no_grad():
        mean, log_std, _ = actor.get_action_dist_params(batch.obs)
    noise = ((torch.atanh(batch.action.double()) - mean) / log_std.exp())[:, 0].numpy()
    normal = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / 2**0.5)))
    assert kolmogorov_distance(noise, normal) < 1.95 / 2000**0.5


def test_rollouts_start_in_the_data_and_go_on_in_the_model(
    make_agent: MakeAgent, pendulum: OfflineDataset, ending_model: WorldModel
) -> None:
    model = make_agent(world_model=ending_model, n_envs=50, horizon=3)
    batch = first_rollout(model)
    known = {row.tobytes() for row in pendulum.observations}

    def in_data(rows: Tensor) -> NDArray[Any]:
        return np.array([row.tobytes() in known for row in rows.numpy()])

    obs, next_obs = batch.obs.reshape(3, 50, 3), batch.next_obs.reshape(3, 50, 3)
    ended = (batch.continues == 0).reshape(3, 50)
    assert in_data(obs[0]).all()
    assert not in_data(next_obs[0]).any()
    for step in (1, 2):
        assert torch.equal(obs[step][~ended[step - 1]], next_obs[step - 1][~ended[step - 1]])
        assert in_data(obs[step][ended[step - 1]]).all()
    assert ended[:2].any()
    # the second iteration starts in the data again
    run(model, 1, reset_num_timesteps=False)
    assert model.replay_buffer.synthetic is not None
    assert in_data(model.replay_buffer.synthetic[150:200, :3]).all()


# --- seeds --------------------------------------------------------------------------------------


def test_a_rollout_that_a_callback_has_disturbed_is_refused(make_agent: MakeAgent) -> None:
    """Its rows would go on from states that others have left."""

    class Evaluation(BaseCallback):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.at = at

        def _on_step(self) -> bool:
            if self.n_calls == self.at:
                evaluate_policy(self.model, self.training_env, n_eval_episodes=2, warn=False)
            return True

    with pytest.raises(ValueError, match="evaluate in one of its own"):
        run(make_agent(), 1, callback=Evaluation(at=1))
    run(make_agent(), 2, callback=Evaluation(at=HORIZON))  # the next rollout begins anew


def test_equal_seeds_give_equal_parameters(make_agent: MakeAgent) -> None:
    def parameters(seed: int) -> list[Tensor]:
        torch.rand(3)  # what went before plays no part
        return list(run(make_agent(seed=seed), 2).policy.parameters())

    first, again, other = parameters(1), parameters(1), parameters(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# --- standardisation ----------------------------------------------------------------------------


def test_states_are_standardised_inside_the_policy(
    make_agent: MakeAgent, pendulum: OfflineDataset, tmp_path: Path
) -> None:
    run(make_agent(), 1).save(tmp_path / "policy")
    loaded = RAMBO.load(tmp_path / "policy", device="cpu")
    raw = pendulum.observations
    by_hand = (raw - raw.mean(0, dtype=float)) / raw.std(0, dtype=float)
    with torch.no_grad():
        hidden = loaded.actor.latent_pi(torch.as_tensor(by_hand, dtype=torch.float32))
        expected = 2.0 * torch.tanh(loaded.actor.mu(hidden))  # actions lie in [-2, 2]
    action, _ = loaded.predict(raw, deterministic=True)
    np.testing.assert_allclose(action, expected, atol=1e-5)


def test_a_features_extractor_of_the_user_s_is_kept(make_agent: MakeAgent) -> None:
    from stable_baselines3.common.torch_layers import FlattenExtractor

    policy_kwargs = {"net_arch": [16], "features_extractor_class": FlattenExtractor}
    model = make_agent(policy_kwargs=policy_kwargs)
    assert isinstance(model.actor.features_extractor, FlattenExtractor)
    assert set(policy_kwargs) == {"net_arch", "features_extractor_class"}  # left as it was given


@pytest.mark.parametrize(
    ("name", "fused"), [("Adam", True), ("AdamW", True), ("RMSprop", None), ("NAdam", None)]
)
def test_an_optimiser_of_the_user_s_is_taken(
    make_agent: MakeAgent, name: str, fused: bool | None
) -> None:
    kind = getattr(torch.optim, name)
    model = make_agent(networks={"optimizer_class": kind})
    before = [p.detach().clone() for p in model.actor.parameters()]
    run(model, 1)
    for network in (model.actor, model.critic):
        assert type(network.optimizer) is kind
        assert network.optimizer.defaults.get("fused") is fused
    pairs = zip(before, model.actor.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


# --- errors -------------------------------------------------------------------------------------


def test_numbers_that_are_none_end_the_training(make_agent: MakeAgent) -> None:
    model = make_agent(learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"train/\w+ is nan after iteration [12]: the tr"):
        model.learn(3 * model.timesteps_per_iteration)
    assert model.iteration < 3


def test_an_adversary_does_not_follow_an_agent_that_is_lost(make_agent: MakeAgent) -> None:
    model = make_agent(learning_rate=1e30)
    world = model.env.world_model  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError):
        model.learn(
            3 * model.timesteps_per_iteration, callback=RamboCallback(0.1, 2, batch_size=16)
        )
    assert all(bool(torch.isfinite(p).all()) for p in world.parameters())


def test_an_agent_that_is_lost_is_not_evaluated(make_agent: MakeAgent) -> None:
    model = make_agent(learning_rate=1e30)
    with Evaluator("Pendulum-v1", episodes=1) as evaluator:
        callback = EvaluationCallback(evaluator, every=1)
        with pytest.raises(FloatingPointError):
            model.learn(3 * model.timesteps_per_iteration, callback=callback)
    assert all(np.isfinite(row["return_mean"]) for row in callback.history)


def test_another_horizon_in_mid_training_is_refused(make_agent: MakeAgent) -> None:
    class Longer(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.training_env.set_attr("horizon", HORIZON + 2)

    model = make_agent()
    with pytest.raises(ValueError, match=f"became {HORIZON + 2} in a training with {HORIZON}"):
        model.learn(2 * model.timesteps_per_iteration, callback=Longer())
    model.learn(1)  # the next one takes it over
    assert model.num_timesteps == N_ENVS * (HORIZON + 2)


def test_a_seed_of_numpy_s_is_one(make_agent: MakeAgent) -> None:
    assert make_agent(seed=np.int64(3)).seed == 3


def test_another_environment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trains in adv_worldmodel.make_sb3_env.* got str"):
        RAMBO("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="got no environment"):
        RAMBO("MlpPolicy")


def test_a_policy_class_of_another_kind_is_refused(make_agent: MakeAgent) -> None:
    env = make_agent().env
    with pytest.raises(ValueError, match=r"SACPolicy is no RAMBOPolicy: .* subclass RAMBOPolicy"):
        RAMBO(SACPolicy, env)  # type: ignore[arg-type]

    class Own(RAMBOPolicy):
        """Refined."""

    assert isinstance(RAMBO(Own, env, seed=0).policy, Own)


def test_a_loaded_policy_without_environment_says_what_it_lacks(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    make_agent().save(tmp_path / "policy")
    loaded = RAMBO.load(tmp_path / "policy", device="cpu")
    with pytest.raises(ValueError, match=r"make_sb3_env\(dataset.* got no environment"):
        _ = loaded.timesteps_per_iteration


def test_the_real_environment_is_no_place_to_go_on_training(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    model = make_agent()
    model.save(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"trains in adv_worldmodel.make_sb3_env"):
        RAMBO.load(tmp_path / "policy", env=gym.make("Pendulum-v1"), device="cpu")
    with pytest.raises(ValueError, match=r"trains in adv_worldmodel.make_sb3_env"):
        model.set_env(gym.make("Pendulum-v1"))
    run(model, 1)  # as it was


def test_another_world_model_replaces_rollouts_and_schedule(
    make_agent: MakeAgent, pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    model = run(make_agent(), 2)
    model.set_env(make_sb3_env(pendulum, N_ENVS, 4, world_model=pendulum_model, device="cpu"))
    assert model.timesteps_per_iteration == 80
    assert model.replay_buffer.size() == 0
    run(model, 1, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 80
    assert (model.iteration, model.num_timesteps) == (3, 200)


def test_another_horizon_is_taken_over_whole(make_agent: MakeAgent) -> None:
    model = run(make_agent(retain_iterations=2), 2)
    assert model.env is not None
    model.env.set_attr("horizon", 4)
    lengths = []
    for _ in range(3):
        run(model, 1, reset_num_timesteps=False)
        lengths.append((model.iteration, model.num_timesteps, model.replay_buffer.size()))
    assert lengths == [(3, 200, 80), (4, 280, 160), (5, 360, 160)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rollout_policy": "uniform"}, "'uniform' is not 'current' or 'random'"),
        ({"real_ratio": 1.1}, "real_ratio = 1.1 must lie between 0 and 1"),
        ({"gradient_steps": 0}, "gradient_steps = 0 must be at least 1"),
        ({"cloning_weight": 0.1, "real_ratio": 0.0}, "needs rows of data: real_ratio = 0.0"),
        ({"retain_iterations": 0}, "retain_iterations = 0 must be at least 1"),
        ({"device": "cuda"}, "asked for on cuda, its world model is on cpu"),
        ({"gradient_steps": 3.5}, "gradient_steps = 3.5: expected a whole number"),
        ({"critic_warmup": 0.5}, "critic_warmup = 0.5: expected a whole number"),
        ({"gamma": 2.0}, "gamma = 2.0 must lie between 0 and 1"),
        ({"tau": -1}, "tau = -1 must lie between 0 and 1"),
        ({"real_ratio": math.nan}, "real_ratio = nan must lie between 0 and 1"),
        ({"cloning_weight": math.nan}, "cloning_weight = nan must be a finite number of at least"),
        ({"learning_rate": -1e-3}, "learning_rate = -0.001 must be a finite number of at least"),
        ({"actor_learning_rate": math.nan}, "actor_learning_rate = nan must be a finite number"),
        ({"entropy_learning_rate": math.inf}, "entropy_learning_rate = inf must be a finite"),
        ({"ent_coef": -1.0}, "ent_coef = -1.0 must be a finite number of at least 0"),
        ({"networks": {"n_critics": 0}}, "n_critics = 0 must be at least 1"),
        ({"networks": {"n_critics": 2.5}}, "n_critics = 2.5: expected a whole number"),
    ],
)
def test_wrong_settings_are_explained(
    make_agent: MakeAgent, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"epochs": -1}, "epochs = -1 must be at least 0"),
        ({"epochs": 1.5}, "epochs = 1.5: expected a whole number"),
    ],
)
def test_wrong_settings_of_the_clone_are_explained(
    make_agent: MakeAgent, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent().clone(**wrong)


def test_agent_and_world_have_to_share_a_device(make_agent: MakeAgent) -> None:
    """SB3's ``load`` and ``set_env`` bring them together without asking."""
    model = make_agent()
    model.device = torch.device("meta")
    with pytest.raises(ValueError, match="agent is on meta, its world model on cpu"):
        model.set_env(model.env)


def test_a_schedule_of_the_learning_rate_is_refused(
    pendulum: OfflineDataset, pendulum_model: WorldModel, tmp_path: Path
) -> None:
    env = make_sb3_env(pendulum, 4, 2, world_model=pendulum_model, device="cpu", seed=0)
    schedule: Any = lambda progress: 1e-3 * progress  # noqa: E731
    with pytest.raises(ValueError, match="schedule"):
        RAMBO(env=env, learning_rate=schedule)
    RAMBO(env=env).save(tmp_path / "policy")
    with pytest.raises(ValueError, match="schedule"):
        RAMBO.load(tmp_path / "policy", env=env, learning_rate=schedule)
