"""The adversarial update's gradients written out, in memory that is allocated once.

The same numbers as autograd's of :func:`adv_worldmodel.dynamics.model_gradient.model_gradient`,
which says what is computed and is the reference in the tests. With a score function both of its
losses are sums of Gaussian log-densities, whose weights carry no gradient: one formula serves the
rows of the data and those of the model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from adv_worldmodel.dynamics.ensemble import LOG_2PI, Ensemble, MemberDraw, n_slots
from adv_worldmodel.dynamics.likelihood import LOGVAR_LIMIT_WEIGHT, logvar_limits_loss
from adv_worldmodel.dynamics.model_gradient import (
    AdversarySettings,
    ModelGradient,
    drawn_moments,
    model_rows,
    outcome_of,
)
from adv_worldmodel.dynamics.world_model import WorldModel
from adv_worldmodel.graphs import Branches
from adv_worldmodel.protocols import ValueFunction


class ExplicitEnsemble:
    """:class:`Ensemble` on batches of one size, forward and back.

    :param n_rows: R, rows per member.
    """

    def __init__(self, ensemble: Ensemble, n_rows: int) -> None:
        self.ensemble = ensemble
        self.weights, self.biases = list(ensemble.weights), list(ensemble.biases)
        self.grads = {p: torch.zeros_like(p) for p in ensemble.parameters()}
        *linear, self.output = [
            w.detach().new_empty(ensemble.n_members, n_rows, w.shape[2]) for w in self.weights
        ]
        #: before the swish, ``(E, R, width)`` each
        self.linear = linear
        #: after it
        self.hidden = [torch.empty_like(h) for h in linear]
        #: the gradients of ``linear``; a GPU reads ``hidden`` while they are written
        self.deltas = self.hidden
        if ensemble.max_logvar.device.type != "cpu":
            self.deltas = [torch.empty_like(h) for h in linear]
        self.x = self.output  # of the last call of `forward`

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``(E, R, D)`` of ``(E, R, in)``; the next call overwrites them."""
        h = self.x = x
        for weight, bias, linear, hidden in zip(
            self.weights, self.biases, self.linear, self.hidden, strict=False
        ):
            h = torch.ops.aten.silu.out(torch.baddbmm(bias, h, weight, out=linear), out=hidden)
        torch.baddbmm(self.biases[-1], h, self.weights[-1], out=self.output)
        mean, logvar = self.output.chunk(2, dim=-1)
        high, low = self.ensemble.max_logvar, self.ensemble.min_logvar
        self.below_max = high - logvar
        logvar = high - F.softplus(self.below_max)
        self.above_min = logvar - low
        return mean, low + F.softplus(self.above_min)

    def backward(self, mean_grad: Tensor, logvar_grad: Tensor) -> None:
        """Write the parameters' ``grad``, of a loss with these gradients ``(E, R, D)``.

        That of the loss on the log-variance limits is added to them.
        """
        branches = Branches(mean_grad.device)
        for parameter, grad in self.grads.items():
            parameter.grad = grad
        capped = torch.ops.aten.softplus_backward(logvar_grad, self.above_min, 1, 20)
        raw = torch.ops.aten.softplus_backward(capped, self.below_max, 1, 20)
        high, low = self.ensemble.max_logvar, self.ensemble.min_logvar
        with branches.beside(logvar_grad):
            torch.sum(capped - raw, (0, 1), out=self.grads[high]).add_(LOGVAR_LIMIT_WEIGHT)
            torch.sum(logvar_grad - capped, (0, 1), out=self.grads[low]).sub_(LOGVAR_LIMIT_WEIGHT)
            if self.ensemble.held is not None:
                self.grads[low].masked_fill_(self.ensemble.held, 0.0)
        delta = torch.cat([mean_grad, raw], dim=-1)
        for i in reversed(range(len(self.weights))):
            weight, bias = self.weights[i], self.biases[i]
            below = self.hidden[i - 1] if i > 0 else self.x
            with branches.beside(delta):
                torch.bmm(below.transpose(1, 2), delta, out=self.grads[weight])
            with branches.beside():
                torch.sum(delta, 1, keepdim=True, out=self.grads[bias])
            if i > 0:
                delta = torch.bmm(delta, weight.transpose(1, 2), out=self.deltas[i - 1])
                torch.ops.aten.silu_backward.grad_input(delta, self.linear[i - 1], grad_input=delta)
        branches.join()


