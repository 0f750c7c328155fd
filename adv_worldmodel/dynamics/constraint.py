"""The constraint of P eq. 6 and 7 in place of a weight fixed by hand: dual ascent on lambda."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Where lambda starts: the paper's value.
START = 3e-4
#: lambda changes by at most this share per update: a factor e in 1000 updates.
RATE = 1e-3
#: Share of the past in the running mean.
SMOOTHING = 0.99
#: lambda's least value.
LEAST = 1e-8


class DualWeight:
    """The weight lambda of the adversarial loss, as the multiplier of a constraint.

    P's problem lowers the agent's value over models whose distance from the fit, on the data, is
    bounded. Here the distance is the excess of the model's mean negative log-likelihood on the
    data over that of the best fit so far, in nats per transition: at most ``xi``. By Pinsker's
    inequality a Kullback-Leibler divergence of xi bounds the total variation of P eq. 3 by
    sqrt(xi / 2). The best so far, and not the first: a fit that was stopped early goes on falling
    under adversarial updates, and what it gains is not the adversary's to spend.

    While the excess is below ``xi`` lambda grows, above it shrinks. Its speed and its size are
    bounded, since a model that moves faster than the critic can follow is no adversary any more.

    :param fit_nll: of the first fit, mean over members and data (nats per transition).
    :param xi: bound of the excess. :param largest: bound of lambda.
    """

    def __init__(self, fit_nll: float, xi: float, largest: float, device: torch.device) -> None:
        self.xi, self.largest = xi, largest
        #: log lambda, running mean of the likelihood and its least, ``()`` each, changed in place
        self.log_weight = torch.tensor(math.log(min(START, largest)), device=device)
        self.nll = torch.tensor(fit_nll, device=device)
        self.least_nll = self.nll.clone()

    @property
    def weight(self) -> Tensor:
        """lambda."""
        return self.log_weight.exp()

    @property
    def excess(self) -> Tensor:
        """Running mean of what the constraint bounds (nats per transition)."""
        return self.nll - self.least_nll

    def update(self, nll: Tensor) -> None:
        """One step of ascent, after a batch of data had this mean negative log-likelihood."""
        self.nll.lerp_(nll, 1.0 - SMOOTHING)
        torch.minimum(self.least_nll, self.nll, out=self.least_nll)
        slack = torch.clamp((self.xi - self.excess) / self.xi, -1.0, 1.0)
        self.log_weight.add_(slack, alpha=RATE)
        self.log_weight.clamp_(math.log(LEAST), math.log(self.largest))
