"""A whole experiment in seconds: what it leaves behind, and that it can be repeated."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adv_worldmodel import WorldModel, load_dataset
from agents.callbacks import RamboCallback
from agents.rambo import RAMBO
from agents.training import experiment
from agents.training.config import TrainConfig, load_config
from agents.training.divergence import DivergenceError
from agents.training.experiment import train
from agents.training.run_folder import RunFolder

TINY = (
    "iterations=2",
    "n_threads=1",
    "model.hidden_sizes=[16, 16]",
    "model.n_networks=2",
    "model.n_elites=2",
    "model.max_steps=30",
    "model.cache=false",
    "rollout.starts=32",
    "agent.updates=10",
    "agent.hidden_sizes=[16, 16]",
    "agent.batch_size=32",
    "cloning.epochs=0",
    "adversary.updates=3",
    "adversary.batch_size=32",
    "evaluation.episodes=1",
)


def tiny(out: Path, *overrides: str) -> TrainConfig:
    return load_config("pendulum-random", [*TINY, f"out={out}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("experiment") / "run"
    return RunFolder(train(tiny(out), progress=False))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_whose_files_cannot_be_written_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RAMBO, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(tiny(tmp_path / "run"))
    result = RunFolder(tmp_path / "run").read_result()
    assert result["status"] == "failed"
    assert result["error"] == "OSError: [Errno 28] No space left on device"
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RAMBO, "learn", stopped)
    with pytest.raises(OSError, match="No space left"):
        train(tiny(tmp_path / "stopped"), progress=False)
    error = RunFolder(tmp_path / "stopped").read_result()["error"]
    assert error == "stopped by the user; OSError: [Errno 28] No space left on device"


def test_the_folder_holds_every_file_and_nothing_written_aside(finished: RunFolder) -> None:
    assert sorted(path.name for path in finished.path.iterdir()) == [
        "adversarial_model",
        "checkpoints",
        "config.yaml",
        "evaluations.csv",
        "learning_curve.png",
        "policy",
        "policy.zip",
        "progress.csv",
        "result.json",
        "tensorboard",
        "world_model",
    ]
    assert list(finished.tensorboard.glob("events.out.tfevents.*"))
    assert finished.learning_curve.read_bytes().startswith(b"\x89PNG")


def test_the_clone_is_kept_as_it_was_before_training(tmp_path: Path) -> None:
    """As long as only the critics learn the policy is still the clone, which takes no step."""
    game = ("cloning.epochs=2", "agent.ent_coef=auto_0.1", "agent.critic_warmup=2")
    returns = []
    for step in (0.0, 0.5):
        out = tmp_path / str(step)
        run = RunFolder(train(tiny(out, *game, f"agent.greedy_step={step}"), progress=False))
        clone, policy = run.load_clone("cpu"), run.load_policy("cpu")
        assert clone is not None
        assert (clone.policy.greedy_step, policy.policy.greedy_step) == (0.0, step)
        for one, other in zip(clone.actor.parameters(), policy.actor.parameters(), strict=True):
            assert torch.equal(one, other)
        returns.append(run.read_result()["cloning_return"])
    assert returns[0] == returns[1]  # its critics have learnt nothing that a step could go by
    assert RunFolder(tmp_path).load_clone() is None


def test_the_result_says_what_was_run_and_what_came_out(finished: RunFolder) -> None:
    result = finished.read_result()
    dataset = load_dataset("pendulum-random")
    assert result["status"] == "finished"
    assert result["error"] is None
    assert result["env_id"] == "Pendulum-v1"
    assert result["dataset"] == "pendulum-random"
    assert result["content_hash"] == dataset.content_hash
    assert (result["seed"], result["iterations"]) == (0, 2)
    assert result["behaviour_return"] == dataset.behaviour_return
    assert result["cloning_return"] is None
    assert result["score"] is None  # nobody has published reference returns for the pendulum
    assert result["q_ceiling"] == pytest.approx(dataset.rewards.max() / 0.01)
    assert {"data", "fit", "rollout", "agent", "adversary", "evaluation", "total"} <= set(
        result["wall_s"]
    )
    assert result["versions"]["torch"] == torch.__version__


def test_the_result_averages_the_evaluations_and_the_q_values(finished: RunFolder) -> None:
    result = finished.read_result()
    evaluations = rows(finished.evaluations)
    assert [row["iteration"] for row in evaluations] == ["1", "2"]
    first, second = (float(row["return_mean"]) for row in evaluations)
    assert result["evaluations_used"] == 2
    assert result["return_mean"] == pytest.approx((first + second) / 2)
    q_first, q_second = (float(r["train/q_mean"]) for r in rows(finished.progress)[:2])
    assert result["q_avg"] == pytest.approx(q_second)
    assert result["q_var"] == pytest.approx(((q_first - q_second) / 2) ** 2)


def test_the_adversary_changed_the_model_that_was_fitted(finished: RunFolder) -> None:
    fitted = WorldModel.load(finished.world_model, device="cpu").state_dict()
    changed = WorldModel.load(finished.adversarial_model, device="cpu").state_dict()
    assert not all(torch.equal(fitted[name], changed[name]) for name in fitted)


def test_the_saved_policy_acts_on_raw_observations(finished: RunFolder) -> None:
    dataset = load_dataset("pendulum-random")
    actions, _ = finished.load_policy("cpu").predict(dataset.observations[:5], deterministic=True)
    assert actions.shape == (5, 1)
    assert (abs(actions) <= 2).all()


def test_config_yaml_reruns_the_run(finished: RunFolder, tmp_path: Path) -> None:
    again = load_config(finished.config, [f"out={tmp_path / 'again'}"])
    folder = RunFolder(train(again, progress=False))
    assert folder.evaluations.read_bytes() == finished.evaluations.read_bytes()


def test_another_seed_gives_other_evaluations(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(train(tiny(tmp_path / "run", "seed=1"), progress=False))
    assert folder.evaluations.read_bytes() != finished.evaluations.read_bytes()


def test_a_fit_from_the_cache_gives_the_same_run(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADV_WORLDMODEL_CACHE", str(tmp_path / "cache"))
    for name in ("fresh", "cached"):
        folder = RunFolder(train(tiny(tmp_path / name, "model.cache=true"), progress=False))
        assert folder.evaluations.read_bytes() == finished.evaluations.read_bytes()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_clone_is_evaluated_and_printed_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(train(tiny(tmp_path / "run", "iterations=1", "cloning.epochs=1")))
    assert -2000 < folder.read_result()["cloning_return"] < 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:-1]] == ["return", "behaviour", "clone", "RAMBO"]
    assert lines[-1] == str(folder.path)


def test_without_out_the_folder_is_named_after_config_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(tiny(tmp_path / "x"), out=None, seed=7, iterations=1)
    folder = train(config, progress=False)
    assert folder.parent == Path("runs")
    assert folder.name.startswith("pendulum-random-7-2")


def test_a_file_named_relatively_is_found_again_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("pendulum-random")
    np.savez(
        tmp_path / "own.npz",
        observations=dataset.observations,
        actions=dataset.actions,
        rewards=dataset.rewards,
        next_observations=dataset.next_observations,
        terminations=dataset.terminations,
        truncations=dataset.truncations,
    )
    monkeypatch.chdir(tmp_path)
    overrides = ("dataset=own.npz", "data.env_id=Pendulum-v1")
    prepared = experiment.prepare(tiny(tmp_path / "run", *overrides))
    assert prepared.resolved_config.dataset == str(tmp_path / "own.npz")


class Stop:
    """Stands in for the adversary's step: raises `error` at the given call."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.calls = error, at

    def __call__(self, callback: RamboCallback) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise self.error


