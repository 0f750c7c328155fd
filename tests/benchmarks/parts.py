"""The parts of RAMBO, each through the library's own functions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adv_worldmodel import FitSettings, OfflineDataset, WorldModel, fit_world_model
from adv_worldmodel.device import shared_tensor
from adv_worldmodel.dynamics import Adversary, AdversarySettings
from adv_worldmodel.dynamics.model_gradient import Score
from agents import RAMBO
from agents.agent_step import AgentStep
from agents.cloning import clone_behaviour
from agents.training import checkpoints
from agents.training.evaluation import Evaluator
from agents.values import policy_and_value
from tests.benchmarks import flops, workload
from tests.benchmarks.configuration import Configuration
from tests.benchmarks.timing import Part

#: The fit is timed on this many rows at most: what it does once per fit and epoch is taken off.
FIT_ROWS = 50_000
#: Ends the names of parts that compute the same with autograd's gradients, the tests' references.
AUTOGRAD = "-autograd"


def fit_part(c: Configuration, dataset: OfflineDataset) -> Part:
    """Maximum-likelihood steps; a fit of a single step says what a fit's preparation takes."""
    few = workload.first_rows(dataset, FIT_ROWS)

    def fit(steps: int) -> float:
        start = time.perf_counter()
        settings = FitSettings(
            n_networks=c.n_networks,
            n_elites=c.n_members,
            hidden_sizes=c.model_hidden,
            batch_size=c.batch,
            max_steps=steps,
        )
        fit_world_model(few, settings, termination="never", device="cpu")
        return time.perf_counter() - start

    def run(n: int) -> float:
        fit(n + 1)
        return float(n)

    return Part("fit", "step", run, flops.fit_step(c), fixed=lambda: fit(1))


def rollout_part(c: Configuration, agent: RAMBO) -> Part:
    """k-step rollouts into the replay buffer, with nothing called back."""

    def run(n: int) -> float:
        return float(sum(workload.roll_out(agent).episode_timesteps for _ in range(n)))

    return Part("rollout", "transition", run, flops.rollout_step(c))


def adversary_part(
    c: Configuration,
    score: Score,
    agent: RAMBO,
    dataset: OfflineDataset,
    model: WorldModel,
    *,
    graphs: bool = True,
    autograd: bool = False,
) -> Part:
    """Updates of the world model against the agent.

    :param autograd: with autograd's gradients in place of those written out.
    """
    settings = AdversarySettings(score=score, batch_size=c.batch)
    adversary = Adversary(model, dataset, settings, horizon=c.horizon, seed=0, graphs=graphs)
    # The held-out likelihood ends a run of 1000 updates; in these short runs it would count.
    adversary.holdout_rows = adversary.holdout_rows[:1]
    policy, value = policy_and_value(agent)
    if autograd:
        adversary.explicit = None

    def run(n: int) -> float:
        adversary.run(n, policy, value)
        return float(n)

    name = f"adversary-{score}" + (AUTOGRAD if autograd else "")
    return Part(name, "update", run, flops.adversary_update(c, score))


def cloning_part(c: Configuration, agent: RAMBO, dataset: OfflineDataset) -> Part:
    """Behaviour cloning, shuffling included."""
    obs, actions = (shared_tensor(a, "cpu") for a in (dataset.observations, dataset.actions))
    generator = torch.Generator().manual_seed(0)
    per_epoch = max(1, c.rows // c.batch)

    def run(n: int) -> float:
        left = n
        while left > 0:
            now = min(left, per_epoch)
            rows = slice(0, now * c.batch)
            clone_behaviour(
                agent.actor, obs[rows], actions[rows], generator, epochs=1, batch_size=c.batch
            )
            left -= now
        return float(n)

    return Part("cloning", "update", run, flops.cloning_batch(c))


def checkpoint_part(agent: RAMBO, dataset: OfflineDataset, model: WorldModel) -> Part:
    """The whole state of a training to disk, the buffer full: what `train` writes."""
    folder = tempfile.TemporaryDirectory(prefix="benchmark-")
    adversary = Adversary(model, dataset, AdversarySettings(), seed=0)
    adversary.run(1, *policy_and_value(agent))
    buffer = agent.replay_buffer
    assert buffer is not None

    def run(n: int) -> float:
        full, buffer.full = buffer.full, True
        for _ in range(n):
            checkpoints.write(
                Path(folder.name), checkpoints.capture(agent, adversary), buffer.synthetic, {}
            )
        buffer.full = full
        return float(n)

    run(1)
    size = sum(file.stat().st_size for file in Path(folder.name).rglob("*") if file.is_file())
    return Part("checkpoint", "checkpoint", run, flops.Work(), extra={"mib": size / 2**20})


def agent_parts(c: Configuration, agent: RAMBO, dataset: OfflineDataset) -> list[Part]:
    """RAMBO's updates, draws of the mixed batches included; autograd's; SB3's own SAC's."""
    stock = workload.stock_sac(c, dataset)
    own, reference = AgentStep(agent, c.batch), workload.autograd_step(agent, c.batch)

    def updates_with(step: AgentStep) -> Callable[[int], float]:
        def run(n: int) -> float:
            agent._step = step
            agent.train(n, c.batch)
            return float(n)

        return run

    def stock_updates(n: int) -> float:
        stock.train(n, c.batch)
        return float(n)

    work = flops.agent_update(c)
    return [
        Part("agent", "update", updates_with(own), work),
        Part("agent" + AUTOGRAD, "update", updates_with(reference), work),
        Part("sb3-sac", "update", stock_updates, work),
    ]


def evaluation_part(c: Configuration, env_id: str, agent: RAMBO, evaluator: Evaluator) -> Part:
    """Episodes of the deterministic policy in the real environment."""

    def run(n: int) -> float:
        return float(sum(evaluator.evaluate(agent).lengths.sum() for _ in range(n)))

    extra = {"episodes": c.episodes}
    return Part(f"evaluation {env_id}", "step", run, flops.evaluation_step(c), extra=extra)
