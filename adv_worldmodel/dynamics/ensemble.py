"""Stacked Gaussian networks: all members of the ensemble are one batched product per layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_2PI = math.log(2.0 * math.pi)
INITIAL_MAX_LOGVAR, INITIAL_MIN_LOGVAR = 1.0, -6.0


class Ensemble(nn.Module):
    """E networks, each a diagonal Gaussian over targets y given inputs x.

    :param n_members: E, the number of networks.
    :param input_dim: length of x.
    :param output_dim: D, length of y.
    :param hidden_sizes: widths of the hidden layers, swish between them.
    :param generator: draws the initial weights; ``None`` leaves them at zero (to be loaded).

    The log-variance is softly bounded by learnable limits shared by the members, which keeps the
    variance finite away from the data.
    """

    #: outputs ``(D,)`` whose lower limit does not learn; ``None``: all learn. A constant target has
    #: no best variance: its limit would sink, and its likelihood rise, for ever.
    held: Tensor | None

    def __init__(
        self,
        n_members: int,
        input_dim: int,
        output_dim: int,
        hidden_sizes: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_members, self.input_dim, self.output_dim = n_members, input_dim, output_dim
        self.hidden_sizes = tuple(hidden_sizes)
        sizes = [input_dim, *hidden_sizes, 2 * output_dim]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            weight = torch.zeros(n_members, fan_in, fan_out, dtype=torch.float32, device="cpu")
            if generator is not None:
                std = 1.0 / (2.0 * math.sqrt(fan_in))
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            self.weights.append(nn.Parameter(weight))
            bias = torch.zeros(n_members, 1, fan_out, dtype=torch.float32, device="cpu")
            self.biases.append(nn.Parameter(bias))
        ones = torch.ones(output_dim, dtype=torch.float32, device="cpu")
        self.max_logvar = nn.Parameter(INITIAL_MAX_LOGVAR * ones)
        self.min_logvar = nn.Parameter(INITIAL_MIN_LOGVAR * ones)
        # follows from the model's scales, so no file holds it
        self.register_buffer("held", None, persistent=False)

    @property
    def lower_limit(self) -> Tensor:
        """``min_logvar``, through which no gradient reaches what is held."""
        if self.held is None:
            return self.min_logvar
        return torch.where(self.held, self.min_logvar.detach(), self.min_logvar)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, ``(E, B, D)`` each; x is ``(E, B, in)`` or ``(B, in)`` for all."""
        h = x if x.dim() == 3 else x.expand(self.n_members, *x.shape)
        inplace = not torch.is_grad_enabled()
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if i < last:
                h = F.silu(h, inplace=inplace)
        mean, logvar = h.chunk(2, dim=-1)
        logvar = self.max_logvar - F.softplus(self.max_logvar - logvar)
        low = self.lower_limit
        logvar = low + F.softplus(logvar - low)
        return mean, logvar

    def select(self, members: Sequence[int]) -> Ensemble:
        """A copy holding only the given members, in the given order."""
        index = list(members)
        chosen = Ensemble(len(index), self.input_dim, self.output_dim, self.hidden_sizes)
        chosen.to(self.max_logvar.device).load_state_dict(
            {  # the log-variance limits are shared
                name: value[index] if value.dim() == 3 else value
                for name, value in self.state_dict().items()
            }
        )
        chosen.held = self.held
        return chosen


def gaussian_log_density(y: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(y; mean, diag exp(logvar)), summed over the last dimension."""
    return -0.5 * ((y - mean).square() * torch.exp(-logvar) + logvar + LOG_2PI).sum(-1)


def mixture_log_density(y: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log-density of the uniform mixture of the E members, ``(E, B, D)`` to ``(B,)``.

    By logsumexp: an exponential of a log-density summed over many dimensions overflows.
    """
    log_p = gaussian_log_density(y, mean, logvar)
    return torch.logsumexp(log_p, dim=0) - math.log(mean.shape[0])


def n_slots(n_rows: int, n_members: int) -> int:
    """Places in E equal slabs that hold B rows: B rounded up to a multiple of E."""
    return -(-n_rows // n_members) * n_members


class MemberDraw:
    """Which member each of B rows uses, arranged so that every member gets one slab of rows.

    The rows are dealt to the members by a random permutation. Each row's member is uniform, and
    none gets more than ceil(B / E) rows, so that the drawn members are evaluated as one
    ``(E, ceil(B / E), .)`` product with at most E - 1 places empty and no count to read back from
    the device.

    :param slots: a random permutation of the :func:`n_slots` places; row i gets place
        ``slots[i]``, places beyond the rows stay empty.
    :param n_rows: B.
    :param n_members: E.
    """

    def __init__(self, slots: Tensor, n_rows: int, n_members: int) -> None:
        self.n_rows, self.n_members = n_rows, n_members
        self.slab = len(slots) // n_members
        self.slots, self.place = slots, slots[:n_rows]

    @classmethod
    def draw(cls, n_rows: int, n_members: int, generator: torch.Generator) -> MemberDraw:
        """Deal the rows by a permutation drawn from ``generator``."""
        n = n_slots(n_rows, n_members)
        slots = torch.randperm(n, generator=generator, device=generator.device)
        return cls(slots, n_rows, n_members)

    @cached_property
    def member(self) -> Tensor:
        """The member of each row, ``(B,)``."""
        return self.place // self.slab

    @cached_property
    def row(self) -> Tensor:
        """The row in each place, ``(E slab,)``; one without a row repeats row 0."""
        rows = torch.zeros_like(self.slots)
        rows[self.place] = torch.arange(self.n_rows, device=rows.device)
        return rows

    def redeal(self, rows: Tensor, generator: torch.Generator) -> MemberDraw:
        """Another draw, in which the rows where ``rows`` ``(B,)`` is false keep their member.

        The others get each other's places and those that hold no row. So they are no uniform draw:
        of the rows dealt together, each member gets about as many as it gave, and a row that is
        dealt alone, with no place empty, keeps its member.
        """
        free = torch.ones(len(self.slots), dtype=torch.bool, device=rows.device)
        free[: self.n_rows] = rows
        key = torch.rand(len(free), generator=generator, device=rows.device)
        # both orders put the free places first and leave the others where they were
        in_order = torch.argsort((~free).int(), stable=True)
        shuffled = torch.argsort(torch.where(free, key, 2.0), stable=True)
        slots = self.slots.clone()
        slots[in_order] = self.slots[shuffled]
        return MemberDraw(slots, self.n_rows, self.n_members)

    def scatter(self, x: Tensor) -> Tensor:
        """Rows ``(B, ...)`` into the members' slabs ``(E, slab, ...)``."""
        return x.index_select(0, self.row).reshape(self.n_members, self.slab, *x.shape[1:])

    def gather(self, x: Tensor) -> Tensor:
        """Slabs ``(E, slab, ...)`` back into rows ``(B, ...)``."""
        return x.reshape(self.n_members * self.slab, *x.shape[2:]).index_select(0, self.place)
