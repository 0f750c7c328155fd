"""A small adversary, one that watches itself, and how tests compare networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agents import RamboCallback

Make = Callable[..., Any]
ITERATION = 80  # transitions: 16 rows, 5 steps


def adversary(weight: float = 3e-2, updates: int = 5, **kwargs: Any) -> RamboCallback:
    return RamboCallback(weight, updates, batch_size=32, **kwargs)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (running statistics too), copied."""
    return copy.deepcopy(module.state_dict())


def gradients_of(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


class Watched(RamboCallback):
    """Checks at each rollout that the adversary left the agent alone; counts those that acted."""

    model_changes = 0
    rollouts = 0

    def _on_rollout_start(self) -> None:
        assert self.adversary is not None
        policy, world = self.model.policy, self.adversary.model
        before, gradients, dynamics = state_of(policy), gradients_of(policy), state_of(world)
        super()._on_rollout_start()
        assert equal(before, state_of(policy))
        for a, b in zip(gradients, gradients_of(policy), strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b)
        self.rollouts += 1
        self.model_changes += not equal(dynamics, state_of(world))
