"""Whole episodes in a world model that can be followed by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from agents.cli import main
from agents.model_check import check_in_model
from agents.training.config import load_config
from agents.training.run_folder import RunFolder
from tests.agents.tiny import TINY


@pytest.fixture
def walk() -> OfflineDataset:
    """Two episodes, 0 -> 1 -> ... -> 5 (cut) and 0 -> 1 -> 2 (cut), rewards raised by 10."""
    states = np.array([0, 1, 2, 3, 4, 0, 1], np.float32)[:, None]
    return OfflineDataset.from_arrays(
        states,
        np.zeros((7, 1)),
        np.zeros(7),
        states + 1,
        np.zeros(7, bool),
        action_space=Box(-2.0, 2.0, (1,), np.float32),
        name="walk",
    ).with_reward_offset(10.0)


@pytest.fixture
def two_a_step(line_model: Callable[..., WorldModel]) -> Callable[[Any], WorldModel]:
    """A model in which each step gives reward 1 and s' = s + 2."""

    def build(termination: Any) -> WorldModel:
        model = line_model(termination)
        spaces = (model.observation_space, model.action_space)
        return WorldModel(model.ensemble.select([1]), model.termination, *spaces)

    return build


@torch.no_grad()
def agent_in(dataset: OfflineDataset, model: WorldModel, log_std: float = -20.0) -> RAMBO:
    """An agent whose actions are as narrow in all states, by default its mean action."""
    env = make_sb3_env(dataset, 4, 2, world_model=model, device="cpu", seed=0)
    agent = RAMBO("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    agent.actor.log_std.weight.zero_()
    agent.actor.log_std.bias.fill_(log_std)
    return agent


@torch.no_grad()
def value_at(agent: RAMBO, state: float) -> float:
    """min_j Q_j(s, mean action)."""
    obs = torch.tensor([[state]])
    action = torch.tanh(agent.actor.get_action_dist_params(obs)[0])
    return float(agent.policy.critic.q_values(obs, action).amin(0))


def test_an_episode_is_as_long_as_the_data_s_longest(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    model = two_a_step("never")
    agent = agent_in(walk, model)
    found = check_in_model(agent, model, walk, episodes=3, gamma=0.5, alpha=0.0)
    assert found.max_steps == 5
    assert found.lengths.tolist() == [5, 5, 5]
    # the model's reward is what was trained on, 10 more than the environment's own
    np.testing.assert_allclose(found.returns, 5 * (1.0 - 10.0), rtol=1e-5)
    rest = 0.5**5 * value_at(agent, 10.0)  # beyond the cut, what the critics say
    np.testing.assert_allclose(found.beyond_cut, rest, rtol=1e-4)
    np.testing.assert_allclose(found.discounted, 1.9375 + rest, rtol=1e-5)


@pytest.mark.parametrize(("env_id", "steps"), [(None, 6), ("MountainCarContinuous-v0", 999)])
def test_without_order_the_environment_or_the_discount_says_how_long_an_episode_is(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel], env_id: str | None, steps: int
) -> None:
    model = two_a_step("never")
    agent = agent_in(walk, model)
    order = np.arange(len(walk))[::-1]
    keys = ("observations", "actions", "rewards", "next_observations", "terminations")
    columns = {key: getattr(walk, key)[order].copy() for key in keys}
    alone = {"truncations": np.ones(len(walk), bool), "env_id": env_id}
    backwards = replace(walk, **columns, **alone)
    found = check_in_model(agent, model, backwards, episodes=3, gamma=0.5, alpha=0.0)
    assert found.max_steps == steps  # 0.5^6 < 5 % of the discount


def test_a_termination_ends_it(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    model = two_a_step(lambda obs, action, next_obs: next_obs[:, 0] > 5.0)  # 2, 4, 6
    found = check_in_model(agent_in(walk, model), model, walk, episodes=2, gamma=0.5, alpha=0.0)
    assert found.lengths.tolist() == [3, 3]
    np.testing.assert_allclose(found.discounted, 1.75, rtol=1e-5)


@torch.no_grad()
def test_the_entropy_in_the_critics_targets_counts(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    """Three steps, and a policy alike in all states: alpha times that of the second and third."""
    model = two_a_step(lambda obs, action, next_obs: next_obs[:, 0] > 5.0)  # 2, 4, 6
    agent = agent_in(walk, model, log_std=-3.0)
    agent.actor.mu.weight.zero_()
    found = check_in_model(agent, model, walk, episodes=2000, gamma=0.5, alpha=0.2)
    u = agent.actor.mu.bias + np.exp(-3.0) * torch.randn(10_000, 1)
    density = torch.distributions.Normal(agent.actor.mu.bias, np.exp(-3.0)).log_prob(u)
    entropy = -float((density - torch.log(1 - torch.tanh(u).square())).mean())
    assert entropy < -1.0
    expected = 1.75 + 0.2 * (0.5 + 0.25) * entropy
    assert found.discounted.mean() == pytest.approx(expected, abs=0.02)
    np.testing.assert_allclose(found.returns, 3 * (1.0 - 10.0), rtol=1e-5)


@torch.no_grad()
def test_the_critics_are_asked_of_drawn_actions(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    """They value the policy that draws; here a large action ends the episode, the mean is 0."""
    model = two_a_step(lambda obs, action, next_obs: action[:, 0].abs() > 1.0)
    agent = agent_in(walk, model)
    agent.actor.mu.weight.zero_()
    agent.actor.mu.bias.zero_()
    share = 0.4  # of actions that end it, |2 tanh u| > 1
    normal = torch.distributions.Normal(0.0, 1.0)
    std = torch.atanh(torch.tensor(0.5)) / -normal.icdf(torch.tensor(share / 2))
    agent.actor.log_std.bias.fill_(float(std.log()))
    found = check_in_model(agent, model, walk, episodes=5000, gamma=0.5, alpha=0.0)
    assert set(found.lengths) == {5}
    np.testing.assert_allclose(found.returns, -45.0, rtol=1e-5)
    length = sum((1 - share) ** k for k in range(5))
    assert found.sampled_returns.mean() == pytest.approx(-9.0 * length, rel=0.03)
    rest = (0.5 * (1 - share)) ** 5 * value_at(agent, 10.0)
    found_to = sum((0.5 * (1 - share)) ** k for k in range(5))
    assert found.discounted.mean() == pytest.approx(found_to + rest, rel=0.03)
    assert found.values.std() > 0
    assert found.values.mean() == pytest.approx(value_at(agent, 0.0), abs=0.2)


def test_episodes_that_ended_are_not_gone_on_with(
    two_a_step: Callable[[Any], WorldModel],
) -> None:
    """From 0 they end after three steps, 2, 4, 6, from 3 after two, 5, 7."""
    states = np.array([0, 1, 2, 3, 4, 3, 4, 5], np.float32)[:, None]
    truncations = np.isin(np.arange(8), [4, 7])
    data = OfflineDataset.from_arrays(
        states, np.zeros((8, 1)), np.zeros(8), states + 1, np.zeros(8, bool), truncations,
        action_space=Box(-2.0, 2.0, (1,), np.float32),
    ).with_reward_offset(10.0)  # fmt: skip
    model = two_a_step(lambda obs, action, next_obs: next_obs[:, 0] > 5.0)
    agent = agent_in(data, model)
    found = check_in_model(agent, model, data, episodes=40, gamma=0.5, alpha=0.0)
    assert set(found.lengths) == {2, 3}  # both starts are drawn
    np.testing.assert_allclose(found.returns, -9.0 * found.lengths, rtol=1e-5)
    np.testing.assert_allclose(found.discounted, 2.0 - 0.5 ** (found.lengths - 1), rtol=1e-5)
    starts = np.where(found.lengths == 3, 0.0, 3.0)
    by_start = {start: value_at(agent, start) for start in (0.0, 3.0)}
    np.testing.assert_allclose(found.values, [by_start[s] for s in starts], rtol=1e-5)


def test_rewards_that_no_data_have_are_told(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    """A model of reward 1 (-9 without the offset) per step, in data with other ones and with it."""
    model = two_a_step("never")
    found = check_in_model(agent_in(walk, model), model, walk, episodes=2)
    assert found.rewards == (0.0, 0.0)
    assert found.beyond_data
    for rewards in ((-20.0, -9.3), (-8.5, -8.1)):
        assert replace(found, rewards=rewards).beyond_data
    for rewards in ((-20.0, -9.1), (-8.5, -7.9), (-8.92, -8.92)):
        assert not replace(found, rewards=rewards).beyond_data
    nearly = np.full_like(found.returns, 1e-8)  # what a fit makes of rewards that are all 0
    assert not replace(found, rewards=(0.0, 0.0), returns=nearly).beyond_data


def test_drawn_actions_that_get_more_than_any_data_are_told(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    """-9 per step, where the data have -9.1 to -8.9; of less than they have nothing is said."""
    model = two_a_step("never")
    agent = agent_in(walk, model)
    found = check_in_model(agent, model, walk, episodes=2, clone=agent)
    found = replace(found, rewards=(-9.1, -8.9))
    assert found.doubt(in_fit=False) is None
    lengths = found.sampled_lengths
    drawn = replace(found, sampled_returns=-8.0 * lengths)
    assert drawn.doubt(in_fit=False) == (
        "-8 per step by drawn actions, where the data's rewards lie between -9.1 and -8.9"
    )
    assert replace(found, sampled_returns=-20.0 * lengths).doubt(in_fit=False) is None
    assert found.clone_lengths is not None
    cloned = replace(found, clone_returns=-8.5 * found.clone_lengths)
    assert str(cloned.doubt(in_fit=False)).startswith("-8.5 per step by the clone, where")


def test_the_clone_s_return_stands_beside_that_of_the_data(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    """Steps of -9 each in the model, without the offset, as many as were recorded: five or two."""
    model = two_a_step("never")
    agent, clone = agent_in(walk, model), agent_in(walk, model, log_std=-3.0)
    alone = check_in_model(agent, model, walk, episodes=4)
    assert alone.clone_returns is None
    assert not alone.misjudges_clone
    found = check_in_model(agent, model, walk, episodes=4, clone=clone)
    assert found.lengths.tolist() == [5] * 4
    assert sorted(set(np.round(found.clone_returns, 3))) == [-45.0, -18.0]
    assert found.clone_returns.mean() == pytest.approx(-31.5)
    np.testing.assert_array_equal(found.discounted, alone.discounted)  # of equal draws
    assert found.behaviour == (0.0, 0.0)
    assert found.misjudges_clone
    for behaviour in ((-22.0, 0.0), (-62.0, 1.0), (0.0, 64.0), (np.nan, 0.0)):
        assert not replace(found, behaviour=behaviour).misjudges_clone
    for behaviour in ((-20.0, 0.0), (-64.0, 1.0), (0.0, 62.0)):
        assert replace(found, behaviour=behaviour).misjudges_clone


def test_a_clone_is_compared_over_as_many_steps_as_were_recorded(
    two_a_step: Callable[[Any], WorldModel],
) -> None:
    """Recordings of 3 to 9 steps and a model that is right, 1 a step, is no reason for doubt."""
    lengths = np.arange(3, 10)
    states = np.concatenate([2.0 * np.arange(n) for n in lengths])[:, None]
    data = OfflineDataset.from_arrays(
        states, np.zeros_like(states), np.ones(len(states)), states + 2, np.zeros(len(states)),
        action_space=Box(-2.0, 2.0, (1,), np.float32),
    )  # fmt: skip
    model = two_a_step("never")
    agent = agent_in(data, model)
    found = check_in_model(agent, model, data, episodes=40, clone=agent)
    assert set(found.lengths) == {9}  # the policy's, as long as any
    assert found.clone_returns is not None
    assert set(np.round(found.clone_returns, 3)) == set(lengths)
    assert found.behaviour == (6.0, 2.0)
    assert not found.misjudges_clone


def test_one_recording_gives_starts_from_anywhere_and_no_endless_episodes(
    two_a_step: Callable[[Any], WorldModel],
) -> None:
    states = 2.0 * np.arange(1500.0)[:, None]
    data = OfflineDataset.from_arrays(
        states, np.zeros_like(states), np.ones(1500), states + 2, np.zeros(1500),
        action_space=Box(-2.0, 2.0, (1,), np.float32),
    )  # fmt: skip
    model = two_a_step("never")
    agent = agent_in(data, model)
    found = check_in_model(agent, model, data, episodes=40, gamma=0.9, clone=agent)
    assert found.max_steps == 1000
    assert found.clone_returns is not None
    lengths = np.round(found.clone_returns)  # 1 a step, to the end of the recording
    assert lengths.max() == 1000
    assert len(set(lengths)) > 10
    assert not found.misjudges_clone
    assert check_in_model(agent, model, data, episodes=1, gamma=0.999).max_steps == 1500


def test_a_model_that_runs_away_is_told_and_breaks_nothing(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step makes the state 10,000 times as large, until no network can take it."""
    model = two_a_step("never")
    agent = agent_in(walk, model)
    still = check_in_model(agent, model, walk, episodes=3)
    assert not still.ran_away.any()

    def step(obs: Any, action: Any, *, generator: Any) -> Any:
        next_obs = (obs + 1.0) * 1e4
        return next_obs, torch.ones(len(obs)), torch.zeros(len(obs), dtype=torch.bool)

    monkeypatch.setattr(model, "step", step)
    found = check_in_model(agent, model, walk, episodes=3)
    assert found.ran_away.all()
    assert found.lengths.tolist() == [2, 2, 2]  # to 1e4, and to 1e8
    assert replace(found, rewards=(-20.0, 20.0)).doubt(in_fit=False) == "3 episodes left all bounds"
    for numbers in (found.returns, found.discounted, found.values, found.sampled_returns):
        assert np.isfinite(numbers).all()


def test_the_values_are_the_critics_at_the_starts(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    model = two_a_step("never")
    agent = agent_in(walk, model)
    q = value_at(agent, 0.0)
    found = check_in_model(agent, model, walk, episodes=2)
    np.testing.assert_allclose(found.values, q, rtol=1e-5)


def test_discount_and_entropy_are_the_agent_s(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel], tmp_path: Path
) -> None:
    model = two_a_step("never")
    env = make_sb3_env(walk, 4, 2, world_model=model, device="cpu", seed=0)
    small: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    settings: list[tuple[dict[str, Any], float]] = [
        ({"ent_coef": "auto_0.3"}, 0.3),
        ({"ent_coef": 0.2}, 0.2),
        ({"ent_coef": 0.2, "entropy_in_target": False}, 0.0),
    ]
    for given, alpha in settings:
        agent = RAMBO(env=env, gamma=0.7, **given, **small)
        found = check_in_model(agent, model, walk, episodes=5)
        expected = check_in_model(agent, model, walk, episodes=5, gamma=0.7, alpha=alpha)
        np.testing.assert_allclose(found.discounted, expected.discounted, rtol=1e-6)
        agent.save(tmp_path / "agent")
        loaded = RAMBO.load(tmp_path / "agent", device="cpu")
        again = check_in_model(loaded, model, walk, episodes=5)
        np.testing.assert_allclose(again.discounted, expected.discounted, rtol=1e-6)


@pytest.mark.parametrize("given", [{}, {"gamma": 0.9}, {"alpha": 0.1}])
def test_weights_alone_know_neither_discount_nor_entropy(
    walk: OfflineDataset,
    two_a_step: Callable[[Any], WorldModel],
    tmp_path: Path,
    given: dict[str, float],
) -> None:
    model = two_a_step("never")
    agent_in(walk, model).save_weights(tmp_path)
    loaded = RAMBO.load_weights(tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"load_weights knows neither: give both"):
        check_in_model(loaded, model, walk, episodes=2, **given)
    check_in_model(loaded, model, walk, episodes=2, gamma=0.9, alpha=0.1)


def test_no_episode_is_no_check(
    walk: OfflineDataset, two_a_step: Callable[[Any], WorldModel]
) -> None:
    model = two_a_step("never")
    with pytest.raises(ValueError, match="episodes = 0 must be at least 1"):
        check_in_model(agent_in(walk, model), model, walk, episodes=0)


def test_another_task_s_model_is_refused(
    walk: OfflineDataset, pendulum_model: WorldModel, two_a_step: Callable[[Any], WorldModel]
) -> None:
    with pytest.raises(ValueError, match="differ in their shapes"):
        check_in_model(agent_in(walk, two_a_step("never")), pendulum_model, walk)


def test_the_command_line_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pendulum-random", *TINY, f"out={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    for which in ("fit", "adversarial"):
        words = ["evaluate", str(tmp_path / "run"), "--in-model", which, "--episodes", "3"]
        assert main(words) == 0
        output = capsys.readouterr().out
        assert "length       200.0 of at most 200" in output
        assert "the critics promise" in output
        assert "do not believe this model" not in output
        assert "promise far more: do not believe this policy" in output  # they have learnt nothing
    assert main([*words, "--render", str(tmp_path / "film.gif")]) == 2
    assert "leave out --env and --render" in capsys.readouterr().err


def test_the_command_line_doubts_rewards_that_no_data_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "pendulum-random", *TINY, f"out={run}"]) == 0
    capsys.readouterr()
    check = check_in_model
    for change, doubt in (
        ({"rewards": (1.0, 2.0)}, "the data's rewards lie between 1 and 2: do not believe"),
        ({"ran_away": np.array([True, False])}, "1 episodes left all bounds: do not believe"),
    ):
        monkeypatch.setattr(
            "agents.model_check.check_in_model",
            lambda *args, change=change, **given: replace(check(*args, **given), **change),
        )
        assert main(["evaluate", run, "--in-model", "fit", "--episodes", "2"]) == 0
        assert doubt in capsys.readouterr().out


def test_the_command_line_has_the_clone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "pendulum-random", *TINY, "cloning.epochs=1", f"out={run}"]) == 0
    capsys.readouterr()
    check, far = check_in_model, (1e6, 0.0)
    for which, doubted in (("fit", True), ("adversarial", False)):  # it is to be far from the data
        words = ["evaluate", run, "--in-model", which, "--episodes", "2"]
        monkeypatch.setattr("agents.model_check.check_in_model", check)
        assert main(words) == 0
        output = capsys.readouterr().out
        assert "with drawn actions; the data's episodes returned -1233.7" in output
        monkeypatch.setattr(
            "agents.model_check.check_in_model",
            lambda *args, **given: replace(check(*args, **given), behaviour=far),
        )
        assert main(words) == 0
        assert (
            "there, and the data 1000000.0: do not believe" in capsys.readouterr().out
        ) == doubted


def test_the_command_line_checks_the_run_s_own_game(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that is named, the data with their offset, and the run's discount."""
    run = tmp_path / "run"
    game = ("data.reward_offset=-1", "agent.gamma=0.9", "iterations=2", "adversary.weight=1")
    assert main(["train", "pendulum-random", *TINY, *game, f"out={run}"]) == 0
    seen: list[Any] = []
    check = check_in_model

    def watched(agent: Any, model: Any, data: Any, **settings: Any) -> Any:
        seen.append((model, data, settings))
        return check(agent, model, data, **settings)

    monkeypatch.setattr("agents.model_check.check_in_model", watched)
    places = {"fit": "world_model", "adversarial": "adversarial_model"}
    for which in places:
        words = ["evaluate", str(run), "--in-model", which, "--episodes", "2", "--seed", "4"]
        assert main(words) == 0
    assert not torch.equal(*(model.ensemble.weights[0] for model, *_ in seen))
    with (run / "progress.csv").open(newline="") as file:
        alpha = float([row["train/ent_coef"] for row in csv.DictReader(file)][1])
    for place, (model, data, settings) in zip(places.values(), seen, strict=True):
        saved = WorldModel.load(run / place, device="cpu")
        assert torch.equal(model.ensemble.weights[0], saved.ensemble.weights[0])
        assert data.reward_offset == -1.0
        expected = {"episodes": 2, "gamma": 0.9, "seed": 4, "alpha": alpha}
        expected |= {"clone": None, "look_ahead": None}
        assert settings == expected


def test_a_run_s_own_termination_function_is_imported_only_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ends_of_a_user.py").write_text(
        "def upright(obs, action, next_obs):\n    return next_obs[:, 0] > 0.99\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = str(tmp_path / "run")
    rule = "model.termination=ends_of_a_user:upright"
    assert main(["train", "pendulum-random", *TINY, rule, f"out={run}"]) == 0
    words = ["evaluate", run, "--in-model", "fit", "--episodes", "3"]
    assert main(words) == 2
    assert "give --trust" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0


@pytest.mark.parametrize(
    ("setting", "alpha"), [("ent_coef=0.3", 0.3), ("entropy_in_target=false", 0.0)]
)
def test_alpha_in_the_values(tmp_path: Path, setting: str, alpha: float) -> None:
    """A fixed one is what it was set to; a plain value holds none, whatever alpha was."""
    config = load_config("pendulum-random", [f"agent.{setting}"])
    assert RunFolder(tmp_path).alpha_in_values(config.agent) == alpha
