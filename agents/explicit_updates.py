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
from adv_worldmodel.products import add_product, begin_biases
from agents.buffers import Batch
from agents.policies import (
    LAYER_NORM_EPS,
    StackedCritic,
    Standardise,
    add_affine,
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


class _Actor:
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
        self.constant = self.scale.new_tensor(self.action_dim * (0.5 * LOG_2PI + 2.0 * LOG_2))

    @torch.no_grad()
    def __call__(self, batch: Batch, noise: Tensor) -> Tensor:
        """One update.

        :param noise: standard normals ``(2, B, A)``, at s and at s'.
        :return: the values named in :data:`agents.updates.METRICS`.
        """
        parts, n = self.parts, self.batch_size
        for parameter, grad in self.grads.items():
            parameter.grad = grad
        # pieces of work by what waits for them; a GPU does them beside the rest
        first, for_error, for_critic, for_actor, rest = (Branches(noise.device) for _ in range(5))
        of_actor, of_targets = self.actor.prepare(), self.targets.prepare()
        with first.beside():
            alpha = parts.fixed_alpha if parts.log_alpha is None else parts.log_alpha.exp()
            discount = batch.continues * parts.gamma
            price = discount * alpha  # of a nat of log pi(a' | s')
            known = batch.reward
            if parts.entropy_in_target:
                known = torch.addcmul(known, price, self.constant)
        states = torch.stack([batch.obs, batch.next_obs])
        states = torch.addcmul(self.shift, states, self.scale)
        data_rows = torch.cat([states[0], batch.action], dim=-1)
        with for_error.beside():
            q = self.critics.forward(data_rows, self.critics.prepare())

        mean, unclipped = self.actor.forward(states.flatten(0, 1), of_actor)
        log_std = unclipped.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = noise.reshape(2 * n, -1)
        deviation = log_std.exp()
        u = torch.addcmul(mean, noise, deviation)
        first.join()
        with for_error.beside():
            densities = torch.addcmul(_squashing(u), noise, noise, value=-0.5) - log_std
            log_prob, next_log_prob = densities.sum(1).chunk(2)  # without `constant`
            soft_reward = known
            if parts.entropy_in_target:
                soft_reward = torch.addcmul(known, price, next_log_prob, value=-1.0)
        actions = torch.tanh(u).reshape(2, n, -1)
        pi_rows, next_rows = torch.cat([states, actions], dim=-1)
        with for_actor.beside():
            spread = noise[:n] * deviation[:n]  # dividing u - mean by sigma would give noise back
            inside = log_std[:n] == unclipped[:n]
            base, slope = self._policy_gradient(actions[0], spread, inside, alpha)
        k = parts.n_real if parts.cloning_weight > 0.0 else 0
        with for_actor.beside():
            if k > 0:
                nll, pull = self._cloning(batch.action[:k], mean[:k], log_std[:k], unclipped[:k])

        with for_critic.beside():
            last = self.critics.last_weights(1.0 / n)  # of half the mean square
        next_q = self.targets.forward(next_rows, of_targets).amin(0)
        for_error.join()
        error = q - torch.addcmul(soft_reward, discount, next_q)
        with for_actor.beside():
            mean_log_prob = log_prob.mean() - self.constant
            entropy = -mean_log_prob
            entropy_loss = self._step_alpha(mean_log_prob)
        for_critic.join()
        with for_critic.beside():
            critic_loss, q_mean = error.square().mean() * (0.5 * len(error)), q.mean()
        self.critics.backward_parameters(error, last, 1.0 / n, for_critic)
        for_critic.join()
        step_of(parts.critic.optimizer)

        of_critics = self.critics.prepare()
        with for_actor.beside():
            last = self.critics.last_weights(-1.0 / n)  # Q is ascended, its mean over the batch
        with rest.beside():
            torch._foreach_lerp_(parts.target, parts.online, parts.tau)
        q_pi = self.critics.forward(pi_rows, of_critics)
        least, lowest = q_pi.min(0)
        for_actor.join()
        with for_actor.beside():
            actor_loss = torch.addcmul(-least.mean(), alpha, mean_log_prob)
            if k > 0:
                weight = parts.cloning_weight * least.abs().mean()
                base[:k].addcmul_(weight, pull)
                actor_loss = torch.addcmul(actor_loss, weight, nll)
            found = [actor_loss, critic_loss, entropy_loss, alpha, q_mean, entropy]
            metrics = torch.stack([value.squeeze() for value in found])
        if not parts.actor_frozen:
            minus_q = self.critics.action_grad(lowest, last, self.action_dim)
            for_actor.join()
            grad = torch.addcmul(base, slope, minus_q.unsqueeze(1))
            self.actor.backward(grad.flatten(1), for_actor)
            for_actor.join()
            step_of(parts.actor.optimizer)
        for_actor.join()
        rest.join()
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

    def _policy_gradient(
        self, pi: Tensor, spread: Tensor, inside: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient of mean(alpha log pi - min Q), as base + slope times that of -mean min Q.

        The latter in the actions, ``(B, A)``; base and slope in mean and log deviation,
        ``(B, 2, A)``.

        :param pi: the actions.
        :param spread: sigma times the noise of u, of which they are the tanh.
        :param inside: where the log deviation is none of its limits, which have no gradient.
        """
        alpha_by_row = alpha / self.batch_size
        # u = mean + sigma noise, d log pi / du = 2 tanh u, and d log pi / d log sigma = -1 besides
        entropy, slope = 2.0 * alpha_by_row * pi, 1.0 - pi.square()
        spread = spread * inside
        base = torch.stack([entropy, entropy * spread - alpha_by_row * inside], dim=1)
        return base, torch.stack([slope, slope * spread], dim=1)

    def _cloning(
        self, action: Tensor, mean: Tensor, log_std: Tensor, unclipped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the data's actions, and its gradients ``(K, 2, A)``.

        In mean and log deviation, those of the loss's mean over the rows.

        :param action: in [-1, 1], ``(K, A)``.
        """
        u = unsquashed(action)
        deviation = log_std.exp()
        z = (u - mean) / deviation
        nll = (0.5 * z.square() + log_std - _squashing(u)).sum(1).mean() + self.constant
        inside = log_std == unclipped
        pull = torch.stack([-z / deviation, (1.0 - z.square()) * inside], dim=1)
        return nll, pull / len(u)
