"""Data collected in real environments: every row is one that the environment gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from sb3_contrib import ARS
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.policies import BasePolicy

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from agents.commands.collection import collect, load_policy, replayed, train_sac
from agents.training.real_env import full_id

DOUBLE = "InvertedDoublePendulum-v5"


def small() -> dict[str, Any]:
    """Settings of a small agent; SB3 changes the dictionary that it is given."""
    return {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


class Constant:
    """Acts alike everywhere, and notes how it was asked."""

    def __init__(self, action: float) -> None:
        self.action = np.array([action], dtype=np.float32)
        self.asked: set[bool] = set()

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], None]:
        self.asked.add(deterministic)
        return self.action, None


class StartsAlike:
    """A policy that sees the same state always."""

    def __init__(self, policy: BasePolicy) -> None:
        self.policy, self.use_sde = policy, True

    def reset_noise(self) -> None:
        self.policy.reset_noise()  # type: ignore[operator]

    def predict(self, observation: Any, state: Any, deterministic: bool) -> tuple[Any, Any]:
        return self.policy.predict(np.ones(3, np.float32), state, deterministic=deterministic)


class Far(gym.Env[Any, Any]):
    """Positions near 100,000 that change by 1e-4."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.array([1e5])
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state += 1e-4 * action
        return self.state.copy(), 0.0, False, False, {}


def assert_happened(dataset: OfflineDataset, env: gym.Env[Any, Any]) -> None:
    """Taking the data's actions in `env` from the seed 0 on gives the data, row by row."""
    observation, _ = env.reset(seed=0)
    for row in range(len(dataset)):
        assert dataset.observations[row] == pytest.approx(observation, abs=1e-5), row
        observation, reward, terminated, truncated, _ = env.step(dataset.actions[row])
        assert dataset.next_observations[row] == pytest.approx(observation, abs=1e-5), row
        assert dataset.rewards[row] == pytest.approx(reward, abs=1e-5), row
        assert dataset.terminations[row] == terminated, row
        last = row == len(dataset) - 1
        assert dataset.truncations[row] == (truncated or (last and not terminated)), row
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()


