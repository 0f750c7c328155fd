"""The careful driver: its road, its log, and what the adversary makes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.studies.sweep import SweepPlan
from agents.training.atomic_files import write_json
from agents.training.config import dump_config
from agents.training.run_folder import RunFolder
from tests.agents.made_up_runs import make_run
from tests.example_scripts import EXAMPLES, load_example

SCRIPT = EXAMPLES / "careful_driver.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example("careful_driver")


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", "o", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "o" / "table.md").read_text()


def means(table: str) -> dict[str, float]:
    lines = [line for line in table.splitlines() if line.startswith("| lambda")]
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {row[0]: float(row[1]) for row in rows}


def test_too_fast_for_the_bend_is_off_the_road_for_good(script: ModuleType) -> None:
    env = script.CarefulDriver()
    env.reset(seed=0)
    env.speed, env.curvature = 0.9, 1.0
    obs, reward, *_ = env.step(np.array([1.0], np.float32))
    assert reward == pytest.approx(0.9)
    assert obs[0] == pytest.approx(1.0, abs=0.05)
    env.speed, env.curvature = 1.1, 1.0
    for _ in range(3):
        obs, *_ = env.step(np.array([1.0], np.float32))
        assert obs.tolist() == [0.0, 2.0]


def test_the_log_never_leaves_the_road(script: ModuleType) -> None:
    log = script.drive(0.7, 2000)
    speed, curvature = log["observations"].T
    assert 0.75 < (speed**2 * curvature).max() < 1.0
    assert curvature.max() <= 1.5
    assert log["truncations"].sum() == 20
    inside = ~log["truncations"][:-1]
    np.testing.assert_array_equal(
        log["next_observations"][:-1][inside], log["observations"][1:][inside]
    )


def test_a_variant_is_trained_tabled_and_drawn(tmp_path: Path) -> None:
    tiny = ("iterations=1", "agent.updates=2", "adversary.updates=2", "model.max_steps=5")
    fast = (*tiny, "cloning.epochs=0", "rollout.starts=20", "evaluation.episodes=1")
    settings = (*fast, "evaluation.every=1", "model.cache=false")
    table = run("--seeds", "0", "--only", "fit continued", *settings, folder=tmp_path)
    assert list(means(table)) == ["lambda 0, fit continued"]
    assert "80%" in table
    assert (tmp_path / "o" / "careful-driver.png").stat().st_size > 10_000
    folder = tmp_path / "o" / "lambda-0--fit-continued" / "adversary.continue_fit=true" / "seed-0"
    config = (folder / "config.yaml").read_text()
    assert "continue_fit: true" in config
    assert "weight: 0.0" in config


def test_the_table_begins_with_the_clones(script: ModuleType, tmp_path: Path) -> None:
    def runs(name: str, clone: float | None) -> list[RunFolder]:
        return [
            make_run(tmp_path / name / str(seed), return_mean=7.0 + seed, cloning_return=clone)
            for seed in (0, 1)
        ]

    _, _, clone, *variants = script.table({"no clone": runs("a", None), "b": runs("b", 69.0)})
    assert clone == "| the clone, before training | 69.0 | 0.0 | 69.0, 69.0 | 0 |"
    assert variants == [f"| {name} | 7.5 | 0.7 | 7.0, 8.0 | 0 |" for name in ("no clone", "b")]


HEADER = "iteration,return_mean,return_std,length_mean,score\n"


def made_up(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, **means: float
) -> None:
    """Let runs be made up, by the setting in their folder's name: `a0_3=70`; nan: it diverged."""

    def run_sweep(plan: SweepPlan) -> dict[str, str]:
        plan.lock.close()
        errors = {}
        for name, config in plan.configs.items():
            mean = means[name.partition("/")[0].replace(".", "_").rpartition("=")[2]]
            path = plan.folder / name
            path.mkdir(parents=True)
            done, text = bool(np.isfinite(mean)), f"1,{mean},0.0,100.0,\n"
            RunFolder(path).config.write_text(dump_config(config))
            RunFolder(path).evaluations.write_text(HEADER + text * done)
            write_json(
                RunFolder(path).result,
                {
                    "status": "finished" if done else "diverged",
                    "error": None if done else "it ran away",
                    "return_mean": mean,
                    "written": "2026-01-02T03:04:05+00:00",
                    "versions": {"torch": "2.6.0"},
                },
            )
            errors |= {} if done else {name: "it ran away"}
        return errors

    monkeypatch.setattr(script, "run_sweep", run_sweep)
    monkeypatch.setattr(script, "N_ROWS", 200)
    monkeypatch.chdir(folder)


def main(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["careful_driver.py", "--out", "o", "--seeds", "0", *words])
    code = script.main()
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize(
    ("only", "mean", "code"),
    [("frozen", 19.0, 0), ("frozen", 21.0, 1), ("continued", 21.0, 1), ("0.3", 66.0, 0),
     ("0.3", 64.0, 1), ("3e-2", 5.0, 0)],
)  # fmt: skip
def test_another_story_than_the_one_told_is_a_failure(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    only: str,
    mean: float,
    code: int,
) -> None:
    made_up(script, monkeypatch, tmp_path, **dict.fromkeys(["false", "true", "0_3", "0_03"], mean))
    assert main(script, monkeypatch, "--only", only) == code
    assert ("NOT AS EXPECTED" in Path("o/table.md").read_text()) == bool(code)
    # of other settings nothing is promised
    shutil.rmtree("o")
    assert main(script, monkeypatch, "--only", only, "iterations=2") == 0


def test_the_table_has_the_dates_and_versions_of_its_runs(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up(script, monkeypatch, tmp_path, **{"0_3": 70.0})
    assert main(script, monkeypatch, "--only", "0.3") == 0
    text = Path("o/table.md").read_text()
    assert "seeds 0, trained 2026-01-02" in text
    assert text.splitlines()[-1] == "With torch 2.6.0."


def test_a_run_that_diverged_is_a_failure_and_not_drawn(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has no evaluation; the other variant of the picture has one."""
    made_up(script, monkeypatch, tmp_path, false=5.0, true=np.nan)
    assert main(script, monkeypatch, "--only", "lambda 0, ", "iterations=2") == 1
    assert "| lambda 0, fit continued | - | - |  | 1 |" in Path("o/table.md").read_text()
    assert Path("o/careful-driver.png").is_file()


def test_make_figures_begins_its_sweeps_anew() -> None:
    words = ["make", "-n", "figures", "PYTHON=python3"]
    done = subprocess.run(words, cwd=EXAMPLES.parent, capture_output=True, text=True, check=True)
    *_, removed = (line for line in done.stdout.splitlines() if line.startswith("rm -rf"))
    assert removed == "rm -rf build/figures/careful-driver build/figures/pendulum"
    assert done.stdout.index(removed) < done.stdout.index("examples/careful_driver.py")


@pytest.mark.slow
def test_only_the_adversary_keeps_the_car_on_the_road(tmp_path: Path) -> None:
    variants = ("lambda 0, ", "lambda 0.3")
    tables = [run("--seeds", "1", "--only", only, folder=tmp_path) for only in variants]
    found = means("\n".join(tables))
    assert found["lambda 0, model frozen at its fit"] < 20
    assert found["lambda 0, fit continued"] < 20
    assert found["lambda 0.3"] > 65
