"""Branches of an update may run at once: checked without a GPU.

On PyTorch's ``meta`` device each operation is watched. What a branch reads, nothing else may write
before the branch is joined; what it writes, nothing else may touch; and no memory that it uses may
be given back before, since the next tensor would get it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adv_worldmodel import OfflineDataset, WorldModel
from adv_worldmodel.adam import step_directly
from adv_worldmodel.dynamics.adversary import Draws
from adv_worldmodel.graphs import Branches
from agents.values import policy_and_value
from tests.benchmarks import workload
from tests.benchmarks.configuration import SCORES, SMALL
from tests.benchmarks.kernels import branches_of, meta_device, trial_on_meta


def storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


@dataclass(eq=False)
class Piece:
    """What a branch has used, by the storage's number; a weak reference keeps that number its."""

    owner: Branches
    held: tuple[object, ...] = ()
    read: dict[int, StorageWeakRef] = field(default_factory=dict)
    written: dict[int, StorageWeakRef] = field(default_factory=dict)
    made: dict[int, StorageWeakRef] = field(default_factory=dict)

    def add(self, *used: dict[int, StorageWeakRef]) -> None:
        """More that is read, written and made."""
        for mine, more in zip((self.read, self.written, self.made), used, strict=True):
            mine |= more


class Races(TorchDispatchMode):
    """Notes what would be a race if every branch ran as late as it may."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.pieces = 0
        self._open: list[Piece] = []
        self._inside: list[Piece] = []

    @contextmanager
    def beside(self, owner: Branches, *held: object) -> Iterator[None]:
        piece = Piece(owner, held)
        self.pieces += 1
        self._open.append(piece)
        self._inside.append(piece)
        yield
        self._inside.pop()

    def join(self, owner: Branches) -> None:
        for piece in [p for p in self._open if p.owner is owner]:
            self._open.remove(piece)
            used = piece.read | piece.written
            for number, ref in used.items():
                if number not in piece.made and ref.expired():
                    self.found.append("memory that a branch uses was given back")
            if self._inside:  # it is part of the branch that it was made in
                self._inside[-1].add(piece.read, piece.written, piece.made)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        read, written = {}, {}
        for argument, value in self._arguments(func, args, kwargs):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor):
                    ref = storage(tensor)
                    (written if writes else read)[ref.cdata] = ref
        made = {
            ref.cdata: ref
            for ref in (storage(t) for t in tree_leaves(out) if isinstance(t, Tensor))
            if ref.cdata not in read and ref.cdata not in written
        }
        for piece in self._open:
            if piece not in self._inside:
                self._compare(str(func), piece, read, written)
        if self._inside:
            self._inside[-1].add(read, written, made)
        return out

    @staticmethod
    def _arguments(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        for i, argument in enumerate(func._schema.arguments):
            if i < len(args):
                yield argument, args[i]
            elif argument.name in kwargs:
                yield argument, kwargs[argument.name]

    def _compare(
        self,
        name: str,
        piece: Piece,
        read: dict[int, StorageWeakRef],
        written: dict[int, StorageWeakRef],
    ) -> None:
        if written.keys() & (piece.read | piece.written).keys():
            self.found.append(f"{name} writes what a branch uses")
        if read.keys() & (piece.written | piece.made).keys():
            self.found.append(f"{name} reads what a branch writes")


@contextmanager
def watched() -> Iterator[Races]:
    """Watches what is done inside."""
    races = Races()
    with branches_of(races), races:
        yield races
    assert races._open == []


def pieces() -> tuple[Branches, Tensor, Tensor]:
    return Branches(torch.device("cpu")), torch.ones(3), torch.ones(3)


def test_what_a_branch_reads_must_not_be_written() -> None:
    with watched() as races:
        branches, x, y = pieces()
        with branches.beside():
            y.copy_(x)
        x.add_(1.0)
        branches.join()
    assert races.found == ["aten.add_.Tensor writes what a branch uses"]


def test_what_a_branch_writes_must_not_be_read() -> None:
    with watched() as races:
        branches, x, y = pieces()
        with branches.beside():
            y.copy_(x)
            z = x * 2.0
        y.sum()
        z.sum()
        branches.join()
        y.sum()
    assert races.found == ["aten.sum.default reads what a branch writes"] * 2


def test_two_branches_must_not_write_the_same() -> None:
    with watched() as races:
        branches, x, y = pieces()
        for _ in range(2):
            with branches.beside():
                torch.add(x, 1.0, out=y)
        branches.join()
    assert races.found == ["aten.add.out writes what a branch uses"]


@pytest.mark.parametrize("is_held", [False, True])
def test_what_a_branch_reads_must_be_kept(is_held: bool) -> None:
    with watched() as races:
        branches, x, y = pieces()
        temporary = x + 1.0
        with branches.beside(*[temporary] * is_held):
            y.copy_(temporary)
        del temporary
        branches.join()
    assert races.found == ([] if is_held else ["memory that a branch uses was given back"])


def test_what_a_branch_makes_for_itself_may_go() -> None:
    with watched() as races:
        branches, x, y = pieces()
        with branches.beside():
            inner = Branches(y.device)
            with inner.beside():
                y.copy_(x + 1.0)
            inner.join()
            y.add_(1.0)
        branches.join()
    assert races.found == []
    assert races.pieces == 2


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return workload.gaussian_data(SMALL)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ent_coef": 0.1, "real_ratio": 0.0},
        {"critic_warmup": 10},
        {"cloning_weight": 0.1, "ent_coef": "auto_0.05", "fresh_outcomes": True},
        {"networks": {"layer_norm": True, "n_critics": 3}, "cloning_weight": 0.1},
    ],
)
def test_branches_of_the_agent_s_update_do_not_race(
    dataset: OfflineDataset, settings: dict[str, Any]
) -> None:
    with meta_device():
        trial = trial_on_meta(dataset, **settings)
        trial.roll_out()
        trial.agent.train(1, SMALL.batch)
        with watched() as races:
            trial.agent.train(2, SMALL.batch)
    assert races.found == []
    assert races.pieces > 10


@pytest.mark.parametrize("score", [*SCORES, "auto"])
def test_branches_of_the_adversary_s_update_do_not_race(
    dataset: OfflineDataset, score: str
) -> None:
    with meta_device():
        trial = trial_on_meta(dataset)
        rows = torch.arange(SMALL.rows, device="meta").split([SMALL.rows - 30, 30])
        with patch.object(WorldModel, "split", lambda *_: rows):
            weight = "auto" if score == "auto" else 1.0
            adversary = trial.adversary("member" if score == "auto" else score, weight)  # type: ignore[arg-type]
        foes = policy_and_value(trial.agent)
        draws = Draws(*(column[0] for column in adversary.draw(1)))
        adversary.update(draws, *foes)
        with watched() as races:
            adversary.update(draws, *foes)
            adversary.update(draws, *foes)
    assert races.found == []
    assert races.pieces >= 2 * (3 if score == "pathwise" else 10)


def test_groups_of_adam_s_step_do_not_race() -> None:
    parameters = [torch.nn.Parameter(torch.ones(70, 50)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.Adam([{"params": [p]} for p in parameters], fused=True)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # makes the states
    with watched() as races:
        step_directly(optimizer, cut=True)
    assert races.found == []
    assert races.pieces == 2