def test_an_interrupted_run_leaves_readable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(KeyboardInterrupt(), at=2)
    monkeypatch.setattr(RamboCallback, "_on_rollout_start", lambda self: stop(self))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "run"), progress=False)
    folder = RunFolder(tmp_path / "run")
    result = folder.read_result()
    assert (result["status"], result["iterations"]) == ("interrupted", 1)
    assert [row["iteration"] for row in rows(folder.evaluations)] == ["1"]
    assert len(rows(folder.progress)) == 1
    assert load_config(folder.config).iterations == 2
    folder.load_policy("cpu")
    WorldModel.load(folder.adversarial_model, device="cpu")


def test_interrupted_in_the_fit_there_is_no_policy_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit_world_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path / "run"), progress=False)
    folder = RunFolder(tmp_path / "run")
    assert folder.read_result()["status"] == "interrupted"
    with pytest.raises(FileNotFoundError, match="holds no policy/:"):
        folder.load_policy()


def test_a_bug_inside_training_is_recorded_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(ValueError("shapes differ"), at=1)
    monkeypatch.setattr(RamboCallback, "_on_rollout_start", lambda self: stop(self))
    with pytest.raises(ValueError, match="shapes differ"):
        train(tiny(tmp_path / "run"), progress=False)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("failed", "ValueError: shapes differ")


