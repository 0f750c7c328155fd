"""The adversarial update's gradients written out, in memory that is allocated once.

The same numbers as autograd's of :func:`adv_worldmodel.dynamics.model_gradient.model_gradient`,
which says what is computed and is the reference in the tests. With a score function both of its
losses are sums of Gaussian log-densities, whose weights carry no gradient: one formula serves the
rows of the data and those of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from adv_worldmodel.dynamics.ensemble import LOG_2PI, Ensemble, MemberDraw, n_slots
from adv_worldmodel.dynamics.likelihood import LOGVAR_LIMIT_WEIGHT, logvar_limits_loss
from adv_worldmodel.dynamics.model_gradient import (
    AdversarySettings,
    ModelGradient,
    outcome_of,
)
from adv_worldmodel.dynamics.world_model import WorldModel
from adv_worldmodel.graphs import Branches
from adv_worldmodel.products import add_product, begin_biases
from adv_worldmodel.protocols import ValueFunction


def swish_is_one_kernel(x: Tensor) -> bool:
    """Whether the swish and its derivative are torch's own: not on a CPU, where the sigmoid is kept
    between the two, since its exponential takes longer than all else of them.
    """
    return x.device.type != "cpu"


class ExplicitEnsemble:
    """:class:`Ensemble` on batches of one size, forward and back.

    :param n_rows: R, rows per member.
    """

    def __init__(self, ensemble: Ensemble, n_rows: int) -> None:
        self.ensemble = ensemble
        self.weights, self.biases = list(ensemble.weights), list(ensemble.biases)
        self.grads = {p: torch.zeros_like(p) for p in ensemble.parameters()}
        *linear, output = [
            w.detach().new_empty(ensemble.n_members, n_rows, w.shape[2]) for w in self.weights
        ]
        #: mean and log-variance ``(E, R, 2 D)``
        self.output = output
        in_one = swish_is_one_kernel(output)
        others = ([torch.empty_like(h) for h in linear] for _ in range(2))
        #: before the swish, ``(E, R, width)`` each
        self.linear = linear
        #: the swish's sigmoid, where it is kept
        self.gates = [] if in_one else next(others)
        #: after it; where the sigmoid is kept, in the place of ``linear``
        self.hidden = next(others) if in_one else linear
        #: the gradients of ``linear``; a GPU reads ``hidden`` while they are written
        self.deltas = next(others) if in_one else linear
        self.one = output.new_ones(())
        self.x = self.output  # of the last call of `forward`

    def prepare(self) -> Branches:
        """What :meth:`forward` does before it needs a batch: begun, for it to wait for."""
        branches = begin_biases([*self.linear, self.output], self.biases)
        with branches.beside():
            self.range = self.ensemble.max_logvar - self.ensemble.min_logvar
        return branches

    def forward(self, x: Tensor, prepared: Branches) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``(E, R, D)`` of ``(E, R, in)``; the next call overwrites them."""
        h = self.x = x
        prepared.join()
        for i, linear in enumerate(self.linear):
            add_product(linear, self.biases[i], h, self.weights[i])
            if self.gates:
                h = linear.mul_(torch.sigmoid(linear, out=self.gates[i]))
            else:
                h = torch.ops.aten.silu.out(linear, out=self.hidden[i])
        output = add_product(self.output, self.biases[-1], h, self.weights[-1])
        mean, logvar = output.chunk(2, dim=-1)
        high, low = self.ensemble.max_logvar, self.ensemble.min_logvar
        self.below_max = high - logvar
        self.above_min = self.range - F.softplus(self.below_max)
        return mean, torch.add(low, F.softplus(self.above_min), out=logvar)

    def keep_slopes(self, of_mean: Tensor, of_logvar: Tensor) -> None:
        """Keep the derivatives of each row's term in its mean and log-variance, ``(E, R, D)`` each.

        They need not wait for the loss's derivatives in those terms, which :meth:`backward` takes.
        """
        capped = torch.ops.aten.softplus_backward(of_logvar, self.above_min, 1, 20)
        raw = torch.ops.aten.softplus_backward(capped, self.below_max, 1, 20)
        self.slopes = torch.cat([of_mean, raw], dim=-1)
        self.limit_slopes = capped - raw, of_logvar - capped  # of the upper and the lower one

    def backward(self, pull: Tensor) -> None:
        """Write the parameters' ``grad``, that of the loss on the log-variance limits included.

        :param pull: derivatives of the loss in the rows' terms, ``(E, R)``.
        """
        branches = Branches(pull.device)
        for parameter, grad in self.grads.items():
            parameter.grad = grad
        pull = pull.unsqueeze(-1)
        delta = pull * self.slopes
        high, low = self.ensemble.max_logvar, self.ensemble.min_logvar
        for limit, slope, sign in zip((high, low), self.limit_slopes, (1.0, -1.0), strict=True):
            with branches.beside(pull):
                grad = torch.sum(pull * slope, (0, 1), out=self.grads[limit])
                grad.add_(sign * LOGVAR_LIMIT_WEIGHT)
                if limit is low and self.ensemble.held is not None:
                    grad.masked_fill_(self.ensemble.held, 0.0)
        for i in reversed(range(len(self.weights))):
            weight, bias = self.weights[i], self.biases[i]
            below = self.hidden[i - 1] if i > 0 else self.x
            with branches.beside(delta):
                torch.bmm(below.transpose(1, 2), delta, out=self.grads[weight])
            with branches.beside():
                torch.sum(delta, 1, keepdim=True, out=self.grads[bias])
            if i == 0:
                break
            if self.gates:  # (x g)' = g + x g (1 - g), of the sigmoid g
                slope = torch.lerp(self.gates[i - 1], self.one, below, out=self.gates[i - 1])
                delta = torch.bmm(delta, weight.transpose(1, 2), out=self.deltas[i - 1]).mul_(slope)
            else:
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
        self.all_rows = self.n_rows + n
        self.networks = ExplicitEnsemble(model.ensemble, self.all_rows)
        #: the networks' inputs; the mixture's members all see the same
        shape = (1 if self.mixture else members, self.all_rows, model.ensemble.input_dim)
        self.x = model.target_mean.new_empty(shape)
        #: derivative of the loss in each row's misfit, (E, R); constant for the data's rows
        self.pull = model.target_mean.new_full(
            (members, self.all_rows), 1.0 / (n * model.ensemble.output_dim)
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
        go_on: Callable[[Tensor, Tensor], None] = lambda next_obs, terminated: None,
    ) -> tuple[ModelGradient, Tensor]:
        """Estimate, and write the ensemble's gradients of ``weight`` L_adv + L_sup.

        Batches of the settings' size; otherwise see :func:`model_gradient`.

        :param go_on: called with s' and whether it is terminal before the way back, which no longer
            reads ``obs`` and ``action``.
        """
        model, k, n = self.model, self.n_rows, len(obs)
        inputs, targets = real
        # pieces of work by what waits for them; a GPU does them beside the rest
        for_networks, for_output, for_pull, rest = (Branches(obs.device) for _ in range(4))
        prepared = self.networks.prepare()
        with for_networks.beside():
            self.x[:, k:].copy_(inputs)
        with for_networks.beside():
            source = None if self.mixture else members.row
        with for_output.beside():
            drawn = self._drawn(members)
        action = torch.clamp(action, model.action_low, model.action_high)
        with for_output.beside():
            baseline = value.q(obs, action) if self.settings.baseline else None
        for_networks.join()
        if source is None:
            model.inputs(obs, action, out=self.x[0, :k])
        else:
            rows = model.inputs(obs, action).index_select(0, source)
            self.x[:, :k].copy_(rows.view_as(self.x[:, :k]))
        mean, logvar = self.networks.forward(self.x.expand(model.n_members, -1, -1), prepared)
        for_output.join()
        mu, lv = self.networks.output.flatten(0, 1).index_select(0, drawn).chunk(2, dim=-1)
        y = torch.addcmul(mu, noise, torch.exp(0.5 * lv))

        with for_pull.beside():
            sampled = self._for_all(y) if self.mixture else members.scatter(y)
            error = torch.cat([sampled, self._for_all(targets)], dim=1) - mean
            scaled = error / torch.exp(logvar)
            squares = scaled * error
            misfit = (squares + logvar).sum(-1)  # -2 log N(y), less a constant
            log_p, strength = -0.5 * misfit[:, :k], weight * (-0.5 / n)
            if self.mixture:
                log_share = torch.log_softmax(log_p, dim=0)
                share = log_share.exp() * strength
            else:  # a place without a row pulls at nothing
                self.pull[:, :k].zero_()
            self.networks.keep_slopes(-2.0 * scaled, 1.0 - squares)
        outcome = outcome_of(
            model, obs, action, y, value, self.gamma, baseline, normalise=self.settings.normalise
        )
        go_on(outcome.next_obs, outcome.terminated)
        for_pull.join()
        with rest.beside():
            supervised = misfit[:, k:].sum() / targets.numel() + logvar_limits_loss(model.ensemble)
        if self.mixture:
            torch.mul(share, outcome.advantage, out=self.pull[:, :k])
        else:
            self.pull.view(-1).index_copy_(0, drawn, outcome.advantage * strength)
        with rest.beside():
            constant = 0.5 * targets.shape[1] * LOG_2PI
            if self.mixture:
                # what the greatest lost is the logarithm of the sum (`logsumexp` is nine kernels)
                of_rows = log_p.amax(0) - log_share.amax(0) - (math.log(len(log_p)) + constant)
            else:
                of_rows = members.gather(log_p) - constant
            loss = (outcome.advantage * of_rows).mean()
        self.networks.backward(self.pull)
        rest.join()
        return ModelGradient(loss, *outcome[1:]), supervised

    def _drawn(self, members: MemberDraw) -> Tensor:
        """Where the networks' output ``(E R, .)`` has each row of its member, ``(B,)``."""
        if self.mixture:
            rows = torch.arange(members.n_rows, device=self.x.device)
            return torch.add(rows, members.member, alpha=self.all_rows)
        # what lies in slabs of n_rows lies in longer ones there
        return torch.add(members.place, members.member, alpha=self.all_rows - self.n_rows)

    def _for_all(self, x: Tensor) -> Tensor:
        return x.expand(self.model.n_members, -1, -1)
