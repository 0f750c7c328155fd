"""Is the fast path on a GPU the same computation as the plain one, and does it wait for nothing?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast
from unittest.mock import patch

import torch
from torch import Tensor

import adv_worldmodel.graphs
from adv_worldmodel import FitSettings, OfflineDataset, WorldModel, fit_world_model
from adv_worldmodel.adam import is_plain_adam, step_directly
from adv_worldmodel.dynamics import Adversary, AdversarySettings
from adv_worldmodel.dynamics.model_gradient import Score
from adv_worldmodel.envs.sb3 import AdvWorldModelVecEnv
from adv_worldmodel.graphs import GraphedStep, waits_for_the_device
from agents import COMBO, RAMBO
from agents.agent_step import AgentStep
from agents.training.checkpoints import capture, restore
from agents.values import policy_and_value
from tests.benchmarks import workload
from tests.benchmarks.configuration import SCORES, Configuration

Item = TypeVar("Item")

#: Largest difference between both paths, relative to the largest number of the tensor (or to 1).
TOLERANCE = 1e-4
UPDATES = 100
#: Updates of the adversary between the agent's: its graph is captured at the fourth.
BETWEEN = 5
#: Agents that are checked, by name: as the paper's; with all that changes the preset `fast`'s
#: update, and fresh outcomes.
AGENTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": {
        "networks": {"layer_norm": True}, "ent_coef": "auto_0.05", "cloning_weight": 0.02,
        "fresh_outcomes": True,
    },
}  # fmt: skip
#: lambda: at the paper's 3e-4 a wrong adversarial term would hardly show beside the other.
WEIGHT = 1.0
#: Scores whose gradients are written out.
WRITTEN_OUT = ("mixture", "member")
#: Of the data and rollouts of the checks in which size plays no part.
FEW_ROWS, FEW_STARTS = 5_000, 1_000
#: Largest difference of a gradient from autograd's, relative to the largest of its tensor.
OF_AUTOGRAD = 1e-3
#: Steps of the rollout that is compared; the graph is captured at the fourth.
STEPS = 20
#: Whether the trials that are compared replay graphs. The second does all work in one stream.
PATHS = (True, False, False)
ONE_STREAM = 1


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    detail: str


@dataclass
class Trial:
    """An agent in a world model of a configuration's sizes, with or without CUDA graphs.

    Trials of equal configurations draw equal random numbers.
    """

    c: Configuration
    dataset: OfflineDataset
    model: WorldModel
    agent: RAMBO
    graphs: bool

    @classmethod
    def build(
        cls, c: Configuration, dataset: OfflineDataset, device: str, graphs: bool, **settings: Any
    ) -> Trial:
        """Hopper ends episodes by its rule, other tasks never.

        :param settings: see :func:`workload.rambo`.
        """
        rule = "hopper" if c.task == "hopper" else "never"
        model = workload.world_model(c, dataset, rule, device)
        agent = workload.rambo(c, dataset, model, **settings)
        agent.graphs = graphs
        trial = cls(c, dataset, model, agent, graphs)
        trial.env.world._transition.enabled &= graphs
        return trial

    @property
    def env(self) -> AdvWorldModelVecEnv:
        """The agent's environment."""
        return cast(AdvWorldModelVecEnv, self.agent.env)

    def adversary(self, score: str, weight: float | Literal["auto"] = WEIGHT) -> Adversary:
        """A fresh adversary of the model."""
        settings = AdversarySettings(weight, cast(Score, score), self.c.batch)
        model, horizon = self.model, self.c.horizon
        return Adversary(model, self.dataset, settings, horizon=horizon, seed=0, graphs=self.graphs)

    def roll_out(self) -> None:
        """Rollouts into the buffer, with nothing called back."""
        workload.roll_out(self.agent)

    def begin(self) -> None:
        """One iteration with one update: rows in the buffer, and what ``learn`` sets up."""
        steps = self.agent.gradient_steps
        self.agent.gradient_steps = 1
        self.agent.learn(self.agent.timesteps_per_iteration)
        self.agent.gradient_steps = steps


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], least: float = 1.0) -> float:
    """Largest difference, relative to the tensor's largest number; inf where not finite.

    :param least: of the numbers to which it is relative.
    """
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.numel() == 0:
            continue
        a, b = mine.detach().double(), other.detach().double()
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=least)))
    return worst