def tip_height(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the double pendulum, m: observations are x, sin and cos of both joints' angles, ..."""
    _, sin1, sin2, cos1, cos2 = observations.T[:5]
    return 0.6 * (cos1 + (cos1 * cos2 - sin1 * sin2))


@pytest.mark.parametrize(
    ("env_id", "rows", "ends"), [("Pendulum-v1", 450, [199, 399, 449]), (DOUBLE, 300, None)]
)
def test_random_rows_happen_again(env_id: str, rows: int, ends: list[int] | None) -> None:
    dataset = collect(env_id, [None], rows)
    assert len(dataset) == rows
    assert dataset.env_id == env_id
    assert_happened(dataset, gym.make(env_id))
    if ends is not None:
        assert dataset.episode_ends().tolist() == ends


def test_a_termination_keeps_the_state_in_which_the_task_ended() -> None:
    # The task ends when the tip is at 1 m or lower; a reset puts it up to 1.2 m.
    dataset = collect(DOUBLE, [None], 300)
    assert dataset.terminations.sum() > 10
    assert ((tip_height(dataset.next_observations) <= 1.0) == dataset.terminations).all()
    assert (tip_height(dataset.observations) > 1.0).all()


def test_policies_share_the_rows_evenly_and_begin_their_own_episode() -> None:
    dataset = collect("Pendulum-v1", [Constant(1.0), None, Constant(-1.0)], 301)
    assert np.flatnonzero(dataset.actions[:, 0] == 1.0).tolist() == list(range(101))
    assert np.flatnonzero(dataset.actions[:, 0] == -1.0).tolist() == list(range(201, 301))
    assert np.flatnonzero(dataset.truncations).tolist() == [100, 200, 300]
    with pytest.raises(ValueError, match="1 rows of 2 policies"):
        collect("Pendulum-v1", [None, None], 1)


def test_noise_is_a_share_of_half_the_range_and_stays_within() -> None:
    # Actions in [-2, 2]: noise 0.1 has a standard deviation of 0.2.
    actions = collect("Pendulum-v1", [Constant(1.0)], 2000, noise=0.1).actions
    assert actions.mean() == pytest.approx(1.0, abs=0.02)
    assert actions.std() == pytest.approx(0.2, abs=0.02)
    assert collect("Pendulum-v1", [Constant(2.0)], 50, noise=0.1).actions.max() == 2.0


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_policy_is_asked_for_mean_actions_or_samples(deterministic: bool) -> None:
    policy = Constant(0.5)
    collect("Pendulum-v1", [policy], 5, deterministic=deterministic)
    assert policy.asked == {deterministic}


def test_equal_seeds_give_equal_data_whatever_torch_drew_before() -> None:
    sac = SAC("MlpPolicy", gym.make("Pendulum-v1"), **small())
    hashes = []
    for seed in (1, 1, 2):
        torch.rand(1)
        before = torch.random.get_rng_state()
        hashes.append(collect("Pendulum-v1", [sac, None], 30, seed=seed, noise=0.1).content_hash)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("kind", [SAC, PPO])
def test_state_dependent_exploration_is_drawn_by_the_seed_and_for_each_episode(
    kind: type[SAC | PPO],
) -> None:
    """What explores is a function of the state, of which an episode keeps one."""
    agents = [kind("MlpPolicy", gym.make("Pendulum-v1"), use_sde=True, **small()) for _ in "ab"]
    agents[1].policy.load_state_dict(agents[0].policy.state_dict())
    agents[1].predict(np.zeros(3, np.float32))
    seeds = (1, 1, 2)
    data = [collect("Pendulum-v1", [agents[i % 2]], 30, seed=s) for i, s in enumerate(seeds)]
    assert data[0].content_hash == data[1].content_hash != data[2].content_hash
    actions = collect("Pendulum-v1", [StartsAlike(agents[0].policy)], 600, seed=1).actions
    assert len(set(actions[:, 0].tolist())) == 3  # of 3 episodes, each in one state


def test_observations_that_float32_is_too_coarse_for_are_warned_of() -> None:
    gym.register("Far-v0", "tests.agents.commands.test_collection:Far", max_episode_steps=50)
    try:
        with pytest.warns(UserWarning, match="float32"):
            collect("Far-v0", [None], 100)
    finally:
        del gym.registry["Far-v0"]


def test_a_replay_is_all_that_sac_saw() -> None:
    # 100 random steps, then 20 of the policy with an update each.
    model = train_sac(DOUBLE, 120)
    dataset = replayed(model, DOUBLE)
    assert len(dataset) == 120
    assert dataset.env_id == DOUBLE
    assert dataset.terminations.sum() > 5
    assert_happened(dataset, gym.make(DOUBLE))
    again = train_sac(DOUBLE, 120)
    assert replayed(again, DOUBLE).content_hash == dataset.content_hash
    weights = again.policy.state_dict()
    for key, value in model.policy.state_dict().items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize("name", ["SAC", "PPO", "PPO with gSDE", "ARS", "RAMBO"])
def test_a_loaded_policy_acts_as_the_saved_one(
    name: str, tmp_path: Path, pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    agent: SAC | PPO | ARS
    if name == "RAMBO":
        world = make_sb3_env(pendulum, 4, 2, world_model=pendulum_model, device="cpu")
        agent = RAMBO("MlpPolicy", world, **small())
    elif name == "SAC":
        agent = SAC("MlpPolicy", gym.make("Pendulum-v1"), **small())
    elif name == "ARS":
        agent = ARS("MlpPolicy", gym.make("Pendulum-v1"), **small())
        agent.policy.load_state_dict(  # its weights start at zero
            {key: torch.randn_like(value) for key, value in agent.policy.state_dict().items()}
        )
    else:
        agent = PPO("MlpPolicy", gym.make("Pendulum-v1"), use_sde="gSDE" in name, **small())
    agent.save(tmp_path / "agent.zip")
    loaded = load_policy(tmp_path / "agent.zip")
    states = pendulum.observations[:20]
    expected, _ = agent.predict(states, deterministic=True)
    assert expected.std() > 0.0
    assert (loaded.predict(states, deterministic=True)[0] == expected).all()


def test_a_file_that_is_no_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected random, sac:STEPS or a Stable"):
        load_policy(tmp_path / "expert.zip")
    (tmp_path / "expert.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"expert.zip cannot be read as a Stable-Baselines3 agent"):
        load_policy(tmp_path / "expert.zip")


def test_spaces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"CartPole-v1: the action space is Discrete; expected"):
        collect("CartPole-v1", [None], 5)
    with pytest.raises(ValueError, match=r"CartPole-v1: the action space is Discrete; expected"):
        train_sac("CartPole-v1", 5)
    sac = SAC("MlpPolicy", gym.make("Pendulum-v1"), **small())
    with pytest.raises(ValueError, match="policy's observation space"):
        collect(DOUBLE, [sac], 5)


def test_the_environment_is_stored_with_its_version() -> None:
    assert full_id("Pendulum") == "Pendulum-v1"
    assert collect("Pendulum", [None], 1).env_id == "Pendulum-v1"


def test_seeds_are_those_of_the_environment_and_of_the_agent() -> None:
    data = collect("Pendulum-v1", [Constant(1.0)], 1, seed=5)
    first, _ = gym.make("Pendulum-v1").reset(seed=5)
    np.testing.assert_allclose(data.observations[0], first, atol=1e-6)
    actors = [train_sac("Pendulum-v1", 5, seed=seed).actor for seed in (0, 1)]
    assert not torch.equal(*(next(actor.parameters()) for actor in actors))
