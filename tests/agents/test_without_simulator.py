"""A log and no environment that made it: training, what is said of the policy, the choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.training.run_folder import RunFolder
from tests.agents.tiny import TINY

OFFLINE = (*TINY, "evaluation.episodes=0", "model.termination=never", "cloning.epochs=1")


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Two episodes of forty steps; nothing in the file says where they come from."""
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(80, 3)), rng.uniform(-1.0, 1.0, (80, 2))
    file = tmp_path / "log.npz"
    np.savez(
        file,
        observations=states.astype(np.float32),
        actions=actions.astype(np.float32),
        rewards=states[:, 0],
        next_observations=(states + 0.1).astype(np.float32),
        terminals=np.zeros(80, bool),
        timeouts=np.arange(1, 81) % 40 == 0,
    )
    return f"dataset={file}"


def test_a_run_needs_no_environment(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    assert main(["train", "base", log, *OFFLINE, f"out={folder.path}"]) == 0
    assert "evaluate RUN --in-model fit" in capsys.readouterr().out
    result = folder.read_result()
    assert (result["status"], result["env_id"]) == ("finished", None)
    assert (result["return_mean"], result["score"], result["cloning_return"]) == (None, None, None)
    assert result["q_avg"] is not None
    assert not folder.evaluations.exists()
    assert not folder.learning_curve.exists()
    assert folder.iterations_logged() == 1  # no row for an evaluation that there is not
    assert main(["train", "--resume", str(folder.path), "iterations=2"]) == 0
    assert folder.read_result()["iterations"] == 2
    capsys.readouterr()
    assert main(["evaluate", str(folder.path), "--in-model", "fit", "--episodes", "3"]) == 0
    assert "the critics promise" in capsys.readouterr().out
    assert main(["evaluate", str(folder.path)]) == 2
    assert "give --env ID, or --in-model" in capsys.readouterr().err


def test_the_offline_choice_needs_none_either(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    words = ["sweep", "base", log, *OFFLINE, f"out={out}", "--grid", "rollout.horizon=1,2"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "rollout.horizon=1 | 0     | -" in table
    assert main(["select", str(out)]) == 0
    assert "choice    rollout.horizon=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluation.episodes=1"], "to train without a simulator, evaluation.episodes=0"),
        (["model.termination=auto"], "model.termination=never, or module:function"),
    ],
)
def test_what_is_missing_is_said_with_the_setting_that_helps(
    log: str, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    assert main(["train", "base", log, *OFFLINE, *settings]) == 2
    assert message in capsys.readouterr().err


def test_the_model_check_reads_the_data_as_training_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without successors and time-outs: only its environment tells where episodes end."""
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.normal(size=(600, 3)).astype(np.float32),
        "actions": rng.uniform(-2.0, 2.0, (600, 1)).astype(np.float32),
        "rewards": rng.normal(size=600),
        "terminals": np.zeros(600, bool),
    }
    np.savez(tmp_path / "log.npz", **columns)
    run = str(tmp_path / "run")
    settings = (*TINY, "data.env_id=Pendulum-v1", f"dataset={tmp_path / 'log.npz'}", f"out={run}")
    assert main(["train", "base", *settings]) == 0
    words = ["evaluate", run, "--in-model", "fit", "--episodes", "2"]
    assert main(words) == 0
    assert "of at most 199" in capsys.readouterr().out  # the row at each cut has no successor
    np.savez(tmp_path / "log.npz", **{**columns, "rewards": np.zeros(600)})
    assert main(words) == 2
    assert "is not read as when" in capsys.readouterr().err
