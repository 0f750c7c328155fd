"""Adam's step without torch's detours: on a CPU those of Python, on a GPU an idle device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from adv_worldmodel.graphs import Branches, hooks_of

#: Numbers that one block of a GPU updates. Torch's own kernel gives it 65,536, and so updates a
#: layer of 256 x 256 on one of a hundred multiprocessors.
PIECE = 8192
#: Added to the counts of steps on a CPU, where each would make a tensor of a number.
ONE = torch.ones((), dtype=torch.float32, device="cpu")


def step_of(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``: the same numbers, for a fused Adam on one device sooner.

    Before ``Adam.step`` calls its kernel it spends more time in Python than the kernel takes for
    networks like these. On a GPU the kernel is handed views of `PIECE` numbers besides, and takes a
    quarter of the time. Another optimiser, or one with hooks, makes its own step.
    """
    kinds = {p.device.type for group in optimizer.param_groups for p in group["params"]}
    if kinds in ({"cpu"}, {"cuda"}) and is_plain_adam(optimizer):
        step_directly(optimizer, cut=kinds == {"cuda"})
    else:
        optimizer.step()


def is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step counts and calls the fused kernel, no more; not before its first step."""
    options = ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    return (
        type(optimizer) is torch.optim.Adam
        and not _is_watched(optimizer)
        and all(
            group["fused"]
            and len({(p.device, p.dtype) for p in group["params"]}) == 1  # what a kernel takes
            and not any(group.get(option) for option in options)
            and all(_is_ready(p, optimizer.state.get(p, {})) for p in group["params"])
            for group in optimizer.param_groups
        )
    )


def _is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step is more than the class's: there are hooks, or a scheduler's wrapper."""
    hooks = hooks_of(optimizer), _global_optimizer_pre_hooks, _global_optimizer_post_hooks
    return any(hooks) or "step" in vars(optimizer)


def _is_ready(parameter: Tensor, state: Mapping[str, Tensor]) -> bool:
    tensors = (parameter, parameter.grad, state.get("exp_avg"), state.get("exp_avg_sq"))
    return all(t is not None and t.is_contiguous() for t in tensors)


@torch.no_grad()
def step_directly(optimizer: torch.optim.Optimizer, *, cut: bool) -> None:
    """The step of an optimiser for which `is_plain_adam` holds.

    :param cut: in views of `PIECE` numbers.
    """
    branches = Branches(optimizer.param_groups[0]["params"][0].device)
    for group in optimizer.param_groups:
        with branches.beside():
            _step_group(group, optimizer.state, cut)
    branches.join()


def _pieces_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of at most `PIECE` of a contiguous tensor's numbers."""
    pieces: tuple[Tensor, ...] = tensor.view(-1).split(PIECE)
    return pieces


def _step_group(
    group: dict[str, Any], state_of: Mapping[Tensor, dict[str, Tensor]], cut: bool
) -> None:
    parameters: list[Tensor] = group["params"]
    grads = [p.grad for p in parameters if p.grad is not None]
    states = [state_of[p] for p in parameters]
    moments = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    columns, steps = [parameters, grads, *moments], [state["step"] for state in states]
    if cut:
        torch._foreach_add_(steps, 1.0)
        columns = [[piece for t in column for piece in _pieces_of(t)] for column in columns]
        counted = zip(steps, parameters, strict=True)
        steps = [step for step, parameter in counted for _ in _pieces_of(parameter)]
    else:
        torch._foreach_add_(steps, ONE, alpha=1.0)
    numbers, grads, means, squares = columns
    beta1, beta2 = group["betas"]
    torch._fused_adam_(  # what `Adam.step` calls
        numbers,
        grads,
        means,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
