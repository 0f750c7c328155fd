"""One configuration, measured in a process of its own: ``python -m tests.benchmarks.process``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from adv_worldmodel import OfflineDataset, WorldModel
from adv_worldmodel.dynamics.model_gradient import Score
from agents import RAMBO
from agents.training.config import TrainConfig
from agents.training.evaluation import Evaluator
from tests.benchmarks import parts, workload
from tests.benchmarks.configuration import Configuration
from tests.benchmarks.iteration import measure_iteration
from tests.benchmarks.timing import Part, Probe, measure, peak_mib

#: Iterations from one checkpoint to the next, as a configuration has it by default.
CHECKPOINT_EVERY = TrainConfig.checkpoint_every


def groups(
    c: Configuration, agent: RAMBO, dataset: OfflineDataset, model: WorldModel
) -> Iterator[list[Part]]:
    """What is timed side by side, built when its turn comes and gone after it."""
    for name in c.parts:
        if name == "fit":
            yield [parts.fit_part(c, dataset)]
        elif name == "rollout":
            yield [parts.rollout_part(c, agent)]
        elif name.startswith("adversary-"):
            score = cast(Score, name.removeprefix("adversary-"))
            ways = (False,) if score == "pathwise" else (False, True)  # pathwise has but autograd's
            yield [
                parts.adversary_part(c, score, agent, dataset, model, autograd=way) for way in ways
            ]
        elif name == "cloning":
            yield [parts.cloning_part(c, agent, dataset)]
        elif name == "checkpoint":
            yield [parts.checkpoint_part(agent, dataset, model)]


def rows_of(c: Configuration, group: list[Part], probe: Probe) -> list[dict[str, Any]]:
    """Time a group."""
    return [stretches.result() for stretches in measure(group, probe, c.seconds, c.rounds)]


def measure_evaluation(c: Configuration, probe: Probe) -> dict[str, Any]:
    """An agent that has learnt nothing, in the real environment."""
    assert c.env_id is not None
    agent = workload.evaluated_agent(c, c.env_id)
    with Evaluator(c.env_id, episodes=c.episodes) as evaluator:
        part = parts.evaluation_part(c, c.env_id, agent, evaluator)
        return {"parts": rows_of(c, [part], probe)}


def measure_task(c: Configuration, probe: Probe) -> dict[str, Any]:
    """The iteration first, so that its peak of memory is a run's own; the stock agent last."""
    dataset = workload.gaussian_data(c)
    model = workload.world_model(c, dataset)
    agent = workload.rambo(c, dataset, model)
    peaks = {"setup": peak_mib()}
    result: dict[str, Any] = {"parts": [], "peak_mib": peaks}
    if c.iteration:
        result["iteration"] = measure_iteration(c, agent, probe)
        peaks["iteration"] = peak_mib()
    elif c.parts:
        agent.gradient_steps = 1  # rows for the buffer, and what learn() alone sets up
        agent.learn(agent.timesteps_per_iteration)
    for group in groups(c, agent, dataset, model):
        result["parts"] += rows_of(c, group, probe)
    peaks["parts"] = peak_mib()
    for row in result["parts"]:
        if row["part"] == "checkpoint" and c.iteration:
            between = CHECKPOINT_EVERY * result["iteration"]["seconds"]
            row["of_the_time_between"] = row["milliseconds"] / 1e3 / between
    if "agent" in c.parts:
        ours, autograd, stock = rows_of(c, parts.agent_parts(c, agent, dataset), probe)
        for row in (ours, autograd):
            row["ratio_to_stock"] = row["per_second"] / stock["per_second"]
        result["parts"] += [ours, autograd, stock]
        peaks["with_stock"] = peak_mib()
    by_name = {row["part"]: row for row in result["parts"]}
    for name, row in by_name.items():
        if reference := by_name.get(name + parts.AUTOGRAD):
            row["ratio_to_autograd"] = row["per_second"] / reference["per_second"]
    return result


def main() -> None:
    """Arguments: the configuration as JSON, and the file for the result."""
    c, out = Configuration.from_json(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(c.threads)
    load = os.getloadavg()[0]
    probe = Probe(c.batch, c.widths)
    found = measure_task(c, probe) if c.env_id is None else measure_evaluation(c, probe)
    out.write_text(
        json.dumps(
            {"configuration": asdict(c), "load_average": load, "torch": torch.__version__} | found
        )
    )


if __name__ == "__main__":
    main()
