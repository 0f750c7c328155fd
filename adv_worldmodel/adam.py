"""Adam's step, spread over a whole GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adv_worldmodel.graphs import Branches

#: Numbers that one block of a GPU updates. Torch's own kernel gives it 65,536, and so updates a
#: layer of 256 x 256 on one of a hundred multiprocessors.
PIECE = 8192


def step_of(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``: the same numbers, for a fused Adam on a GPU in a quarter of the time.

    The parameters and their states are handed to torch's kernel in views of `PIECE` numbers.
    Another optimiser makes its own step.
    """
    on_gpu = all(p.is_cuda for group in optimizer.param_groups for p in group["params"])
    if on_gpu and can_be_cut(optimizer):
        step_in_pieces(optimizer)
    else:
        optimizer.step()


def can_be_cut(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is an Adam whose fused kernel can be handed pieces; not before its first step."""
    options = ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    return type(optimizer) is torch.optim.Adam and all(
        group["fused"]
        and not any(group.get(option) for option in options)
        and all(_is_ready(p, optimizer.state.get(p, {})) for p in group["params"])
        for group in optimizer.param_groups
    )


def _is_ready(parameter: Tensor, state: dict[str, Tensor]) -> bool:
    tensors = (parameter, parameter.grad, state.get("exp_avg"), state.get("exp_avg_sq"))
    return all(t is not None and t.is_contiguous() for t in tensors)


@torch.no_grad()
def step_in_pieces(optimizer: torch.optim.Optimizer) -> None:
    """The step of an optimiser for which `can_be_cut` holds."""
    branches = Branches(optimizer.param_groups[0]["params"][0].device)
    for group in optimizer.param_groups:
        with branches.beside():
            _step_group(group, optimizer.state)
    branches.join()


def _step_group(group: dict[str, Any], state_of: Mapping[Tensor, dict[str, Tensor]]) -> None:
    parameters: list[Tensor] = group["params"]
    states = [state_of[p] for p in parameters]
    steps: list[Tensor] = [state["step"] for state in states]
    torch._foreach_add_(steps, 1.0)

    def pieces(tensors: Iterable[Tensor | None]) -> list[Tensor]:
        return [piece for t in tensors if t is not None for piece in t.view(-1).split(PIECE)]

    counts = [
        step
        for parameter, step in zip(parameters, steps, strict=True)
        for _ in parameter.view(-1).split(PIECE)
    ]
    beta1, beta2 = group["betas"]
    torch._fused_adam_(  # what `Adam.step` calls
        pieces(parameters),
        pieces(p.grad for p in parameters),
        pieces(state["exp_avg"] for state in states),
        pieces(state["exp_avg_sq"] for state in states),
        [],
        counts,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