def test_runaway_critics_end_the_run_as_diverged(tmp_path: Path) -> None:
    # With steps of this size the critics overshoot any value that the data allow.
    config = tiny(tmp_path / "run", "agent.critic_learning_rate=1e4")
    with pytest.raises(DivergenceError, match="mean Q is"):
        train(config, progress=False)
    result = RunFolder(tmp_path / "run").read_result()
    assert result["status"] == "diverged"
    assert "the critics diverged" in result["error"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset=nowhere.npz", "nowhere.npz"),
        ("evaluation.env_id=Pendulum-v99", "not registered"),
        ("evaluation.env_id=MountainCarContinuous-v0", "cannot be evaluated in"),
        ("model.termination=no_such_module:f", "cannot be imported"),
        ("device=cuda:99", "device=cpu"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tiny(tmp_path / "run", override), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_torch_keeps_its_threads_after_a_run(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(tiny(tmp_path / "run", "iterations=1", f"n_threads={before + 1}"), progress=False)
    assert torch.get_num_threads() == before


def test_cloning_and_evaluation_have_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned = []
    monkeypatch.setattr(RAMBO, "clone", lambda self, *given, **_: cloned.append(given) or 0.0)
    config = tiny(
        tmp_path / "run", "iterations=3", "evaluation.every=2", "evaluation.last=1",
        "cloning.epochs=2", "cloning.learning_rate=7e-3", "agent.batch_size=24",
    )  # fmt: skip
    folder = RunFolder(train(config, progress=False))
    assert cloned == [(2, 7e-3, 24)]
    evaluated = rows(folder.evaluations)
    assert [row["iteration"] for row in evaluated] == ["2", "3"]
    result = folder.read_result()
    assert result["evaluations_used"] == 1
    assert result["return_mean"] == float(evaluated[-1]["return_mean"])


def test_a_plot_that_fails_costs_a_warning_and_not_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such formula")

    monkeypatch.setattr(experiment, "plot_learning_curve", fail)
    with pytest.warns(UserWarning, match=r"learning_curve.png .* no such formula"):
        folder = RunFolder(train(tiny(tmp_path / "run"), progress=False))
    assert folder.read_result()["status"] == "finished"
    assert not folder.learning_curve.exists()


def test_the_result_is_there_before_the_plot_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    folder = RunFolder(tmp_path / "run")

    def look(*_: Any, **__: Any) -> None:
        found.append(folder.read_result()["status"])
        raise KeyboardInterrupt  # nothing comes after it

    monkeypatch.setattr(experiment, "plot_learning_curve", look)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(folder.path), progress=False)
    assert found == ["finished"]
    assert folder.read_result()["status"] == "finished"


def test_without_stderr_a_run_is_trained_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    folder = RunFolder(train(tiny(tmp_path / "run")))
    assert folder.read_result()["status"] == "finished"
