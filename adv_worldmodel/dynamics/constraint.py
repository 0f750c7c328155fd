"""The constraint of P eq. 6 and 7 in place of a weight fixed by hand: dual ascent on lambda."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Where lambda starts: the paper's value.
START = 3e-4
#: lambda changes by at most this share per update: a factor e in 1000 updates.
RATE = 1e-3
#: Share of the past in the running mean of the likelihood now.
SMOOTHING = 0.99
#: Likewise for the slower mean whose minimum is the reference: no lucky minibatch sets it.
SETTLING = 0.999
#: lambda's least value.
LEAST = 1e-8


class DualWeight:
    """The weight lambda of the adversarial loss, as the multiplier of a constraint.

    P's problem lowers the agent's value over models whose distance from the maximum-likelihood
    model, on the data, is bounded. Here that distance is the excess of the negative log-likelihood
    (the members' mean, on the training rows) over the best that it has been, in nats per
    transition: at most ``xi``. It is P's divergence as far as the data are draws of the best model;
    between two models that fit the data equally well it sees nothing.

    The reference, the best, is initially the fit's. A fit that was stopped early goes on gaining
    likelihood under adversarial updates, by several nats; measured against the fit alone, lambda
    would then grow until the adversary had spent them all.

    It is the minimum of a mean over some 1000 updates. A shorter mean takes a lucky step for the
    best, and the next ordinary one for a violation: over 100 updates, alone or with a margin of xi,
    that switched the adversary off where the likelihood is restless. The price: while the model
    gains, the reference lies behind by what 900 updates gain, which can be many xi, and a model
    that loses likelihood as fast as it gained it loses that much before the bound reacts.

    While the excess is below ``xi`` lambda grows, above it shrinks. Its speed and its size are
    bounded, since a model that moves faster than the critic can follow is no adversary any more.

    :param fit_nll: the negative log-likelihood of each row of the data under the fit, ``(N,)``.
    :param xi: bound of the excess.
    :param largest: bound of lambda.
    """

    def __init__(self, fit_nll: Tensor, xi: float, largest: float) -> None:
        self.fit_nll, self.xi, self.largest = fit_nll, xi, largest
        #: log lambda, ``()``; like the others changed in place
        self.log_weight = fit_nll.new_tensor(math.log(min(START, largest)))
        #: running mean over some 100 updates of the negative log-likelihood, less the fit's
        self.recent = fit_nll.new_zeros(())
        #: likewise over some 1000
        self.settled = fit_nll.new_zeros(())
        #: the least that ``settled`` has been
        self.best = fit_nll.new_zeros(())

    @property
    def weight(self) -> Tensor:
        """lambda."""
        return self.log_weight.exp()

    @property
    def excess(self) -> Tensor:
        """By how much the likelihood now is below the best (nats per transition)."""
        return self.recent - self.best

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All that changes, by name."""
        for name in ("log_weight", "recent", "settled", "best"):
            yield name, getattr(self, name)

    def update(self, nll: Tensor, batch: Tensor) -> None:
        """One step of ascent, after rows ``batch`` had the mean negative log-likelihood ``nll``.

        The fit's on the same rows is taken off, and with it most of the noise of minibatches.
        """
        change = nll - self.fit_nll[batch].mean()
        self.recent.lerp_(change, 1.0 - SMOOTHING)
        self.settled.lerp_(change, 1.0 - SETTLING)
        torch.minimum(self.best, self.settled, out=self.best)
        slack = torch.clamp((self.xi - self.excess) / self.xi, -1.0, 1.0)
        self.log_weight.add_(slack, alpha=RATE)
        self.log_weight.clamp_(math.log(LEAST), math.log(self.largest))
