"""Evaluation in real environments, and the callback that does it between iterations."""

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.logger import configure

from agents.training.evaluation import (
    COPIES,
    Evaluation,
    EvaluationCallback,
    Evaluator,
    evaluate,
    first_start,
    read_evaluations,
)
from agents.training.real_env import resolve_env
from tests.agents.countdown import ConstantPolicy, Countdown


def test_returns_and_lengths_are_those_of_the_episodes(countdown: str) -> None:
    # Seeds 0, 1, 2: episodes of 1, 2 and 3 steps, 1.5 reward in each.
    evaluation = evaluate(ConstantPolicy(1.5), countdown, episodes=3, seed=0)
    assert sorted(evaluation.lengths.tolist()) == [1, 2, 3]
    assert sorted(evaluation.returns.tolist()) == [1.5, 3.0, 4.5]
    assert evaluation.return_mean == 3.0
    assert evaluation.return_std == pytest.approx(1.5 * np.sqrt(2 / 3))
    assert evaluation.length_mean == 2.0
    assert evaluation.score is None


def test_equal_policies_get_equal_returns_in_one_evaluator() -> None:
    with Evaluator("Pendulum-v1", episodes=12, seed=3) as evaluator:
        first = evaluator.evaluate(ConstantPolicy(0.0))
        other = evaluator.evaluate(ConstantPolicy(1.0))
        again = evaluator.evaluate(ConstantPolicy(0.0))
    assert first.returns.shape == (12,)
    assert len(set(first.returns)) == 12  # every episode has its own start
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)
    np.testing.assert_array_equal(first.lengths, 200)


def test_iterations_and_seeds_have_their_own_starts() -> None:
    def returns(seed: int) -> list[float]:
        with Evaluator("Pendulum-v1", episodes=10, seed=seed) as evaluator:
            each = [evaluator.evaluate(ConstantPolicy(0.0), iteration=i) for i in range(5)]
        return [float(value) for evaluation in each for value in evaluation.returns]

    first, other = returns(0), returns(1)
    assert len({*first, *other}) == 100
    assert first == returns(0)


def test_a_sampled_policy_is_seeded_and_leaves_the_generator_alone() -> None:
    import torch

    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, seed=0)
    before = torch.get_rng_state()
    first = evaluate(model, "Pendulum-v1", episodes=2, deterministic=False)
    assert torch.equal(before, torch.get_rng_state())
    again = evaluate(model, "Pendulum-v1", episodes=2, deterministic=False)
    mean = evaluate(model, "Pendulum-v1", episodes=2)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, mean.returns)


def test_other_spaces_are_refused(countdown: str) -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match=r"observation space.*Countdown-v0"):
        evaluate(model, countdown)
    model.observation_space = Countdown.observation_space
    model.action_space = Box(-1, 1, (1,), np.float32)  # the shape agrees, the bounds do not
    with pytest.raises(ValueError, match=r"action space Box\(-1.0, 1.0.*Box\(-2.0, 2.0"):
        evaluate(model, countdown)


def test_an_environment_in_place_of_its_id_is_told() -> None:
    env = gym.make("Pendulum-v1")
    with pytest.raises(ValueError, match=r"^Expected a Gymnasium id .*, got TimeLimit; "):
        evaluate(ConstantPolicy(0.0), env)  # type: ignore[arg-type]


def test_environments_by_id_and_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_env("Hopper").id == "Hopper-v5"
    with pytest.raises(ValueError, match=r"'Penduluum-v1' is not registered.*Pendulum-v1"):
        resolve_env("Penduluum-v1")
    with pytest.raises(ValueError, match=r"module 'no_such_module' cannot be imported"):
        evaluate(ConstantPolicy(0), "no_such_module:Some-v0")
    with pytest.raises(ValueError, match=r"'Hopper-v2' cannot be built here"):
        evaluate(ConstantPolicy(0), "Hopper-v2")
    (tmp_path / "own_countdown.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Own-v0', PendulumEnv, max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    evaluation = evaluate(ConstantPolicy(0), "own_countdown:Own-v0", episodes=1)
    assert evaluation.lengths.tolist() == [5]
    del gym.registry["Own-v0"]


class FakeEvaluator:
    """Return i at the i-th evaluation."""

    env_id = "Hopper-v5"

    def __init__(self) -> None:
        self.count = 0
        self.iterations = list[int]()

    def evaluate(self, policy: Any, *, iteration: int) -> Evaluation:
        self.count += 1
        self.iterations.append(iteration)
        return Evaluation(np.array([self.count / 3]), np.array([7]), self.env_id)


def train(
    path: Path | None, iterations: int, every: int, each_from: int | None = None
) -> EvaluationCallback:
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, n_epochs=1, seed=0)
    callback = EvaluationCallback(
        FakeEvaluator(),  # type: ignore[arg-type]
        every=every,
        each_from=each_from,
        path=path,
    )
    model.set_logger(configure(None, []))
    model.learn(8 * iterations, callback=callback)
    return callback


@pytest.mark.parametrize(
    ("iterations", "every", "each_from", "evaluated"),
    [
        (5, 2, None, [2, 4, 5]),
        (4, 2, None, [2, 4]),
        (3, 1, None, [1, 2, 3]),
        (2, 10, None, [2]),
        (7, 3, 6, [3, 6, 7]),
        (7, 3, 5, [3, 5, 6, 7]),
        (3, 2, -4, [1, 2, 3]),
    ],
)
def test_evaluates_every_so_often_from_one_on_each_and_at_the_end(
    iterations: int, every: int, each_from: int | None, evaluated: list[int]
) -> None:
    callback = train(None, iterations, every, each_from)
    assert [row["iteration"] for row in callback.history] == evaluated
    assert callback.logger.name_to_value["eval/iteration"] == evaluated[-1]


def test_the_file_holds_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    callback = train(path, 3, 1)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["iteration", "return_mean", "return_std", "length_mean", "score"]
    assert rows[1][:4] == ["1", "0.3333333333333333", "0.0", "7.0"]
    # D4RL's reference: 100 (R + 20.272305) / (3234.3 + 20.272305)
    assert float(rows[1][4]) == pytest.approx(100 * (1 / 3 + 20.272305) / 3254.572305)
    assert read_evaluations(tmp_path) == callback.history
    first = path.read_bytes()
    train(path, 3, 1)
    assert path.read_bytes() == first  # begun anew, and equal


def test_unreadable_evaluations_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluations\.csv"):
        read_evaluations(tmp_path)
    path = tmp_path / "evaluations.csv"
    path.write_text("iteration,return_mean,return_std,length_mean,score\n1,2.0,0.0,5.0,\n2,x,,,\n")
    with pytest.raises(ValueError, match="line 3"):
        read_evaluations(tmp_path)


def test_seeds_share_no_starts() -> None:
    """Of 25 episodes in ten copies of the environment, and the first begins where it is said to."""
    idle = ConstantPolicy(0.0)
    zero, one = (evaluate(idle, "Pendulum-v1", episodes=25, seed=s).returns for s in (0, 1))
    assert len(np.unique([zero, one])) == 50
    env = gym.make("Pendulum-v1")
    env.reset(seed=10)
    alone = sum(float(env.step(np.zeros(1, np.float32))[1]) for _ in range(200))
    assert one[0] == pytest.approx(alone)
    assert [first_start(seed) for seed in (0, 1, 400_000_000)] == [0, 10, 4_000_000_000]
    assert first_start(2**32 // COPIES) == first_start(0)  # NumPy takes no larger ones