class ExplicitModelGradient:
    """:func:`model_gradient` for score functions, and the gradients of lambda L_adv + L_sup.

    :param settings: their ``score`` is ``mixture`` or ``member``.
    """

    def __init__(self, model: WorldModel, settings: AdversarySettings, gamma: float) -> None:
        self.model, self.settings, self.gamma = model, settings, gamma
        self.mixture = settings.score == "mixture"
        n, members = settings.batch_size, model.n_members
        #: rows of a member that come from the model; those of the data follow
        self.n_rows = n if self.mixture else n_slots(n, members) // members
        self.networks = ExplicitEnsemble(model.ensemble, self.n_rows + n)
        #: derivative of the loss in each row's misfit, (E, R); constant for the data's rows
        self.pull = model.target_mean.new_full(
            (members, self.n_rows + n), 1.0 / (n * model.ensemble.output_dim)
        )

    @torch.no_grad()
    def __call__(
        self,
        obs: Tensor,
        action: Tensor,
        value: ValueFunction,
        members: MemberDraw,
        noise: Tensor,
        real: tuple[Tensor, Tensor],
        weight: float | Tensor,
    ) -> tuple[ModelGradient, Tensor]:
        """Estimate, and write the ensemble's gradients of ``weight`` L_adv + L_sup.

        Batches of the settings' size; otherwise see :func:`model_gradient`.
        """
        model, score, k = self.model, self.settings.score, self.n_rows
        inputs, targets = real
        n, n_targets = targets.shape
        action = torch.clamp(action, model.action_low, model.action_high)
        branches = Branches(obs.device)
        with branches.beside():
            baseline = value.q(obs, action) if self.settings.baseline else None
        rows = [model_rows(model, obs, action, members, score), self._for_all(inputs)]
        mean, logvar = self.networks.forward(torch.cat(rows, dim=1))
        mu, lv = drawn_moments(mean[:, :k], logvar[:, :k], members, score)
        y = torch.addcmul(mu, noise, torch.exp(0.5 * lv))
        branches.join()
        outcome = outcome_of(
            model, obs, action, y, value, self.gamma, baseline, normalise=self.settings.normalise
        )

        sampled = self._for_all(y) if self.mixture else members.scatter(y)
        error = torch.cat([sampled, self._for_all(targets)], dim=1) - mean
        scaled = error / torch.exp(logvar)
        squares = scaled * error
        misfit = (squares + logvar).sum(-1)  # -2 log N(y), less a constant
        log_p, constant = -0.5 * misfit[:, :k], 0.5 * n_targets * LOG_2PI
        if self.mixture:
            log_share = torch.log_softmax(log_p, dim=0)
            share = log_share.exp() * outcome.advantage
        else:  # a place without a row pulls at nothing
            share = log_p.new_zeros(log_p.numel())
            share = share.index_copy_(0, members.place, outcome.advantage).view_as(log_p)
        torch.mul(share, -0.5 * weight / n, out=self.pull[:, :k])
        pull = self.pull.unsqueeze(-1)
        with branches.beside():
            if self.mixture:
                # what the greatest lost is the logarithm of the sum (`logsumexp` is nine kernels)
                of_rows = log_p.amax(0) - log_share.amax(0) - (math.log(len(log_p)) + constant)
            else:
                of_rows = members.gather(log_p) - constant
            loss = (outcome.advantage * of_rows).mean()
            supervised = misfit[:, k:].sum() / (n * n_targets) + logvar_limits_loss(model.ensemble)
        logvar_grad = torch.addcmul(pull, pull, squares, value=-1.0)
        self.networks.backward(-2.0 * pull * scaled, logvar_grad)
        branches.join()
        return ModelGradient(loss, *outcome[1:]), supervised

    def _for_all(self, x: Tensor) -> Tensor:
        return x.expand(self.model.n_members, -1, -1)
