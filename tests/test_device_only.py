"""An iteration stays on its device: it reads nothing back but its metrics, and sends nothing there.

On PyTorch's ``meta`` device, whose tensors have shapes and no values: what would wait for a GPU
(``item``, boolean indices, ``nonzero``) raises there, and `NothingFromTheHost` refuses the rest. So
the path that CUDA graphs capture is walked on machines without a GPU; ``make bench-gpu`` compares
its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adv_worldmodel import OfflineDataset
from adv_worldmodel.dynamics import Adversary, AdversarySettings
from agents import COMBO
from agents.explicit_updates import ExplicitSACUpdate
from agents.values import policy_and_value
from tests.benchmarks import workload
from tests.benchmarks.configuration import SCORES, SMALL
from tests.benchmarks.gpu_checks import AGENTS
from tests.benchmarks.kernels import (
    Kernels,
    kernels,
    meta_device,
    of_adversary,
    of_agent,
    trial_on_meta,
)

UPDATES = 2


class NothingFromTheHost(TorchDispatchMode):
    """Refuses operations on tensors of the host that read or give one of another device.

    Beside others a tensor of the host without dimensions is passed as a number, as on a GPU.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        read, given = (
            [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
            for tree in ((args, kwargs), out)
        )
        elsewhere = any(x.device.type != "cpu" for x in [*read, *given])
        arrays = [x for x in read if x.dim() > 0 or len(read) == 1]
        if elsewhere and any(x.device.type == "cpu" for x in arrays):
            raise RuntimeError(f"{func} of tensors of the host and of another device")
        return out


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return workload.gaussian_data(SMALL)


@pytest.fixture
def reads() -> Iterator[list[int]]:
    """How many numbers each call of ``tolist`` read; every other way of reading raises."""
    with meta_device() as found:
        yield found


def test_what_a_gpu_would_wait_for_raises() -> None:
    x, host = torch.ones(3, device="meta"), torch.ones(3)
    wrong: list[Callable[[], object]] = [
        lambda: x.sum().item(),
        lambda: bool((x > 0).any()),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x + host,
        lambda: x.copy_(host),
        lambda: x[torch.tensor([0])],
        lambda: host.to("meta"),
        lambda: torch.tensor(1.0).to("meta"),
    ]
    with NothingFromTheHost():
        for call in wrong:
            with pytest.raises((RuntimeError, NotImplementedError)):
                call()


def test_a_kernel_is_what_computes_on_the_device() -> None:
    with meta_device():
        x, host = torch.ones(4, 3, device="meta"), torch.ones(3)

        def work() -> None:
            torch.empty_like(x).copy_(x)
            (x.T @ x.view(4, 3)).sum()
            host + 1

        assert kernels(work) == Kernels(count=3, chain=3)


def test_written_out_gradients_take_fewer_kernels(dataset: OfflineDataset) -> None:
    with meta_device():
        for settings in AGENTS.values():
            now = of_agent(dataset, autograd=False, **settings)
            assert now.chain < now.count < of_agent(dataset, autograd=True, **settings).count
        for score in ("mixture", "member"):
            now = of_adversary(dataset, score, autograd=False)
            assert now.chain < now.count < of_adversary(dataset, score, autograd=True).count


@pytest.mark.parametrize(
    ("settings", "explicit"),
    [
        ({}, True),
        ({"ent_coef": 0.1, "real_ratio": 0.0}, True),
        ({"entropy_in_target": False, "real_ratio": 1.0}, True),
        ({"critic_warmup": 1}, True),  # over after the first
        ({"critic_warmup": 10}, True),
        ({"fresh_outcomes": True}, True),
        ({"cloning_weight": 0.1}, True),
        ({"networks": {"layer_norm": True, "n_critics": 4}}, True),
        ({"networks": {"activation_fn": torch.nn.Tanh}}, False),
        ({"kind": COMBO}, False),
    ],
)
def test_agent_updates_stay_on_the_device(
    dataset: OfflineDataset, reads: list[int], settings: dict[str, Any], explicit: bool
) -> None:
    trial = trial_on_meta(dataset, **settings)
    trial.roll_out()
    trial.agent.train(1, SMALL.batch)  # makes what lasts
    reads.clear()
    with NothingFromTheHost():
        trial.agent.train(UPDATES, SMALL.batch)
    assert reads == [len(trial.agent.metrics)]
    step = trial.agent._step
    assert step is not None
    assert isinstance(step.update, ExplicitSACUpdate) == explicit
    assert step.actor_frozen == (settings.get("critic_warmup") == 10)


@pytest.mark.parametrize("member_per", ["step", "rollout"])
@pytest.mark.parametrize("rollout_policy", ["current", "random"])
def test_rollouts_stay_on_the_device(
    dataset: OfflineDataset, reads: list[int], member_per: str, rollout_policy: str
) -> None:
    trial = trial_on_meta(dataset, member_per=member_per, rollout_policy=rollout_policy)
    trial.roll_out()
    reads.clear()
    with NothingFromTheHost():
        trial.roll_out()
    assert reads == [2]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("weight", [0.0, 3e-4, "auto"])
def test_adversary_updates_stay_on_the_device(
    dataset: OfflineDataset,
    reads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    score: Any,
    weight: Any,
) -> None:
    trial = trial_on_meta(dataset)
    # made once, from row numbers that are read
    rows = torch.arange(SMALL.rows, device="meta").split([SMALL.rows - 30, 30])
    monkeypatch.setattr(type(trial.model), "split", lambda *_: rows)
    settings = AdversarySettings(weight, score, SMALL.batch, continue_fit=True)
    adversary = Adversary(trial.model, dataset, settings, horizon=SMALL.horizon, seed=0)
    foes = policy_and_value(trial.agent)
    adversary.run(1, *foes)
    reads.clear()
    with NothingFromTheHost():
        metrics = adversary.run(UPDATES, *foes)
    assert reads == [7 if weight == "auto" else 5]
    assert "holdout_nll" in metrics