def compared(name: str, found: Sequence[Sequence[Tensor]], captured: bool, device: str) -> Check:
    """Equal within the tolerance and, on a GPU, by replaying a graph.

    :param found: by the graph; plainly and in one stream; plainly, with branches. What the last two
        differ by, the graph is not to blame for.
    """
    graph, plain, branched = found
    worst, noise = difference(graph, plain), difference(branched, plain)
    ok = worst <= TOLERANCE and (captured or not device.startswith("cuda"))
    what = "captured" if captured else "not captured"
    detail = f"difference {worst:.1e} (at most {TOLERANCE:.0e}; without graph: {noise:.1e}), {what}"
    return Check(name, ok, detail)


def along_paths(items: Iterable[Item]) -> Iterator[Item]:
    """One item for each of `PATHS`, and while it is worked on the streams of that path."""
    for number, item in enumerate(items):
        streams = 0 if number == ONE_STREAM else adv_worldmodel.graphs.SIDE_STREAMS
        with patch.object(adv_worldmodel.graphs, "SIDE_STREAMS", streams):
            yield item


def parameters(agent: RAMBO) -> list[Tensor]:
    """All that the agent's update changes, the optimisers' own state aside."""
    found = [t for t in agent.policy.state_dict().values() if isinstance(t, Tensor)]
    return found if agent.log_ent_coef is None else [*found, agent.log_ent_coef]


