"""The GPU benchmark on a CPU: its comparisons, builders and table; a GPU runs the same code."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics.explicit_gradients import ExplicitModelGradient
from adv_worldmodel.graphs import WAIT, GraphedStep
from agents.explicit_updates import ExplicitSACUpdate
from tests.benchmarks import gpu_checks, gpu_speed, workload
from tests.benchmarks.configuration import SCORES, SMALL
from tests.benchmarks.gpu import main
from tests.benchmarks.gpu_checks import Trial, compared, difference, parameters, run_checks, waits
from tests.benchmarks.gpu_report import goal_cells, speed_rows, speed_text

ENOUGH = (
    "--rows 300 --starts 30 --updates 4 --agent-hidden 16 --model-hidden 12 12 --seconds 0.01 "
    "--iterations 2 --plain-iterations 1 --process-iterations 1 --processes 2"
)


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return workload.gaussian_data(SMALL)


def test_the_difference_is_relative_to_the_largest_number() -> None:
    a, b = torch.tensor([1.0, 1000.0]), torch.tensor([1.0, 1001.0])
    assert difference([a], [b]) == pytest.approx(1 / 1001)
    assert difference([torch.tensor([0.1])], [torch.tensor([0.3])]) == pytest.approx(0.2)
    assert difference([torch.tensor([True, False])], [torch.tensor([True, True])]) == 1.0
    assert difference([torch.zeros(0)], [torch.zeros(0)]) == 0.0
    assert difference([torch.tensor([torch.nan])], [torch.tensor([1.0])]) == float("inf")


def test_a_comparison_asks_for_equality_and_on_a_gpu_for_a_graph() -> None:
    one, near, far = (torch.tensor([x]) for x in (1.0, 1.00001, 1.001))
    pair = [one], [one]
    assert compared("x", [[near], *pair], captured=True, device="cuda").passed
    assert not compared("x", [[near], *pair], captured=False, device="cuda:0").passed
    assert compared("x", [[near], *pair], captured=False, device="cpu").passed
    assert not compared("x", [[far], *pair], captured=True, device="cuda").passed
    noisy = compared("x", [[far], [one], [far]], captured=True, device="cuda")
    assert not noisy.passed
    assert "without graph: 1.0e-03" in noisy.detail


def test_all_checks_pass_where_both_paths_are_the_same_code(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_checks, "UPDATES", 5)
    checks = list(run_checks(SMALL, dataset, "cpu"))
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 24
    paths = [c for c in checks if not c.name.startswith(("gradients", "waits"))]
    assert len(paths) == 13
    assert all("difference 0.0e+00" in check.detail for check in paths)


def test_gradients_that_are_wrong_in_one_term_do_not_pass(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, adversary = ExplicitSACUpdate._policy_gradient, ExplicitModelGradient._drawn

    def too_steep(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        base, slope = agent(*args)
        return base, 1.01 * slope

    monkeypatch.setattr(ExplicitSACUpdate, "_policy_gradient", too_steep)
    for name in gpu_checks.AGENTS:
        assert not gpu_checks.check_agent_by_autograd(SMALL, dataset, "cpu", name).passed
    monkeypatch.setattr(ExplicitModelGradient, "_drawn", lambda *args: adversary(*args).flip(0))
    for score in gpu_checks.WRITTEN_OUT:
        assert not gpu_checks.check_adversary_by_autograd(SMALL, dataset, "cpu", score).passed


def test_a_path_that_computes_something_else_does_not_pass(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs' path alone is given inputs a hundredth larger."""
    monkeypatch.setattr(gpu_checks, "UPDATES", 10)
    plain_call, build = GraphedStep.__call__, Trial.build.__func__  # type: ignore[attr-defined]
    init = GraphedStep.__init__
    fast: dict[GraphedStep, bool] = {}

    def made(self: GraphedStep, *args: Any, enabled: bool = True) -> None:
        init(self, *args, enabled=enabled)
        fast[self] = enabled

    def call(self: GraphedStep, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wrong = [1.01 * x if fast[self] and x.is_floating_point() else x for x in inputs]
        return plain_call(self, *wrong)

    def built(cls: type[Trial], c: Any, d: Any, device: str, graphs: bool, **more: Any) -> Trial:
        trial: Trial = build(cls, c, d, device, graphs, **more)
        fast[trial.env.world._transition] = graphs
        return trial

    monkeypatch.setattr(Trial, "build", classmethod(built))
    monkeypatch.setattr(GraphedStep, "__init__", made)
    monkeypatch.setattr(GraphedStep, "__call__", call)
    assert not gpu_checks.check_rollout(SMALL, dataset, "cpu").passed
    for score in SCORES:
        assert not gpu_checks.check_adversary(SMALL, dataset, "cpu", score).passed
    for name in gpu_checks.AGENTS:
        assert not gpu_checks.check_agent(SMALL, dataset, "cpu", name).passed


def test_an_error_of_the_device_is_a_check_that_failed(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Trial, "build", broken)
    monkeypatch.setattr(gpu_checks, "fit_world_model", broken)
    monkeypatch.setattr(gpu_checks, "step_directly", broken)
    monkeypatch.setattr(gpu_checks, "is_plain_adam", broken)
    checks = list(run_checks(SMALL, dataset, "cpu"))
    assert not any(check.passed for check in checks)
    assert all("out of memory" in check.detail for check in checks)


def test_waits_are_counted_by_the_warnings_that_torch_gives() -> None:
    def work() -> None:
        warnings.warn(f"{WAIT}: here", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        warnings.warn(f"{WAIT}: there", stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        found = waits(work, "cpu")
    assert len(found) == 2
    assert all(Path(__file__).name in place for place in found)


def test_only_a_numbered_device_is_made_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)  # refuses "cuda" without a number
    for device in ("cpu", "cuda", "cuda:1"):
        gpu_speed.make_current(device)
    assert chosen == [torch.device("cuda:1")]


def test_trials_of_both_paths_start_alike(dataset: OfflineDataset) -> None:
    graph, plain = (Trial.build(SMALL, dataset, "cpu", graphs) for graphs in (True, False))
    assert (graph.agent.graphs, plain.agent.graphs) == (True, False)
    assert not plain.env.world._transition.enabled
    assert not plain.adversary("member").graphs
    assert difference(parameters(graph.agent), parameters(plain.agent)) == 0.0
    assert torch.equal(graph.env.world.obs, plain.env.world.obs)
    assert graph.model.termination.spec["kind"] == "outside"


def test_the_phases_of_an_iteration_add_up(dataset: OfflineDataset) -> None:
    called = []
    trial = Trial.build(SMALL, dataset, "cpu", graphs=True)
    found = gpu_speed.measure_iterations(trial, "cpu", 3, lambda: called.append(True))
    assert trial.agent.iteration == gpu_speed.WARM_UP + 3
    assert called == [True]
    assert found["seconds"] == pytest.approx(sum(found["phases"].values()))
    assert list(found["phases"]) == ["adversary", "rollout", "agent"]
    assert min(found["phases"].values()) > 0


def test_the_table_sets_the_goals_beside_what_was_measured() -> None:
    part = {"part": "agent", "unit": "update", "per_second": 5000.0, "gflops": 1.0}
    iteration = {"seconds": 0.6, "phases": {"rollout": 0.1}, "peak_mib": None}
    result: dict[str, Any] = {
        "task": "hopper",
        "configuration": {"obs_dim": 11, "action_dim": 3, "rows": 1000, "starts": 5, "horizon": 2,
                          "updates": 7},
        "parts_graphs": [part, {**part, "part": "rollout", "unit": "transition"}],
        "parts_plain": [{**part, "per_second": 500.0}],
        "iterations_graphs": {**iteration, "peak_mib": {"allocated": 2000.0, "reserved": 3000.0}},
        "iterations_plain": {**iteration, "seconds": 6.0},
        "beside": {"checkpoint": 3.0, "evaluation": 1.2},
        "processes": {"processes": 5, "seconds": 1.0, "slowest": 2.0},
        "mps": {"processes": 5, "seconds": 1.0, "slowest": 1.5},
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in speed_rows(result)}
    assert rows["agent, updates/s"] == ("500", "5,000", "10.00", "4,000/s", "reached")
    assert rows["rollout, transitions/s"] == ("-", "5,000", "-", "20,000,000/s", "MISSED")
    assert rows["iteration, s"] == ("6", "0.6", "10.00", "0.75", "reached")
    assert rows["2000 iterations, minutes"][1] == "20"
    # evaluated in each tenth iteration and in each of the last ten; a checkpoint in each tenth
    assert rows["  with 209 of them, minutes"][1:] == ("24.2", "-", "25", "reached")
    assert rows["  with 200 of them, minutes"][1:] == ("34.2", "-", "25", "MISSED")
    # 2000 iterations of 2 s
    assert rows["2000 iterations, 5 at once, minutes"][1:] == ("66.7", "-", "60", "MISSED")
    assert rows["2000 iterations, 5 at once with MPS, minutes"][1:] == ("50", "-", "60", "reached")
    assert "2,000 MiB of tensors, 3,000 MiB taken" in speed_text(result)
    result |= {"task": "halfcheetah", "parts_plain": None, "processes": None, "mps": None}
    del result["iterations_plain"]
    rows = {row[0]: row[1:] for row in speed_rows(result)}
    assert rows["iteration, s"] == ("-", "0.6", "-", "-", "")  # the goal is Hopper's
    assert goal_cells(1.0, None, least=True) == ("-", "")


def test_a_small_run_of_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deeper" / "gpu.json"
    assert main([*ENOUGH.split(), "--device", "cpu", "--tasks", "hopper", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert (written["failed"], written["left_out"]) == ([], [])
    (speed,) = written["speed"]
    parts = ["rollout", "agent", "adversary-mixture", "adversary-member", "adversary-pathwise"]
    for path in ("graphs", "plain"):
        assert [row["part"] for row in speed[f"parts_{path}"]] == parts
        assert all(row["per_second"] > 0 for row in speed[f"parts_{path}"])
    assert speed["iterations_graphs"]["iterations"] == 2
    assert len(speed["processes"]["each"]) == 2
    assert min(speed["beside"][name] for name in ("checkpoint", "evaluation")) > 0
    printed = capfd.readouterr().out
    assert "checks: 24 of 24 passed" in printed
    assert "2000 iterations, 2 at once" in printed


def test_nothing_is_begun_after_the_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    words = [*ENOUGH.split(), "--device", "cpu", "--budget", "0", "--out", str(out)]
    assert main(words) == 1  # nothing was checked
    assert len(json.loads(out.read_text())["left_out"]) == 13
    assert "left out for lack of time: checks, hopper, checks" in capsys.readouterr().out
    assert main([*words, "--stages", "parts"]) == 0  # no check was asked for


def test_a_process_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="1 of 1 processes failed: "):
        gpu_speed.measure_processes(
            *(SMALL, "no-such-device"), processes=1, iterations=1, limit=60.0
        )


def test_a_process_that_dies_is_not_waited_for() -> None:
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=os._exit, args=(3,))
    process.start()
    with pytest.raises(RuntimeError, match="died, exit code 3"):
        gpu_speed._answers_of([process], spawn.Queue(), 60.0)


def test_a_stage_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no numbers")

    monkeypatch.setattr(gpu_speed, "measure_parts", broken)
    monkeypatch.setattr(gpu_checks, "UPDATES", 4)
    out = tmp_path / "gpu.json"
    words = [*ENOUGH.split(), "--device", "cpu", "--tasks", "hopper", "--out", str(out)]
    assert main([*words, "--stages", "checks", "parts", "iterations"]) == 1
    written = json.loads(out.read_text())
    assert len(written["checks"]) == 24
    assert written["failed"] == ["parts, hopper, graphs", "parts, hopper, plain"]
    assert written["speed"][0]["iterations_graphs"] is not None
    assert "ValueError: no numbers" in capsys.readouterr().err


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert main(["--device", "cuda:99", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no CUDA device" in captured.err
    assert not out.exists()
