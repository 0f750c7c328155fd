"""The single-transition example: its data and its truth are the paper's, and a run reports."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.example_scripts import load_example


@pytest.fixture
def example() -> ModuleType:
    """The script as a module, each test's own, with iterations of next to no work."""
    module = load_example("single_transition")
    module.FIT.update(hidden_sizes=(8,), max_steps=5)
    module.AGENT.update(gradient_steps=2, batch_size=16)
    module.ADVERSARY.update(adversary_updates=2, batch_size=16)
    module.MILESTONES = (1, 2)
    return module


def test_the_true_reward_is_the_paper_s(example: ModuleType) -> None:
    actions = np.array([-1.0, -0.72, -0.5, -0.12, 0.0, 0.12, 0.5, 0.66, 0.72, 0.79, 0.85])
    expected = [0.5, 1.0, 0.5, 0.5, 0.5, 1.25, 0.5, 1.5, 1.5, 1.5, 0.5]
    assert example.true_reward(actions).tolist() == expected


def test_the_data_are_four_modes_of_terminal_rows(example: ModuleType) -> None:
    data = example.make_data(0)
    assert data.terminations.all()
    assert (data.observations == 0).all()
    np.testing.assert_array_equal(data.rewards, data.next_observations[:, 0])
    actions = data.actions[:, 0]
    for low, high, mean in ((-0.75, -0.7, 1.0), (-0.15, -0.1, 0.5), (0.1, 0.15, 1.25),
                            (0.7, 0.75, 1.5)):  # fmt: skip
        rewards = data.rewards[(actions >= low) & (actions <= high)]
        assert len(rewards) == len(data) / 4
        assert rewards.mean() == pytest.approx(mean, abs=4 * 0.2 / len(rewards) ** 0.5)
        assert rewards.std() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("algorithm", ["RAMBO", "COMBO"])
def test_only_rambo_changes_its_model(example: ModuleType, algorithm: str) -> None:
    (_, _, before), (action, q, after) = example.run(algorithm, 0.2, 0)
    assert -1.0 <= action <= 1.0
    assert q.shape == example.GRID.shape
    assert np.array_equal(before, after) == (algorithm == "COMBO")


@pytest.mark.parametrize(("mean", "code"), [(1.5, 0), (1.4, 1)])
def test_a_mean_below_the_paper_s_is_a_failure(
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mean: float,
    code: int,
) -> None:
    curve = np.zeros_like(example.GRID)
    results = [[(0.7, curve, curve)] * 2] * 2
    scores = np.array([mean - 0.1, mean + 0.1])
    monkeypatch.setattr(example, "run_all", lambda *_: (results, scores))
    monkeypatch.setattr("sys.argv", ["x.py", "--seeds", "0:2", "--out", str(tmp_path)])
    assert example.main() == code
    text = (tmp_path / "table.md").read_text()
    assert f"| RAMBO | {mean:.3f} |" in text
    assert ("FAILS" in text) == bool(code)


@pytest.mark.parametrize(
    "words",
    [
        "--choose-beta -3",
        "--choose-beta 1",
        "--beta -1",
        "--beta nan",
        "--seeds 1",
        "--seeds 3:3",
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.setattr(example, "run_all", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr("sys.argv", ["x.py", "--out", str(tmp_path / "o"), *words.split()])
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []
