"""How fast the parts, a whole iteration and several processes at once are on a GPU."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from stable_baselines3.common.callbacks import BaseCallback

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics.model_gradient import Score
from agents import RamboCallback
from agents.training.evaluation import Evaluator
from tests.benchmarks import flops, parts, workload
from tests.benchmarks.configuration import SCORES, TASK_ENVS, Configuration
from tests.benchmarks.gpu_checks import Trial
from tests.benchmarks.timing import Part, pieces_in

#: Iterations before the clock runs: the graphs are captured in them.
WARM_UP = 2
#: Steps of an episode in which the agent does not fall.
EPISODE = 1000
#: Seconds that processes wait for each other.
PATIENCE = 120.0


def synchronise(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def trial_parts(trial: Trial) -> list[Part]:
    """Rollout, agent update, and adversary update for each score."""
    c, agent = trial.c, trial.agent

    def updates(n: int) -> float:
        agent.train(n, c.batch)
        return float(n)

    adversaries = [
        parts.adversary_part(
            c, cast(Score, score), agent, trial.dataset, trial.model, graphs=trial.graphs
        )
        for score in SCORES
    ]
    agent_part = Part("agent", "update", updates, flops.agent_update(c))
    return [parts.rollout_part(c, agent), agent_part, *adversaries]


def measure_part(part: Part, device: str, seconds: float) -> dict[str, Any]:
    """Units per second of a stretch of about so many seconds, after a shorter one."""
    part.run(5)  # captures
    n = pieces_in(part, seconds)
    synchronise(device)
    start = time.perf_counter()
    units = part.run(n)
    synchronise(device)
    taken = time.perf_counter() - start
    rate = units / taken
    gflops = sum(part.work.values()) * rate / 1e9
    return {"part": part.name, "unit": part.unit, "per_second": rate, "gflops": gflops}


def measure_parts(
    c: Configuration, dataset: OfflineDataset, device: str, *, graphs: bool, seconds: float
) -> list[dict[str, Any]]:
    """All parts of one path."""
    trial = Trial.build(c, dataset, device, graphs)
    trial.begin()
    return [measure_part(part, device, seconds) for part in trial_parts(trial)]


def measure_beside(
    c: Configuration, dataset: OfflineDataset, device: str, *, seconds: float
) -> dict[str, float]:
    """Seconds of what `train` does beside its iterations: a checkpoint, an evaluation.

    The buffer is full. Every episode of the evaluation is counted as one of `EPISODE` steps: a
    policy that has learnt nothing falls soon.
    """
    trial = Trial.build(c, dataset, device, graphs=True)
    trial.begin()
    checkpoint = parts.checkpoint_part(trial.agent, dataset, trial.model)
    found = {"checkpoint": 1.0 / measure_part(checkpoint, device, seconds)["per_second"]}
    if (env_id := TASK_ENVS.get(c.task)) is not None:
        few = replace(c, rows=1000, starts=8)
        agent = workload.evaluated_agent(few, env_id, device)
        with Evaluator(env_id, episodes=c.episodes) as evaluator:
            part = parts.evaluation_part(few, env_id, agent, evaluator)
            rate = measure_part(part, device, seconds)["per_second"]
        found["evaluation"] = EPISODE * c.episodes / rate
    return found


class Clock(BaseCallback):
    """Notes the time at a rollout's start, before or after the adversary by its place in the list.

    :param before: called when the warm-up is over, before the time is noted.
    """

    def __init__(self, device: str, *, at_end: bool, before: Callable[[], object] | None = None):
        super().__init__()
        self.device, self.at_end, self.before = device, at_end, before
        self.starts: list[float] = []
        self.ends: list[float] = []

    def now(self) -> float:
        """When all work given so far is done."""
        synchronise(self.device)
        return time.perf_counter()

    def _on_rollout_start(self) -> None:
        if len(self.starts) == WARM_UP and self.before is not None:
            self.now()
            self.before()
        self.starts.append(self.now())

    def _on_rollout_end(self) -> None:
        if self.at_end:
            self.ends.append(self.now())

    def _on_step(self) -> bool:
        return True


def make_current(device: str) -> None:
    """Let ``cuda:N`` be the device whose memory is read, and which is waited for."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is not None:  # "cuda" is the current one already
        torch.cuda.set_device(found)


