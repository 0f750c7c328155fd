"""Adam's direct step is torch's own, and is taken only where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adv_worldmodel.adam import is_plain_adam, step_directly, step_of


def optimizers() -> list[tuple[list[torch.nn.Parameter], torch.optim.Adam]]:
    """Two alike, of two groups."""
    found = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        shapes = ((70, 50), (2, 64, 64), (3,), ())
        parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes
        ]
        groups: list[dict[str, Any]] = [
            {"params": parameters[:1], "weight_decay": 0.1, "betas": (0.8, 0.99)},
            {"params": parameters[1:], "lr": 0.1, "eps": 1e-3},
        ]
        found.append((parameters, torch.optim.Adam(groups, lr=0.01, fused=True)))
    return found


def stepped_once() -> tuple[list[torch.nn.Parameter], torch.optim.Adam]:
    (parameters, optimizer), _ = optimizers()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("cut", [False, True])
def test_the_direct_step_is_torch_s_to_the_last_bit(
    cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adv_worldmodel.adam.PIECE", 1000)  # no divisor of the sizes
    (ours, direct), (theirs, whole) = optimizers()
    assert not is_plain_adam(direct)
    for i in range(10):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            its.grad = mine.grad.clone()
        whole.step()
        if i == 0:
            direct.step()  # makes the states
            continue
        assert is_plain_adam(direct)
        step_directly(direct, cut=cut)
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)
    state, other = direct.state_dict()["state"], whole.state_dict()["state"]
    for i, values in other.items():
        assert all(torch.equal(value, state[i][name]) for name, value in values.items())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"fused": True, "amsgrad": True}),
        (torch.optim.Adam, {"fused": True, "maximize": True}),
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {}),
    ],
)
def test_other_optimisers_make_their_own_step(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([parameter], lr=0.1, **options)
    for _ in range(2):
        parameter.grad = torch.ones(3)
        optimizer.step()
    assert not is_plain_adam(optimizer)


def test_parameters_without_a_gradient_are_left_to_torch() -> None:
    parameters, optimizer = stepped_once()
    parameters[0].grad = None
    assert not is_plain_adam(optimizer)


def test_groups_that_the_kernel_does_not_take_are_left_to_torch() -> None:
    mixed = [torch.nn.Parameter(torch.ones(3, dtype=t)) for t in (torch.float32, torch.float64)]
    for parameters in (mixed, []):
        other = torch.nn.Parameter(torch.ones(2))
        groups: list[dict[str, Any]] = [{"params": [other]}, {"params": parameters}]
        optimizer = torch.optim.Adam(groups, fused=True)
        for _ in range(2):
            for parameter in (other, *parameters):
                parameter.grad = torch.ones_like(parameter)
            step_of(optimizer)
        assert not is_plain_adam(optimizer)
        assert float(optimizer.state[other]["step"]) == 2.0


def test_what_happens_around_a_step_still_happens() -> None:
    _, optimizer = stepped_once()
    seen: list[str] = []
    hook = optimizer.register_step_post_hook(lambda *_: seen.append("its own"))
    step_of(optimizer)
    hook.remove()
    for_all = register_optimizer_step_pre_hook(lambda *_: seen.append("all"))
    step_of(optimizer)
    for_all.remove()
    assert seen == ["its own", "all"]
    assert is_plain_adam(optimizer)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert not is_plain_adam(optimizer)  # the scheduler counts its steps


def test_a_step_on_a_cpu_is_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, optimizer = stepped_once()
    before = [parameter.clone() for parameter in parameters]
    monkeypatch.delattr(torch.optim.Adam, "step")
    step_of(optimizer)
    pairs = zip(parameters, before, strict=True)
    assert all((now != was).all() for now, was in pairs)
