"""The SAC update with its gradients written out, in memory that is allocated once.

The same numbers as :func:`agents.updates.sac_update`, which says what is computed and is the
reference in the tests. Autograd's bookkeeping, its temporaries and its products that nobody reads
make that update some 1.2 times slower on a CPU, and are half of its kernels on a GPU.
"""

from __future__ import annotations

import torch
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor, nn
from torch.nn import functional as F

from adv_worldmodel.adam import step_of
from adv_worldmodel.graphs import Branches, hooks_of
from agents.buffers import Batch
from agents.explicit_networks import ExplicitActor, ExplicitCritics
from agents.policies import StackedCritic, Standardise, heads_of, is_plain
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
    parameters = (*actor.parameters(), *parts.critic.parameters())
    trained = all(p.requires_grad for p in parameters)
    layers_of_critics = (layer for critic in critics for layer in critic.modules())
    hooks = any(map(hooks_of, parameters)) or any(map(hooks_of, layers_of_critics))
    plain = plain_actor and plain_critics and fixed and trained and not hooks
    return plain and len(parts.critic.weights) >= 2


def _squashing(u: Tensor) -> Tensor:
    """-log(1 - tanh^2 u) + 2 log 2, in the form that neither overflows nor needs an epsilon."""
    return torch.sub(u, F.softplus(u, beta=-2.0), alpha=2.0).mul_(2.0)


class ExplicitSACUpdate:
    """:func:`agents.updates.sac_update` for batches of one size.

    :param parts: networks for which :func:`is_explicit` holds.
    """

    def __init__(self, parts: SACParts, batch_size: int) -> None:
        self.parts, self.batch_size = parts, batch_size
        trained = [*parts.online, *parts.actor_parameters]
        self.grads: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in trained}
        self.actor = ExplicitActor(parts, batch_size, self.grads)
        self.critics = ExplicitCritics(parts.critic, batch_size, self.grads)
        self.targets = ExplicitCritics(parts.critic_target, batch_size, {})
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
        with for_error.beside():
            data_rows = torch.cat([states[0], batch.action], dim=-1)
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
