"""The SAC update with its gradients written out, in memory that is allocated once.

The same numbers as :func:`agents.updates.sac_update`, which says what is computed and is the
reference in the tests. Autograd's bookkeeping, its temporaries and its products that nobody reads
make that update some 1.2 times slower on a CPU, and are half of its kernels on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor, nn
from torch.nn import functional as F

from adv_worldmodel.adam import step_of
from adv_worldmodel.graphs import Branches
from agents.buffers import Batch
from agents.policies import (
    LAYER_NORM_EPS,
    StackedCritic,
    Standardise,
    affine,
    heads_of,
    is_plain,
    joint_heads,
    last_layer,
)
from agents.updates import LOG_2, LOG_2PI, SACParts, unsquashed


def is_explicit(parts: SACParts) -> bool:
    """Whether the gradients below are those of these networks; others take autograd's."""
    actor, critics = parts.actor, (parts.critic, parts.critic_target)
    layers = list(actor.latent_pi)
    # subclasses may compute something else
    plain_actor = (
        is_plain(actor)
        and len(layers) >= 2
        and all(type(layer) is nn.Linear for layer in layers[::2])
        and all(type(layer) is nn.ReLU for layer in layers[1::2])
        and len(layers) % 2 == 0
    )
    plain_critics = all(type(critic) is StackedCritic for critic in critics)
    extractors = [network.features_extractor for network in (actor, *critics)]
    fixed = all(type(extractor) is Standardise for extractor in extractors)
    trained = all(p.requires_grad for p in (*actor.parameters(), *parts.critic.parameters()))
    return plain_actor and plain_critics and fixed and trained and len(parts.critic.weights) >= 2


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


def _squashing(u: Tensor) -> Tensor:
    """-log(1 - tanh^2 u) + 2 log 2, in the form that neither overflows nor needs an epsilon."""
    return torch.sub(u, F.softplus(u, beta=-2.0), alpha=2.0).mul_(2.0)


class _Critics:
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

    def forward(self, x: Tensor) -> Tensor:
        """Q ``(C, B)`` of inputs ``(B, S + A)``."""
        h = self.x = x.expand(self.n, -1, -1)
        for i, out in enumerate(self.hidden):
            to = self.linear[i] if self.norms else out
            h = torch.baddbmm(self.biases[i], h, self.weights[i], out=to)
            if self.norms:
                self.normed[i], *self.moments[i] = torch.native_layer_norm(
                    h, h.shape[-1:], None, None, LAYER_NORM_EPS
                )
                gain, shift = self.norms[i]
                h = torch.addcmul(shift, self.normed[i], gain, out=out)
            h.relu_()
        return last_layer(h, self.weights[-1], self.biases[-1], out=self.deltas[-1])

    def backward_hidden(self, grad: Tensor, branches: Branches | None = None) -> None:
        """Loss derivatives of each linear layer's output, of those ``(C, B)`` of Q.

        :param branches: in which the gradients of the parameters below them are written; ``None``
            writes none.
        """
        torch.mul(grad.unsqueeze(-1), self.weights[-1].transpose(1, 2), out=self.deltas[-1])
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

    def backward_parameters(self, grad: Tensor, branches: Branches) -> None:
        """Write the parameters' gradients, in branches yet to be joined."""
        column = grad.unsqueeze(-1)
        with branches.beside(grad):
            if grad.device.type == "cpu":  # see `last_layer`
                torch.mul(self.hidden[-1], column, out=self.deltas[-1])
                torch.sum(self.deltas[-1], 1, out=self.weight_grads[-1].squeeze(-1))
            else:
                torch.bmm(self.hidden[-1].transpose(1, 2), column, out=self.weight_grads[-1])
            torch.sum(column, 1, keepdim=True, out=self.bias_grads[-1])
        self.backward_hidden(grad, branches)

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

    def action_grad(self, critic: Tensor, action_dim: int, scale: float) -> Tensor:
        """Derivatives ``(B, A)`` of each row's Q by ``critic[row]`` with respect to its action.

        :param scale: what they are multiplied with.
        """
        if critic.device.type == "cpu":
            return self.action_grad_by_critic(critic, action_dim, scale)
        return self.action_grad_at_once(critic, action_dim, scale)

    def action_grad_at_once(self, critic: Tensor, action_dim: int, scale: float) -> Tensor:
        """Every row through every critic: shapes that no value decides, as CUDA graphs need."""
        self.backward_hidden((critic == self.numbers) * scale)
        columns = self.weights[0][:, -action_dim:].transpose(1, 2)
        return torch.bmm(self.linear_deltas[0], columns).sum(0)

    def action_grad_by_critic(self, critic: Tensor, action_dim: int, scale: float) -> Tensor:
        """Each row through its own critic only: a C-th of the products."""
        grad = self.x.new_empty(self.batch_size, action_dim)
        for c in range(self.n):
            rows = torch.nonzero(critic == c).squeeze(-1)
            delta = (self.weights[-1][c].t() * scale).expand(len(rows), -1)
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


