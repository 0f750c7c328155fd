"""The model gradient (P eq. 5) and the adversarial update of the world model (P eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.device import shared_tensor
from adv_worldmodel.dynamics.ensemble import (
    MemberDraw,
    gaussian_log_density,
    mixture_log_density,
)
from adv_worldmodel.dynamics.fitting import make_optimizer, supervised_loss
from adv_worldmodel.dynamics.world_model import WorldModel
from adv_worldmodel.protocols import Policy, ValueFunction
from adv_worldmodel.seeding import make_generator

Score = Literal["mixture", "member", "pathwise"]
SCORES: tuple[str, ...] = get_args(Score)
STD_FLOOR = 1e-6


class ModelGradient(NamedTuple):
    """What one batch of model rows gives; its ``loss`` has the model gradient as its gradient."""

    loss: Tensor  #: scalar
    advantage: Tensor  #: (B,), before normalisation
    next_obs: Tensor  #: (B, S), the sampled successors
    terminated: Tensor  #: (B,), bool


@dataclass(frozen=True)
class AdversarySettings:
    """How the world model is turned against the agent; defaults are the paper's.

    :param weight: lambda of P eq. 9, on the *mean* over the batch of the adversarial loss.
    :param score: estimator of the model gradient: ``mixture`` (the paper's: score of the elite
        mixture), ``member`` (score of the drawn member alone: same expectation, a fifth of the
        work, more variance) or ``pathwise`` (through the sample and the critic).
    :param batch_size: rows from the data, and as many from the model, per update.
    :param learning_rate: Adam's.
    :param continue_fit: with weight 0, go on fitting the data; otherwise weight 0 does nothing.
    :param baseline: subtract Q(s, a) from the score functions' return.
    :param normalise: standardise the advantage over the batch (P 5.2).
    """

    weight: float = 3e-4
    score: Score = "mixture"
    batch_size: int = 256
    learning_rate: float = 3e-4
    continue_fit: bool = False
    baseline: bool = True
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score = {self.score!r} is not one of {', '.join(SCORES)}")
        if self.weight < 0:
            raise ValueError(f"weight = {self.weight} must not be negative")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size} must be at least 1")


def model_gradient(
    model: WorldModel,
    obs: Tensor,
    action: Tensor,
    value: ValueFunction,
    gamma: float,
    generator: torch.Generator,
    settings: AdversarySettings,
    real: tuple[Tensor, Tensor] | None = None,
) -> tuple[ModelGradient, Tensor]:
    """Estimate the gradient of E[r + gamma (1 - d) V(s')] in the model's parameters (P eq. 5).

    :param obs: raw states ``(B, S)``; :param action: raw actions ``(B, A)`` of the policy there.
    :param value: V and Q of the agent; no gradient reaches its parameters through the score
        functions.
    :param real: standardised inputs and targets of a batch of data, evaluated in the same product.
    :return: the estimate, and L_sup of ``real`` (zero without).
    """
    n, ensemble = len(obs), model.ensemble
    action = torch.clamp(action, model.action_low, model.action_high)
    x = model.inputs(obs, action)
    draw = MemberDraw(n, model.n_members, generator)
    mixture = settings.score == "mixture"
    rows = x.expand(model.n_members, -1, -1) if mixture else draw.scatter(x)
    n_rows = rows.shape[1]
    if real is not None:
        rows = torch.cat([rows, real[0].expand(model.n_members, -1, -1)], dim=1)
    mean_all, logvar_all = ensemble(rows)
    mean, logvar = mean_all[:, :n_rows], logvar_all[:, :n_rows]

    if mixture:
        index = torch.arange(n, device=x.device)
        mu, lv = mean[draw.member, index], logvar[draw.member, index]
    else:
        mu, lv = draw.gather(mean), draw.gather(logvar)
    noise = torch.randn(mu.shape, generator=generator, device=mu.device)
    y = mu + noise * torch.exp(0.5 * lv)
    pathwise = settings.score == "pathwise"
    if not pathwise:
        y = y.detach()  # no gradient through the sample: the score carries all of it

    with torch.set_grad_enabled(pathwise):
        next_obs, reward = model.outcome(obs, action, y)
        terminated = model.termination(obs, action, next_obs.detach())
        outcome = reward + gamma * torch.where(terminated, 0.0, value.v(next_obs))
    advantage = outcome
    if settings.baseline:
        with torch.no_grad():
            baseline = value.q(obs, action)
        advantage = outcome - baseline  # outside: the pathwise outcome carries the gradient
    weight = advantage
    if settings.normalise:
        std, centre = torch.std_mean(advantage.detach(), correction=0)
        weight = (advantage - centre) / (std + STD_FLOOR)

    if pathwise:
        loss = weight.mean()
    else:
        log_p = mixture_log_density(y, mean, logvar) if mixture else gaussian_log_density(y, mu, lv)
        loss = (weight * log_p).mean()
    supervised = loss.new_zeros(())
    if real is not None:
        supervised = supervised_loss(
            ensemble, mean_all[:, n_rows:], logvar_all[:, n_rows:], real[1]
        )
    return ModelGradient(loss, advantage.detach(), next_obs.detach(), terminated), supervised


class Adversary:
    """Lowers the agent's value in a world model while the model keeps fitting the data.

    One update minimises lambda L_adv + L_sup (P eq. 9) on ``batch_size`` model rows and as many
    rows of data. The model rows come from rollouts of the policy in the present model: they start
    in data-set states, move one step per update, start again after ``horizon`` steps, and where
    the model terminated them (the authors' code simulates past a termination).

    :param model: changed in place. :param dataset: what it keeps fitting.
    :param horizon: k, steps of a rollout. :param gamma: discount.
    :param seed: of everything drawn here; the optimiser is fresh, as after the fit.
    """

    def __init__(
        self,
        model: WorldModel,
        dataset: OfflineDataset,
        settings: AdversarySettings = AdversarySettings(),
        *,
        horizon: int = 5,
        gamma: float = 0.99,
        seed: int | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.horizon, self.gamma = horizon, gamma
        device = model.device
        self.generator = make_generator(seed, "adversary", device)
        self.optimizer = make_optimizer(model.ensemble, settings.learning_rate)
        self.inputs, self.targets = model.encode(dataset)
        self.train_rows, self.holdout_rows = model.split(dataset)
        self.start_states = shared_tensor(dataset.observations, device)
        self.obs = self._draw_starts()
        self.steps = 0
        self.n_updates = 0

    @property
    def active(self) -> bool:
        """Whether an update changes anything: lambda = 0 leaves the model at its fit."""
        return self.settings.weight > 0 or self.settings.continue_fit

    def _draw_starts(self) -> Tensor:
        shape = (self.settings.batch_size,)
        n = len(self.start_states)
        rows = torch.randint(n, shape, generator=self.generator, device=self.model.device)
        return self.start_states[rows]

    def _next_states(self, step: ModelGradient) -> None:
        starts = self._draw_starts()
        self.steps += 1
        if self.steps == self.horizon:
            self.steps, self.obs = 0, starts
        else:
            self.obs = torch.where(step.terminated.unsqueeze(-1), starts, step.next_obs)

    def run(self, n_updates: int, policy: Policy, value: ValueFunction) -> dict[str, float]:
        """Make ``n_updates`` updates against the agent's present policy and value.

        :return: means over the updates of ``objective`` (the normalised L_adv), ``advantage_mean``
            and ``advantage_std`` (before normalisation, in units of reward), ``supervised_loss``;
            after them ``holdout_nll``, the mixture's on held-out data (nats per transition).
            With weight 0 there is no adversary and none of its first three.
        """
        sums = torch.zeros(4, device=self.model.device)
        if self.active and n_updates > 0:
            shape = (n_updates, self.settings.batch_size)
            n = len(self.train_rows)
            rows = torch.randint(n, shape, generator=self.generator, device=self.model.device)
            for batch in self.train_rows[rows]:
                sums += self.update(batch, policy, value)
        means = (sums / max(n_updates, 1)).tolist()
        names = ("objective", "advantage_mean", "advantage_std", "supervised_loss")
        metrics = dict(zip(names, means, strict=True)) if self.active else {}
        if self.settings.weight == 0:
            metrics = {name: metrics[name] for name in names[3:] if name in metrics}
        metrics["holdout_nll"] = float(self.holdout_nll())
        return metrics

    def update(self, batch: Tensor, policy: Policy, value: ValueFunction) -> Tensor:
        """One update with the data rows ``batch`` ``(B,)``; returns four metrics as a tensor."""
        real = (self.inputs[batch], self.targets[batch])
        self.optimizer.zero_grad()
        self.n_updates += 1
        if self.settings.weight == 0:  # continue_fit: maximum likelihood alone
            mean, logvar = self.model.ensemble(real[0])
            loss = supervised_loss(self.model.ensemble, mean, logvar, real[1])
            loss.backward()
            self.optimizer.step()
            zero = loss.new_zeros(())
            return torch.stack([zero, zero, zero, loss.detach()])
        with torch.no_grad():
            action = policy.sample(self.obs, self.generator)
        step, supervised = model_gradient(
            self.model, self.obs, action, value, self.gamma, self.generator, self.settings, real
        )
        (self.settings.weight * step.loss + supervised).backward(
            inputs=list(self.model.ensemble.parameters())
        )
        self.optimizer.step()
        self._next_states(step)
        std, centre = torch.std_mean(step.advantage, correction=0)
        return torch.stack([step.loss.detach(), centre, std, supervised.detach()])

    def holdout_nll(self) -> Tensor:
        """The mixture's mean negative log-likelihood on held-out data (nats per transition)."""
        rows = self.holdout_rows
        return self.model.nll(self.inputs[rows], self.targets[rows])
