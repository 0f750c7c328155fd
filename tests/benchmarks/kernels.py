"""Kernels per update on a GPU, counted without one: ``python -m tests.benchmarks.kernels``.

The updates run on PyTorch's ``meta`` device, whose tensors have shapes and no values; every
operation that would compute something is counted, as one kernel unless it is known to be several.
What an update has to wait for is the longest chain of them: those of branches run at once.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from adv_worldmodel.dynamics.adversary import Draws
from adv_worldmodel.dynamics.model_gradient import Score
from adv_worldmodel.graphs import SIDE_STREAMS, Branches
from agents import RAMBO
from agents.agent_step import AgentStep
from agents.values import policy_and_value
from tests.benchmarks import workload
from tests.benchmarks.configuration import SCORES, SMALL, Configuration
from tests.benchmarks.gpu_checks import AGENTS, Trial
from tests.benchmarks.report import table

#: As many layers as in the paper.
DEEP = replace(SMALL, agent_hidden=(16,) * 2, model_hidden=(12,) * 4)
ADAM = torch.optim.Adam
#: Of a fused Adam step: one for its counters, one for all parameters.
KERNELS_OF_ADAM = 2
#: Of operations that are several; a batched product first copies what it is added to.
KERNELS = {"aten::baddbmm": 2, "aten::logsumexp": 9}
#: Operations that give memory and compute nothing.
ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")


@contextmanager
def meta_device() -> Iterator[list[int]]:
    """Give the ``meta`` device what a GPU has: generators, and a fused Adam, which does nothing.

    Yields how many numbers each call of ``tolist`` has read; every other way of reading raises.
    """
    found: list[int] = []

    def tolist(tensor: Tensor) -> Any:
        found.append(tensor.numel())
        return torch.zeros(tensor.shape).numpy().tolist()

    class Generator(torch.Generator):
        device = torch.device("meta")

        def __new__(cls, device: Any = "meta") -> Any:
            return super().__new__(cls)

    def without_fused(*args: Any, fused: bool | None = None, **kwargs: Any) -> torch.optim.Adam:
        return ADAM(*args, **kwargs)

    with ExitStack() as patches:
        patches.enter_context(patch.object(torch.optim, "Adam", without_fused))
        patches.enter_context(patch.object(torch, "Generator", Generator))
        patches.enter_context(patch.object(Tensor, "tolist", tolist))
        yield found


def trial_on_meta(
    dataset: OfflineDataset,
    kind: type[RAMBO] = RAMBO,
    networks: dict[str, Any] | None = None,
    member_per: Any = "step",
    c: Configuration = SMALL,
    **settings: Any,
) -> Trial:
    """An agent in a world model, by default small, inside :func:`meta_device`."""
    model = workload.world_model(c, dataset, "hopper", "meta")
    env = make_sb3_env(
        dataset, c.starts, c.horizon, world_model=model, member_per=member_per, seed=0
    )
    policy_kwargs = {"net_arch": list(c.agent_hidden), "optimizer_kwargs": {}, **(networks or {})}
    agent = kind("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, **settings)
    agent.set_logger(Logger(None, []))
    agent._total_timesteps = agent.timesteps_per_iteration  # what `learn` sets
    return Trial(c, dataset, model, agent, graphs=True)


@dataclass(frozen=True)
class Kernels:
    """Of an update."""

    count: int  #: all of them
    chain: int  #: of the longest chain, in which each waits for the one before

    def __str__(self) -> str:
        return f"{self.count} / {self.chain}"


class KernelCount(TorchDispatchMode):
    """Counts operations of the ``meta`` device that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        #: kernels that the next one has to wait for, one after the other
        self.chain = 0
        #: the same at the end of each side stream
        self._side = dict.fromkeys(range(SIDE_STREAMS), 0)
        self._turns = itertools.count()
        #: of the pieces that a group of branches has begun
        self._ends: WeakKeyDictionary[Branches, list[int]] = WeakKeyDictionary()

    def found(self) -> Kernels:
        """What has been counted."""
        return Kernels(self.count, self.chain)

    def _add(self, n: int) -> None:
        self.count += n
        self.chain += n

    @contextmanager
    def beside(self, branches: Branches, *_: object) -> Iterator[None]:
        """In place of the branches' own, which do nothing without a GPU."""
        ends = self._ends.setdefault(branches, [])
        stream = next(self._turns) % SIDE_STREAMS
        outside, self.chain = self.chain, max(self.chain, self._side[stream])
        yield
        ends.append(self.chain)
        self._side[stream], self.chain = self.chain, outside

    def join(self, branches: Branches) -> None:
        """Likewise."""
        self.chain = max([self.chain, *self._ends.pop(branches, [])])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        on_device = any(x.device.type == "meta" for x in tensors)
        name = func.name().split(".")[0]
        if on_device and not func.is_view and name not in ALLOCATIONS:
            self._add(KERNELS.get(name, 1))
        return out

    def adam_step(self, *_: object) -> None:
        """In place of Adam's, which is not fused on the ``meta`` device."""
        self._add(KERNELS_OF_ADAM)


def branches_of(watcher: Any) -> Any:
    """A patch of all branches: ``watcher`` has their methods, and is given them first."""
    return patch.multiple(  # looked up on the class, so that they get their object
        Branches,
        beside=lambda branches, *held: watcher.beside(branches, *held),
        join=lambda branches: watcher.join(branches),
    )


def kernels(update: Callable[[], object]) -> Kernels:
    """Of one call; the first one, which makes what lasts, is not counted."""
    update()
    counter = KernelCount()
    with counter, patch.object(ADAM, "step", counter.adam_step), branches_of(counter):
        update()
    return counter.found()


def of_agent(dataset: OfflineDataset, *, autograd: bool, **settings: Any) -> Kernels:
    """Kernels of an agent's update, the gathering of its batch included."""
    trial = trial_on_meta(dataset, c=DEEP, **settings)
    trial.roll_out()
    make = workload.autograd_step if autograd else AgentStep
    step = make(trial.agent, DEEP.batch)
    (draws,) = step.draws(1)
    return kernels(lambda: step(*draws))


def of_adversary(dataset: OfflineDataset, score: Score, *, autograd: bool) -> Kernels:
    """Kernels of an adversarial update of the model."""
    trial = trial_on_meta(dataset, c=DEEP)
    rows = torch.arange(DEEP.rows, device="meta").split([DEEP.rows - 30, 30])
    with patch.object(WorldModel, "split", lambda *_: rows):
        adversary = trial.adversary(score)
    if autograd:
        adversary.explicit = None
    foes = policy_and_value(trial.agent)
    draws = Draws(*(column[0] for column in adversary.draw(1)))
    return kernels(lambda: adversary.update(draws, *foes))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Count the kernels of each update, without a GPU.")
    parser.parse_args()
    rows = [("kernels per update, all / longest chain", "autograd", "now", "")]
    with meta_device():
        dataset = workload.gaussian_data(DEEP)
        for score in SCORES:
            before, now = (
                of_adversary(dataset, cast(Score, score), autograd=way) for way in (True, False)
            )
            rows.append((f"adversary, {score}", str(before), str(now), ""))
        preset = {key: v for key, v in AGENTS["fast"].items() if key != "fresh_outcomes"}
        agents = {"the paper's": AGENTS["paper"], "fast": preset, "fresh outcomes": AGENTS["fast"]}
        for name, settings in agents.items():
            before, now = (of_agent(dataset, autograd=way, **settings) for way in (True, False))
            rows.append((f"agent, {name}", str(before), str(now), ""))
    print(table(rows))


if __name__ == "__main__":
    main()
