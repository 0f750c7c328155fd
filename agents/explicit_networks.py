"""The networks of the SAC update on batches of one size, forward and back.

Their gradients are written out, in memory that is allocated once; :mod:`agents.explicit_updates`
says what for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from adv_worldmodel.graphs import Branches
from adv_worldmodel.products import add_product, begin_biases
from agents.policies import (
    LAYER_NORM_EPS,
    StackedCritic,
    add_affine,
    heads_of,
    joint_heads,
    last_layer,
)
from agents.updates import SACParts

__all__ = ["ExplicitActor", "ExplicitCritics"]


def _weights_and_biases(layers: Iterable[nn.Module | Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(layer.weight, layer.bias) for layer in layers if isinstance(layer, nn.Linear)]


def _relu_backward_(delta: Tensor, activation: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(delta, activation, 0.0, grad_input=delta)


def _layer_norm_backward(delta: Tensor, linear: Tensor, moments: Sequence[Tensor]) -> Tensor:
    nothing = (None, None)  # the layers' gains and shifts stand outside the normalisation
    only_input = [True, False, False]
    found: Tensor = torch.ops.aten.native_layer_norm_backward(
        delta, linear, linear.shape[-1:], *moments, *nothing, only_input
    )[0]
    return found


class ExplicitCritics:
    """One stack of critics on a batch, forward and back.

    :param grads: of the parameters, written by :meth:`backward_parameters`; ``None`` for targets.
    """

    def __init__(self, critic: StackedCritic, batch_size: int, grads: dict[Tensor, Tensor]) -> None:
        self.n, self.batch_size = critic.n_critics, batch_size
        self.numbers = torch.arange(self.n, device=critic.device).unsqueeze(-1)
        self.weights: list[Tensor] = list(critic.weights)
        self.biases: list[Tensor] = list(critic.biases)
        self.weight_grads = [grads[w] for w in self.weights if w in grads]
        self.bias_grads = [grads[b] for b in self.biases if b in grads]
        self.hidden = [
            weight.new_empty(self.n, batch_size, weight.shape[2]) for weight in self.weights[:-1]
        ]
        self.q = self.weights[0].new_empty(self.n, batch_size, 1)
        self.deltas = [torch.empty_like(h) for h in self.hidden]
        #: the gradients of ``linear``: those of ``hidden``, unless a normalisation lies between.
        #: A list of its own: what a captured graph writes to must live as long as the graph
        self.linear_deltas = list(self.deltas)
        self.x = self.hidden[0].new_empty(0)
        #: of layer normalisation, by layer: gain and shift, their gradients, what is normalised,
        #: normalised, and its mean and inverse deviation
        self.norms = list(zip(critic.gains, critic.shifts, strict=True))
        self.norm_grads = [(grads[g], grads[s]) for g, s in self.norms if g in grads]
        self.linear = [torch.empty_like(h) for h in self.hidden] if self.norms else []
        self.normed = list(self.linear)
        self.moments: list[Sequence[Tensor]] = [()] * len(self.linear)

    def prepare(self) -> Branches:
        """What :meth:`forward` does before it needs a batch: begun, for it to wait for."""
        return begin_biases([*(self.linear or self.hidden), self.q], self.biases)

    def forward(self, x: Tensor, prepared: Branches) -> Tensor:
        """Q ``(C, B)`` of inputs ``(B, S + A)``; the next call overwrites it."""
        h = self.x = x.expand(self.n, -1, -1)
        prepared.join()
        for i, out in enumerate(self.hidden):
            linear = self.linear[i] if self.norms else out
            h = add_product(linear, self.biases[i], h, self.weights[i])
            if self.norms:
                self.normed[i], *self.moments[i] = torch.native_layer_norm(
                    h, h.shape[-1:], None, None, LAYER_NORM_EPS
                )
                gain, shift = self.norms[i]
                h = torch.addcmul(shift, self.normed[i], gain, out=out)
            h.relu_()
        if h.device.type == "cpu":
            return last_layer(h, self.weights[-1], self.biases[-1], out=self.deltas[-1])
        return add_product(self.q, self.biases[-1], h, self.weights[-1]).squeeze(-1)

    def last_weights(self, scale: float) -> Tensor:
        """Those of Q times ``scale``, ``(C, 1, H)``, as the ways back take them."""
        return self.weights[-1].transpose(1, 2) * scale

    def backward_hidden(self, grad: Tensor, last: Tensor, branches: Branches | None = None) -> None:
        """Loss derivatives of each linear layer's output, of those ``(C, B)`` of Q.

        :param last: :meth:`last_weights`, by whose scale ``grad`` still has to be multiplied.
        :param branches: in which the gradients of the parameters below them are written; ``None``
            writes none.
        """
        torch.mul(grad.unsqueeze(-1), last, out=self.deltas[-1])
        for i in reversed(range(len(self.hidden))):
            delta = self.deltas[i]
            _relu_backward_(delta, self.hidden[i])
            if self.norms:
                delta = self.linear_deltas[i] = _layer_norm_backward(
                    delta * self.norms[i][0], self.linear[i], self.moments[i]
                )
            if branches is not None:
                self._write_grads(i, branches)
            if i > 0:
                torch.bmm(delta, self.weights[i].transpose(1, 2), out=self.deltas[i - 1])

    def backward_parameters(
        self, grad: Tensor, last: Tensor, scale: float, branches: Branches
    ) -> None:
        """Write the parameters' gradients, in branches yet to be joined.

        :param grad: ``scale`` times it is the loss derivative of Q, ``(C, B)``.
        :param last: :meth:`last_weights` of that scale.
        """
        with branches.beside(grad):
            column = (grad * scale).unsqueeze(-1)
            if grad.device.type == "cpu":  # see `last_layer`
                torch.mul(self.hidden[-1], column, out=self.deltas[-1])
                torch.sum(self.deltas[-1], 1, out=self.weight_grads[-1].squeeze(-1))
            else:
                torch.bmm(self.hidden[-1].transpose(1, 2), column, out=self.weight_grads[-1])
            torch.sum(column, 1, keepdim=True, out=self.bias_grads[-1])
        self.backward_hidden(grad, last, branches)

    def _write_grads(self, i: int, branches: Branches) -> None:
        """Those of layer i, a hidden one, of what `backward_hidden` found."""
        below, delta = self.hidden[i - 1] if i > 0 else self.x, self.linear_deltas[i]
        with branches.beside():
            torch.bmm(below.transpose(1, 2), delta, out=self.weight_grads[i])
        with branches.beside():
            torch.sum(delta, 1, keepdim=True, out=self.bias_grads[i])
            if self.norms:
                gain_grad, shift_grad = self.norm_grads[i]
                torch.sum(self.deltas[i] * self.normed[i], 1, keepdim=True, out=gain_grad)
                torch.sum(self.deltas[i], 1, keepdim=True, out=shift_grad)

    def action_grad(self, critic: Tensor, last: Tensor, action_dim: int) -> Tensor:
        """Derivatives ``(B, A)`` of each row's Q by ``critic[row]`` with respect to its action.

        :param last: :meth:`last_weights`, whose scale they are multiplied with.
        """
        if critic.device.type == "cpu":
            return self.action_grad_by_critic(critic, last, action_dim)
        return self.action_grad_at_once(critic, last, action_dim)

    def action_grad_at_once(self, critic: Tensor, last: Tensor, action_dim: int) -> Tensor:
        """Every row through every critic: shapes that no value decides, as CUDA graphs need."""
        self.backward_hidden(critic == self.numbers, last)
        columns = self.weights[0][:, -action_dim:].transpose(1, 2)
        return torch.bmm(self.linear_deltas[0], columns).sum(0)

    def action_grad_by_critic(self, critic: Tensor, last: Tensor, action_dim: int) -> Tensor:
        """Each row through its own critic only: a C-th of the products."""
        grad = self.x.new_empty(self.batch_size, action_dim)
        for c in range(self.n):
            rows = torch.nonzero(critic == c).squeeze(-1)
            delta = last[c].expand(len(rows), -1)
            for i in reversed(range(len(self.hidden))):
                active = self.hidden[i][c].index_select(0, rows)
                delta = torch.ops.aten.threshold_backward(delta, active, 0.0)
                if self.norms:
                    kept = [t[c].index_select(0, rows) for t in (self.linear[i], *self.moments[i])]
                    delta = _layer_norm_backward(delta * self.norms[i][0][c], kept[0], kept[1:])
                weight = self.weights[i][c]
                delta = delta @ (weight if i > 0 else weight[-action_dim:]).t()
            grad.index_copy_(0, rows, delta)
        return grad


class ExplicitActor:
    """The actor's network on states and successors at once, and back for the states."""

    def __init__(self, parts: SACParts, batch_size: int, grads: dict[Tensor, Tensor]) -> None:
        actor = parts.actor
        self.n = batch_size
        self.layers = _weights_and_biases(actor.latent_pi)
        self.actor, self.grads = actor, grads
        #: of both heads as one layer
        weight, bias = (torch.zeros_like(t) for t in joint_heads(actor))
        self.head_weight, self.head_bias, self.head_grads = weight, bias, (weight, bias)
        for i, head in enumerate(heads_of(actor)):
            grads[head.weight], grads[head.bias] = weight.chunk(2)[i], bias.chunk(2)[i]
        self.hidden = [w.new_empty(2 * batch_size, w.shape[0]) for w, _ in self.layers]
        self.output = weight.new_empty(2 * batch_size, len(weight))
        self.deltas = [torch.empty_like(h[:batch_size]) for h in self.hidden]
        self.features = self.hidden[0].new_empty(0)

    def prepare(self) -> Branches:
        """What :meth:`forward` does before it needs a batch: begun, for it to wait for."""
        branches = begin_biases(self.hidden, [bias for _, bias in self.layers])
        with branches.beside():
            self.head_weight, self.head_bias = joint_heads(self.actor)
            begin_biases([self.output], [self.head_bias]).join()
        return branches

    def forward(self, features: Tensor, prepared: Branches) -> tuple[Tensor, Tensor]:
        """Mean and unclipped log standard deviation, ``(2 B, A)`` each."""
        h = self.features = features
        prepared.join()
        for layer, out in zip(self.layers, self.hidden, strict=True):
            h = add_affine(out, layer, h).relu_()
        heads = self.head_weight, self.head_bias
        mean, log_std = add_affine(self.output, heads, h).chunk(2, dim=1)
        return mean, log_std

    def backward(self, grad: Tensor, branches: Branches) -> None:
        """Write the parameters' gradients, in branches yet to be joined.

        :param grad: those ``(B, 2 A)`` of mean and log deviation.
        """
        hidden = [h[: self.n] for h in self.hidden]
        weight_grad, bias_grad = self.head_grads
        with branches.beside(grad):
            torch.mm(grad.t(), hidden[-1], out=weight_grad)
        with branches.beside():
            torch.sum(grad, 0, out=bias_grad)
        torch.mm(grad, self.head_weight, out=self.deltas[-1])
        for i in reversed(range(len(self.layers))):
            weight, bias = self.layers[i]
            delta, below = self.deltas[i], hidden[i - 1] if i > 0 else self.features[: self.n]
            _relu_backward_(delta, hidden[i])
            with branches.beside():
                torch.mm(delta.t(), below, out=self.grads[weight])
            with branches.beside():
                torch.sum(delta, 0, out=self.grads[bias])
            if i > 0:
                torch.mm(delta, weight, out=self.deltas[i - 1])