def check_agent(
    c: Configuration, dataset: OfflineDataset, device: str, name: str = "paper"
) -> Check:
    """Parameters after 100 updates on the same rows with the same random numbers.

    Half-way a graph of the adversary is captured: that empties the allocator's cache, and would
    take away memory which a graph uses and nobody holds.

    :param name: one of `AGENTS`.
    """
    trials = [Trial.build(c, dataset, device, graphs, **AGENTS[name]) for graphs in PATHS]
    for trial in along_paths(trials):
        trial.env.world._transition.enabled = False  # the rows are to be the same to the last bit
        trial.begin()
        trial.agent.train(UPDATES // 2, c.batch)
        trial.adversary("member").run(BETWEEN, *policy_and_value(trial.agent))
        trial.agent.train(UPDATES - UPDATES // 2, c.batch)
    step = trials[0].agent._step
    found = [parameters(trial.agent) for trial in trials]
    captured = step is not None and step.captured
    return compared(f"agent update, {name}", found, captured, device)


def check_adversary(
    c: Configuration,
    dataset: OfflineDataset,
    device: str,
    score: str,
    weight: float | Literal["auto"] = WEIGHT,
) -> Check:
    """The world model after 100 updates against the same agent with the same random numbers.

    With ``"auto"`` also lambda, and what it follows.
    """
    found: list[list[Tensor]] = []
    captured = False
    for graphs in along_paths(PATHS):
        trial = Trial.build(c, dataset, device, graphs)
        adversary = trial.adversary(score, weight)
        adversary.run(UPDATES, *policy_and_value(trial.agent))
        dual = [] if adversary.dual is None else [value for _, value in adversary.dual.state()]
        found.append([*trial.model.ensemble.state_dict().values(), *dual])
        captured |= adversary._step is not None and adversary._step.captured
    name = f"adversary update, {score}" + (", lambda by the constraint" if weight == "auto" else "")
    return compared(name, found, captured, device)


def by_autograd(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Check:
    """Whether gradients that are written out are those of autograd."""
    worst = difference(ours, theirs, least=torch.finfo(torch.float32).tiny)
    detail = f"difference {worst:.1e} (at most {OF_AUTOGRAD:.0e})"
    return Check(f"gradients by autograd, {name}", worst <= OF_AUTOGRAD, detail)


def check_agent_by_autograd(
    c: Configuration, dataset: OfflineDataset, device: str, name: str
) -> Check:
    """The gradients of one update, the first after that in which all begins.

    :param name: one of `AGENTS`.
    """
    c, dataset = few_rows(c, dataset)
    found: list[list[Tensor]] = []
    for make in (AgentStep, workload.autograd_step):
        trial = Trial.build(c, dataset, device, graphs=False, **AGENTS[name])
        trial.begin()
        agent = trial.agent
        step = make(agent, c.batch)
        for draws in step.draws(1):
            step(*draws)
        learnt: list[Tensor] = [*agent.actor.parameters(), *agent.critic.parameters()]
        if agent.log_ent_coef is not None:
            learnt.append(agent.log_ent_coef)
        found.append([p.grad.detach() for p in learnt if p.grad is not None])
    return by_autograd(f"agent, {name}", *found)


def check_adversary_by_autograd(
    c: Configuration, dataset: OfflineDataset, device: str, score: str
) -> Check:
    """The gradients of the first update of a score that has its own written out."""
    c, dataset = few_rows(c, dataset)
    found: list[list[Tensor]] = []
    for reference in (False, True):
        trial = Trial.build(c, dataset, device, graphs=False)
        adversary = trial.adversary(score)
        assert adversary.explicit is not None
        if reference:
            adversary.explicit = None
        adversary.run(1, *policy_and_value(trial.agent))
        found.append([p.grad.detach() for p in adversary.parameters if p.grad is not None])
    return by_autograd(f"adversary, {score}", *found)


def check_rollout(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """The transitions of rollouts by the same actions with the same random numbers."""
    found: list[list[Tensor]] = []
    captured = False
    for graphs in along_paths(PATHS):
        world = Trial.build(c, dataset, device, graphs).env.world
        generator = torch.Generator(device).manual_seed(0)
        seen: list[Tensor] = []
        for _ in range(STEPS):
            shape = (c.starts, c.action_dim)
            action = 2.0 * torch.rand(shape, generator=generator, device=device) - 1.0
            out = world.advance(action)
            world.restart(out.done)
            seen += [out.next_obs, out.reward, out.terminated]
        found.append(seen)
        captured |= world._transition.captured
    return compared(f"{STEPS} rollout steps", found, captured, device)


@contextmanager
def captures(graphs: bool) -> Iterator[list[bool]]:
    """Whether steps made inside are captured, by attempt; without ``graphs`` none is tried."""
    found: list[bool] = []
    before, warm_up = GraphedStep._capture, adv_worldmodel.graphs.WARM_UP_CALLS

    def watched(step: GraphedStep, *arguments: Any) -> bool:
        found.append(before(step, *arguments))
        return found[-1]

    with patch.object(GraphedStep, "_capture", watched):
        adv_worldmodel.graphs.WARM_UP_CALLS = warm_up if graphs else sys.maxsize
        try:
            yield found
        finally:
            adv_worldmodel.graphs.WARM_UP_CALLS = warm_up


def few_rows(c: Configuration, dataset: OfflineDataset) -> tuple[Configuration, OfflineDataset]:
    """The same task, small: what follows is of the paths alone."""
    rows, starts = min(c.rows, FEW_ROWS), min(c.starts, FEW_STARTS)
    return replace(c, rows=rows, starts=starts), workload.first_rows(dataset, rows)


def check_fit(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """The ensemble after some steps of the maximum-likelihood fit."""
    c, dataset = few_rows(c, dataset)
    sizes = {"n_networks": c.n_members, "n_elites": c.n_members, "hidden_sizes": c.model_hidden}
    settings = FitSettings(**sizes, batch_size=c.batch, max_steps=UPDATES)  # type: ignore[arg-type]
    found, captured = [], False
    for graphs in along_paths(PATHS):
        with captures(graphs) as tries:
            model = fit_world_model(
                dataset, settings, termination="never", device=device, progress=False
            )
        found.append(list(model.ensemble.state_dict().values()))
        captured |= bool(tries) and all(tries)
    return compared("fit", found, captured, device)


def check_clone(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """The actor after two passes over the data; their last batches are short ones."""
    c, dataset = few_rows(c, dataset)
    found, captured = [], False
    for graphs in along_paths(PATHS):
        trial = Trial.build(c, dataset, device, graphs)
        with captures(graphs) as tries:
            trial.agent.clone(2, batch_size=c.batch)
        found.append(list(trial.agent.actor.state_dict().values()))
        captured |= bool(tries) and all(tries)
    return compared("cloning", found, captured, device)


def check_combo(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """COMBO's parameters: autograd inside the capture."""
    c, dataset = few_rows(c, dataset)
    trials = [Trial.build(c, dataset, device, graphs, kind=COMBO) for graphs in PATHS]
    for trial in along_paths(trials):
        trial.env.world._transition.enabled = False
        trial.begin()
        trial.agent.train(UPDATES, c.batch)
    step = trials[0].agent._step
    found = [parameters(trial.agent) for trial in trials]
    return compared("agent update, COMBO", found, step is not None and step.captured, device)


def check_warm_up(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """From an actor that is frozen to one that learns, and over a second ``learn``."""
    c, dataset = few_rows(c, dataset)
    settings = {"critic_warmup": 2, "ent_coef": "auto_0.05"}
    trials = [Trial.build(c, dataset, device, graphs, **settings) for graphs in PATHS]
    steps = []
    for trial in along_paths(trials):
        trial.env.world._transition.enabled = False
        trial.begin()
        trial.agent.train(UPDATES, c.batch)  # the second iteration, still of the critics alone
        steps.append(trial.agent._step)
        trial.agent.train(UPDATES, c.batch)
        steps.append(trial.agent._step)
        trial.begin()
        trial.agent.train(UPDATES, c.batch)
        steps.append(trial.agent._step)
    found = [parameters(trial.agent) for trial in trials]
    captured = all(step is not None and step.captured for step in steps[:3])
    return compared("critic warm-up and a second learn", found, captured, device)


def check_resumed(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """Parameters of a training that goes on from a snapshot: those of the undisturbed one."""
    c, dataset = few_rows(c, dataset)
    trial = Trial.build(c, dataset, device, graphs=True)
    agent = trial.agent
    trial.begin()
    agent.train(UPDATES, c.batch)
    snapshot = capture(agent, None)
    agent.train(UPDATES, c.batch)
    undisturbed = [tensor.detach().clone() for tensor in parameters(agent)]
    restore(agent, None, snapshot)
    agent._step = None  # as `learn` does
    agent.train(UPDATES, c.batch)
    captured = agent._step is not None and agent._step.captured
    found = (parameters(agent), undisturbed, undisturbed)
    return compared("a training that goes on from a snapshot", found, captured, device)


def check_adam(c: Configuration, dataset: OfflineDataset, device: str) -> Check:
    """Adam's step in pieces is torch's own, of parameters as wide as the networks."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((c.n_members, *c.model_hidden[-2:]), (2, *c.agent_hidden[-2:]), (2, 1, 1), (3,))
    first, other = (
        [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in shapes] for _ in range(2)
    )
    ours, theirs = (torch.optim.Adam(p, weight_decay=1e-4, fused=True) for p in (first, other))
    for _ in range(UPDATES):
        for mine, its in zip(first, other, strict=True):
            mine.grad = its.grad = torch.randn(mine.shape, generator=generator, device=device)
        theirs.step()
        step_directly(ours, cut=True) if is_plain_adam(ours) else ours.step()
    worst = difference(first, other)
    return Check("Adam in pieces", worst == 0.0, f"difference {worst:.1e} (at most 0)")


def waits(work: Callable[[], object], device: str) -> list[str]:
    """Where ``work`` waits for the device: file and line of each time."""
    with waits_for_the_device(cuda=device.startswith("cuda")) as places:
        work()
    return places


def check_waits(c: Configuration, dataset: OfflineDataset, device: str) -> Iterator[Check]:
    """Each phase of an iteration reads its metrics from the device once and nothing else."""
    trial = Trial.build(c, dataset, device, graphs=True)
    foes = policy_and_value(trial.agent)
    works: dict[str, Callable[[], object]] = {"rollout": trial.roll_out}
    for name, settings in AGENTS.items():
        one = trial if not settings else Trial.build(c, dataset, device, graphs=True, **settings)
        one.begin()
        works[f"agent update, {name}"] = partial(one.agent.train, UPDATES, c.batch)
    for score in (*SCORES, "auto"):
        auto = score == "auto"
        adversary = trial.adversary("member", "auto") if auto else trial.adversary(score)
        works[f"adversary update, {score}"] = partial(adversary.run, UPDATES, *foes)
    for name, work in works.items():
        work()  # captures
        found = waits(work, device)
        places = found[:6] if len(found) > 1 else []
        detail = "".join([f"{len(found)} (at most 1)", *(f"\n  {place}" for place in places)])
        yield Check(f"waits for the device: {name}", len(found) <= 1, detail)


def run_checks(c: Configuration, dataset: OfflineDataset, device: str) -> Iterator[Check]:
    """All of them; one that raises has not passed."""
    single: dict[str, Callable[[], Check]] = {}
    for name in AGENTS:
        single[f"agent update, {name}"] = partial(check_agent, c, dataset, device, name)
    single["rollout"] = partial(check_rollout, c, dataset, device)
    for score in SCORES:
        single[score] = partial(check_adversary, c, dataset, device, score)
    for name in AGENTS:
        single[f"autograd, {name}"] = partial(check_agent_by_autograd, c, dataset, device, name)
    for score in WRITTEN_OUT:
        name = f"autograd, {score}"
        single[name] = partial(check_adversary_by_autograd, c, dataset, device, score)
    others = (check_fit, check_clone, check_combo, check_warm_up, check_resumed, check_adam)
    for other in others:
        single[other.__name__] = partial(other, c, dataset, device)
    single["constraint"] = partial(check_adversary, c, dataset, device, "member", "auto")
    for name, check in single.items():
        try:
            yield check()
        except Exception as error:  # CUDA's are RuntimeErrors; none takes the other checks with it
            yield Check(name, False, f"{type(error).__name__}: {error}")
    try:
        yield from check_waits(c, dataset, device)
    except Exception as error:
        yield Check("waits for the device", False, f"{type(error).__name__}: {error}")
