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
    data over that of the fit, in nats per transition: at most ``xi``. By Pinsker's inequality a
    Kullback-Leibler divergence of xi bounds the total variation of P eq. 3 by sqrt(xi / 2). A fit
    that was stopped early goes on gaining likelihood under adversarial updates; lambda then grows
    to ``largest``. (Measured against the best likelihood so far, the optimiser's own fluctuations
    count as excess, and switch the adversary off.)

    While the excess is below ``xi`` lambda grows, above it shrinks. Its speed and its size are
    bounded, since a model that moves faster than the critic can follow is no adversary any more.

    :param fit_nll: of the fit, mean over members and data (nats per transition).
    :param xi: bound of the excess. :param largest: bound of lambda.
    """

    def __init__(self, fit_nll: float, xi: float, largest: float, device: torch.device) -> None:
        self.fit_nll, self.xi, self.largest = fit_nll, xi, largest
        #: log lambda and running mean of the excess, ``()`` each, changed in place
        self.log_weight = torch.tensor(math.log(min(START, largest)), device=device)
        self.excess = torch.zeros((), device=device)

    @property
    def weight(self) -> Tensor:
        """lambda."""
        return self.log_weight.exp()

    def update(self, nll: Tensor) -> None:
        """One step of ascent, after a batch of data had this mean negative log-likelihood."""
        self.excess.lerp_(nll - self.fit_nll, 1.0 - SMOOTHING)
        slack = torch.clamp((self.xi - self.excess) / self.xi, -1.0, 1.0)
        self.log_weight.add_(slack, alpha=RATE)
        self.log_weight.clamp_(math.log(LEAST), math.log(self.largest))