class _Actor:
    """The actor's network on states and successors at once, and back for the states."""

    def __init__(self, parts: SACParts, batch_size: int, grads: dict[Tensor, Tensor]) -> None:
        actor = parts.actor
        self.n = batch_size
        self.layers = _weights_and_biases(actor.latent_pi)
        self.actor, self.grads = actor, grads
        #: of both heads as one layer
        weight, bias = (torch.zeros_like(t) for t in joint_heads(actor))
        self.head_weight, self.head_grads = weight, (weight, bias)
        for i, head in enumerate(heads_of(actor)):
            grads[head.weight], grads[head.bias] = weight.chunk(2)[i], bias.chunk(2)[i]
        self.hidden = [w.new_empty(2 * batch_size, w.shape[0]) for w, _ in self.layers]
        self.deltas = [torch.empty_like(h[:batch_size]) for h in self.hidden]
        self.features = self.hidden[0].new_empty(0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and unclipped log standard deviation, ``(2 B, A)`` each."""
        h = self.features = features
        for layer, out in zip(self.layers, self.hidden, strict=True):
            h = affine(h, layer, out).relu_()
        self.head_weight, bias = joint_heads(self.actor)
        mean, log_std = affine(h, (self.head_weight, bias)).chunk(2, dim=1)
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


class ExplicitSACUpdate:
    """:func:`agents.updates.sac_update` for batches of one size.

    :param parts: networks for which :func:`is_explicit` holds.
    """

    def __init__(self, parts: SACParts, batch_size: int) -> None:
        self.parts, self.batch_size = parts, batch_size
        trained = [*parts.online, *parts.actor_parameters]
        self.grads: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in trained}
        self.actor = _Actor(parts, batch_size, self.grads)
        self.critics = _Critics(parts.critic, batch_size, self.grads)
        self.targets = _Critics(parts.critic_target, batch_size, {})
        standardise = parts.actor.features_extractor
        assert isinstance(standardise, Standardise)
        self.scale = 1.0 / standardise.std
        self.shift = -standardise.mean * self.scale
        self.action_dim = heads_of(parts.actor)[0].out_features
        #: of the squashed Gaussian's negative log-density
        self.constant = self.action_dim * (0.5 * LOG_2PI + 2.0 * LOG_2)

    @torch.no_grad()
    def __call__(self, batch: Batch, noise: Tensor) -> Tensor:
        """One update.

        :param noise: standard normals ``(2, B, A)``, at s and at s'.
        :return: the values named in :data:`agents.updates.METRICS`.
        """
        parts, n = self.parts, self.batch_size
        for parameter, grad in self.grads.items():
            parameter.grad = grad
        branches = Branches(noise.device)
        states = torch.stack([batch.obs, batch.next_obs])
        states = torch.addcmul(self.shift, states, self.scale)
        data_rows = torch.cat([states[0], batch.action], dim=-1)
        with branches.beside():
            q = self.critics.forward(data_rows)

        mean, unclipped = self.actor.forward(states.flatten(0, 1))
        log_std = unclipped.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = noise.reshape(2 * n, -1)
        spread = noise * log_std.exp()  # dividing (u - mean) by sigma would give the noise back
        u = mean + spread
        actions = torch.tanh(u).reshape(2, n, -1)
        pi_rows, next_rows = torch.cat([states, actions], dim=-1)
        with branches.beside():
            densities = torch.addcmul(_squashing(u), noise, noise, value=-0.5) - log_std
            log_prob, next_log_prob = (densities.sum(1) - self.constant).chunk(2)
            mean_log_prob = log_prob.mean()
            entropy = -mean_log_prob
            alpha = parts.fixed_alpha if parts.log_alpha is None else parts.log_alpha.exp()
            entropy_loss = self._step_alpha(mean_log_prob)

        next_q = self.targets.forward(next_rows).amin(0)
        branches.join()
        if parts.entropy_in_target:
            next_q = torch.addcmul(next_q, alpha, next_log_prob, value=-1.0)
        target = torch.addcmul(batch.reward, batch.continues, next_q, value=parts.gamma)
        error = q - target
        with branches.beside():
            critic_loss, q_mean = error.square().mean() * (0.5 * len(error)), q.mean()
        self.critics.backward_parameters(error / n, branches)  # of half the mean square
        branches.join()
        step_of(parts.critic.optimizer)

        with branches.beside():
            torch._foreach_lerp_(parts.target, parts.online, parts.tau)
        q_pi = self.critics.forward(pi_rows)
        least, lowest = q_pi.min(0)
        k = parts.n_real if parts.cloning_weight > 0.0 else 0
        with branches.beside():
            actor_loss = torch.addcmul(-least.mean(), alpha, mean_log_prob)
            if k > 0:
                loss, pull = self._cloning(batch.action[:k], mean[:k], log_std[:k], least)
                actor_loss = actor_loss + loss
        if not parts.actor_frozen:
            # Q is ascended: the gradient of -mean min Q in the actions
            minus_q = self.critics.action_grad(lowest, self.action_dim, -1.0 / n)
        branches.join()
        found = [actor_loss, critic_loss, entropy_loss, alpha, q_mean, entropy]
        with branches.beside():
            metrics = torch.stack([value.squeeze() for value in found])
        if not parts.actor_frozen:
            grad = self._entropic(minus_q, actions[0], spread[:n], alpha)
            if k > 0:
                grad[:k] += pull
            grad[:, self.action_dim :] *= log_std[:n] == unclipped[:n]
            self.actor.backward(grad, branches)
            branches.join()
            step_of(parts.actor.optimizer)
        branches.join()
        return metrics

    def _step_alpha(self, mean_log_prob: Tensor) -> Tensor:
        """Descend the entropy coefficient's loss, if it learns; returns that loss."""
        parts = self.parts
        if parts.entropy_optimizer is None or parts.actor_frozen:
            return torch.zeros_like(parts.fixed_alpha)
        assert parts.log_alpha is not None
        gap = (-parts.target_entropy - mean_log_prob).reshape(1)
        loss = parts.log_alpha * gap
        parts.log_alpha.grad = gap
        step_of(parts.entropy_optimizer)
        if parts.log_alpha_limit is not None:
            parts.log_alpha.clamp_(max=parts.log_alpha_limit)
        return loss

    def _entropic(self, minus_q: Tensor, pi: Tensor, spread: Tensor, alpha: Tensor) -> Tensor:
        """Gradients of mean(alpha log pi - min Q) in mean and log deviation, ``(B, 2 A)``.

        :param minus_q: that of -mean min Q in the policy's actions, ``(B, A)``.
        :param pi: the actions.
        :param spread: sigma times the noise of u, of which they are the tanh.
        """
        alpha_by_row = alpha / self.batch_size
        minus_q = torch.ops.aten.tanh_backward(minus_q, pi)  # in u
        # u = mean + sigma noise, d log pi / du = 2 tanh u, and d log pi / d log sigma = -1 besides
        u_grad = torch.addcmul(minus_q, alpha_by_row, pi, value=2.0)
        return torch.cat([u_grad, u_grad * spread - alpha_by_row], dim=1)

    def _cloning(
        self, action: Tensor, mean: Tensor, log_std: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of the data's actions, and its gradients in mean and log deviation, ``(K, 2 A)``.

        :param action: in [-1, 1], ``(K, A)``.
        :param q: of all rows, in whose size it is measured.
        """
        u = unsquashed(action)
        deviation = log_std.exp()
        z = (u - mean) / deviation
        weight = self.parts.cloning_weight * q.abs().mean()
        nll = (0.5 * z.square() + log_std - _squashing(u)).sum(1).mean() + self.constant
        pull = weight / len(u)
        return weight * nll, torch.cat([-pull * z / deviation, pull * (1.0 - z.square())], dim=1)