def measure_iterations(
    trial: Trial, device: str, n: int, before: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Mean seconds of n whole iterations through ``learn``, adversary included, and its phases."""
    c, agent = trial.c, trial.agent
    adversary = RamboCallback(adversary_updates=c.updates, score=cast(Score, c.score), seed=0)
    adversary.init_callback(agent)
    assert adversary.adversary is not None
    adversary.adversary.graphs = trial.graphs
    first, second = Clock(device, at_end=False, before=before), Clock(device, at_end=True)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    steps = (WARM_UP + n) * agent.timesteps_per_iteration
    agent.learn(steps, callback=[first, adversary, second])
    end = second.now()
    begins = [*first.starts[WARM_UP:], end]
    rollouts, updates = second.starts[WARM_UP:], second.ends[WARM_UP:]
    phases = {
        "adversary": [b - a for a, b in zip(begins[:-1], rollouts, strict=True)],
        "rollout": [b - a for a, b in zip(rollouts, updates, strict=True)],
        "agent": [b - a for a, b in zip(updates, begins[1:], strict=True)],
    }
    taken = [b - a for a, b in itertools.pairwise(begins)]
    return {
        "iterations": n,
        "seconds": statistics.fmean(taken),
        "slowest": max(taken),
        "phases": {name: statistics.fmean(values) for name, values in phases.items()},
        "peak_mib": peak_mib(device),
    }


def peak_mib(device: str) -> dict[str, float] | None:
    """Peak memory of the device, MiB: in tensors, and as taken from the driver."""
    if not device.startswith("cuda"):
        return None
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated": allocated / 2**20, "reserved": reserved / 2**20}


def _process(configuration: str, device: str, n: int, barrier: Any, answers: Any) -> None:
    """One of several processes: builds its own trial, and starts when all have."""
    torch.set_num_threads(1)
    try:
        make_current(device)
        c = Configuration.from_json(configuration)
        trial = Trial.build(c, workload.gaussian_data(c), device, graphs=True)
        found = measure_iterations(trial, device, n, lambda: barrier.wait(PATIENCE))
        answers.put(found)
    except Exception as error:
        barrier.abort()  # the others need not wait
        answers.put(f"{type(error).__name__}: {error}")


def _answers_of(started: Sequence[BaseProcess], answers: Any, limit: float) -> list[Any]:
    """One answer of each process, within that many seconds.

    :raises RuntimeError: one of them died, or they did not answer in time.
    """
    found: list[Any] = []
    deadline = time.monotonic() + limit
    while len(found) < len(started):
        try:
            found.append(answers.get(timeout=0.5))
        except queue.Empty:
            if died := [process.exitcode for process in started if process.exitcode]:
                raise RuntimeError(f"a process died, exit code {died[0]}") from None
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer within {limit:.0f} s") from None
    return found


def measure_processes(
    c: Configuration, device: str, *, processes: int, iterations: int, limit: float
) -> dict[str, Any]:
    """Seconds of an iteration while that many processes share the device, as ``seeds=N`` does.

    :param limit: seconds that they may take.
    :raises RuntimeError: one of them failed.
    """
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(processes), spawn.Queue()
    arguments = (c.to_json(), device, iterations, barrier, answers)
    started = [spawn.Process(target=_process, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    try:
        found = _answers_of(started, answers, limit)
    finally:
        deadline = time.monotonic() + 5.0  # of all together
        for process in started:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        for process in started:
            process.kill()
    if errors := [answer for answer in found if isinstance(answer, str)]:
        raise RuntimeError(f"{len(errors)} of {processes} processes failed: {errors[0]}")
    seconds = [float(answer["seconds"]) for answer in found]
    return {
        "processes": processes,
        "iterations": iterations,
        "seconds": statistics.fmean(seconds),
        "slowest": max(seconds),
        "each": found,
    }
