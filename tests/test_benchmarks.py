"""The benchmark: its counts of operations against PyTorch's own, and one small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adv_worldmodel import FitSettings, OfflineDataset, WorldModel, fit_world_model
from adv_worldmodel.dynamics import Adversary, AdversarySettings
from adv_worldmodel.dynamics.model_gradient import Score
from agents import RAMBO
from agents.cloning import clone_behaviour
from agents.values import policy_and_value
from tests.benchmarks import flops, workload
from tests.benchmarks.__main__ import main
from tests.benchmarks.configuration import Configuration, dimensions
from tests.benchmarks.timing import Part, Stretches, mean_rates

# Five members share the 20 model rows of a batch without remainder. All widths differ, so that a
# layer counted for another shows.
SMALL = Configuration(
    "4x3", 4, 3, 200, batch=20, starts=50, horizon=2, agent_hidden=(16, 8), model_hidden=(12, 6, 10)
)
#: One pass through the critics' last layer, which is done as a sum that PyTorch does not count.
CRITIC_HEAD = flops.Network((SMALL.agent_hidden[-1], 1), SMALL.n_critics).forward(SMALL.batch)
ACTIONS_STD_HEAD = 2 * SMALL.batch * SMALL.agent_hidden[-1] * SMALL.action_dim


@pytest.fixture
def dataset() -> OfflineDataset:
    return workload.gaussian_data(SMALL)


@pytest.fixture
def model(dataset: OfflineDataset) -> WorldModel:
    return workload.world_model(SMALL, dataset)


@pytest.fixture
def agent(dataset: OfflineDataset, model: WorldModel) -> RAMBO:
    """With rows in its buffer, and an update behind it."""
    agent = workload.rambo(SMALL, dataset, model)
    agent.gradient_steps = 1
    agent.learn(agent.timesteps_per_iteration)
    return agent


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def total(work: flops.Work) -> int:
    return sum(work.values())


def test_network_by_hand() -> None:
    network = flops.Network((3, 5, 2), copies=2)
    layers = 3 * 5 + 5 * 2
    assert network.forward(10) == 2 * 10 * 2 * layers
    assert network.weight_gradients(10) == 2 * 10 * 2 * layers
    assert network.input_gradients(10) == 2 * 10 * 2 * (5 * 2)
    assert network.input_gradients(10, inputs=3) == 2 * 10 * 2 * layers
    assert network.training(10) == 2 * 10 * 2 * (2 * layers + 5 * 2)


def test_agent_update(agent: RAMBO) -> None:
    with counter() as counted:
        agent.train(1, SMALL.batch)
    # heads: three forward, two for learning Q; for the actor's gradient that of one critic
    heads = 5 * CRITIC_HEAD + CRITIC_HEAD // SMALL.n_critics
    assert counted.get_total_flops() + heads == total(flops.agent_update(SMALL))


@pytest.mark.parametrize("score", get_args(Score))
def test_adversary_update(
    agent: RAMBO, dataset: OfflineDataset, model: WorldModel, score: Score
) -> None:
    settings = AdversarySettings(score=score, batch_size=SMALL.batch)
    adversary = Adversary(model, dataset, settings, horizon=SMALL.horizon, seed=0)
    counted = []
    for n in (1, 2):
        with counter() as of_run:
            adversary.run(n, *policy_and_value(agent))
        counted.append(of_run.get_total_flops())
    useful = total(flops.adversary_update(SMALL, score))
    # heads: V(s') and the baseline, and the gradient of V(s') where it goes through the sample
    done = counted[1] - counted[0] + (3 if score == "pathwise" else 2) * CRITIC_HEAD
    # V(s') needs the mean action; the actor computes its standard deviation with it.
    assert useful <= done <= useful + ACTIONS_STD_HEAD
    # a run finds the first actions, and the likelihood of the held-out data in the end
    once = flops.actor(SMALL).forward(SMALL.batch)
    assert 2 * counted[0] - counted[1] == once + total(flops.holdout(SMALL))


def test_rollout(agent: RAMBO) -> None:
    assert agent.env is not None
    with counter() as counted:
        agent.gradient_steps = 1
        agent.learn(agent.timesteps_per_iteration, reset_num_timesteps=False)
    with counter() as update:
        agent.train(1, SMALL.batch)
    transitions = SMALL.starts * SMALL.horizon
    expected = total(flops.times(flops.rollout_step(SMALL), transitions))
    assert counted.get_total_flops() - update.get_total_flops() == expected


def test_fit_step(dataset: OfflineDataset) -> None:
    found = []
    for steps in (1, 3):
        settings = FitSettings(
            n_networks=SMALL.n_networks,
            n_elites=SMALL.n_members,
            hidden_sizes=SMALL.model_hidden,
            batch_size=SMALL.batch,
            max_steps=steps,
        )
        with counter() as counted:
            fit_world_model(dataset, settings, termination="never", device="cpu")
        found.append(counted.get_total_flops())
    assert found[1] - found[0] == 2 * total(flops.fit_step(SMALL))


def test_cloning_and_evaluation(agent: RAMBO, dataset: OfflineDataset) -> None:
    columns = (dataset.observations, dataset.actions)
    obs, action = (torch.tensor(column[: SMALL.batch]) for column in columns)
    with counter() as counted:
        generator = torch.Generator().manual_seed(0)
        clone_behaviour(agent.actor, obs, action, generator, epochs=1, batch_size=SMALL.batch)
    assert counted.get_total_flops() == total(flops.cloning_batch(SMALL))
    with counter() as counted:
        agent.predict(dataset.observations[: SMALL.batch], deterministic=True)
    useful = total(flops.times(flops.evaluation_step(SMALL), SMALL.batch))
    assert useful <= counted.get_total_flops() <= useful + ACTIONS_STD_HEAD


def test_share_is_the_products_time_over_all_of_it() -> None:
    part = Part("part", "update", lambda n: n, flops.Work({200: 30, 256: 40}))
    stretches = Stretches(part)
    # 2 updates: 60 operations at 10 per second and 80 at 20, in 25 s
    stretches.add(2, 25.0, mean_rates({200: 5.0, 256: 30.0}, {200: 15.0, 256: 10.0}))
    found = stretches.result()
    assert found["share"] == pytest.approx((60 / 10 + 80 / 20) / 25)
    assert found["per_second"] == pytest.approx(2 / 25)
    assert found["gflops"] == pytest.approx(140 / 25 / 1e9)


def test_dimensions() -> None:
    assert dimensions("halfcheetah") == (17, 6)
    assert dimensions("11x3") == (11, 3)
    for wrong in ("walker", "11", "0x3", "x", "3x"):
        with pytest.raises(ValueError, match="neither one of"):
            dimensions(wrong)


def test_a_small_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deeper" / "bench.json"
    options = (
        "--tasks 3x1 --rows 500 1000 --seconds 0.02 --rounds 1 --iteration-starts 20 "
        "--iteration-updates 2 --agent-hidden 16 16 --model-hidden 12 12 "
        "--parts rollout adversary-member agent"
    )
    assert main([*options.split(), "--out", str(out)]) == 0
    adversary = ["adversary-member", "adversary-member-autograd"]
    written = json.loads(out.read_text())
    assert written["failed"] == []
    assert [r["configuration"]["rows"] for r in written["configurations"]] == [500, 1000]
    for result in written["configurations"]:
        parts = {row["part"]: row for row in result["parts"]}
        assert list(parts) == ["rollout", *adversary, "agent", "agent-autograd", "sb3-sac"]
        for row in parts.values():
            assert 0 < row["share"] < 1
            assert row["per_second"] == pytest.approx(1e3 / row["milliseconds"])
        own, reference = (parts[name]["per_second"] for name in adversary)
        assert parts[adversary[0]]["ratio_to_autograd"] == own / reference
        assert {name for name, row in parts.items() if "ratio_to_autograd" in row} == {
            "adversary-member", "agent",
        }  # fmt: skip
        iteration = result["iteration"]
        phases = iteration["phases"]
        assert [phase["phase"] for phase in phases] == ["adversary", "rollout", "agent"]
        assert iteration["seconds"] == pytest.approx(sum(phase["seconds"] for phase in phases))
        assert 0 < iteration["outside_products"] < 1
        peaks = result["peak_mib"]
        assert 0 < peaks["setup"] <= peaks["iteration"] <= peaks["parts"] <= peaks["with_stock"]
    printed = capfd.readouterr().out
    assert "iteration of 3x1: 500 rows" in printed
    assert "x sb3-sac" in printed


def test_too_large_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    options = "--tasks wide --rows 2000000 --parts agent --max-memory 1"
    assert main([*options.split(), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["left_out"] == ["wide, 2,000,000 rows"]
    assert "left out: wide" in capsys.readouterr().out
