"""The model gradient (P eq. 5) and the adversarial update of the world model (P eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.device import shared_tensor
from adv_worldmodel.dynamics.constraint import DualWeight
from adv_worldmodel.dynamics.ensemble import (
    MemberDraw,
    gaussian_log_density,
    mixture_log_density,
    n_slots,
)
from adv_worldmodel.dynamics.fitting import make_optimizer, mean_nll, supervised_loss
from adv_worldmodel.dynamics.world_model import WorldModel
from adv_worldmodel.graphs import GraphedStep, make_capturable
from adv_worldmodel.protocols import Policy, ValueFunction
from adv_worldmodel.seeding import make_generator

Score = Literal["mixture", "member", "pathwise"]
SCORES: tuple[str, ...] = get_args(Score)
STD_FLOOR = 1e-6
#: Data rows whose likelihood is found together; bounds memory.
ROWS_TOGETHER = 10_000
#: Updates whose random numbers are drawn together; bounds memory, and calls to the generator.
DRAWN_TOGETHER = 250


class ModelGradient(NamedTuple):
    """What one batch of model rows gives; its ``loss`` has the model gradient as its gradient."""

    loss: Tensor  #: scalar
    advantage: Tensor  #: (B,), before normalisation
    next_obs: Tensor  #: (B, S), the sampled successors
    terminated: Tensor  #: (B,), bool


@dataclass(frozen=True)
class AdversarySettings:
    """How the world model is turned against the agent; defaults are the paper's.

    :param weight: lambda of P eq. 9, on the *mean* over the batch of the adversarial loss;
        ``"auto"``: found by dual ascent on the constraint that P's problem has in its place.
    :param score: estimator of the model gradient: ``mixture`` (the paper's: score of the elite
        mixture), ``member`` (score of the drawn member alone: same expectation, a fifth of the
        work, more variance) or ``pathwise`` (through the sample and the critic).
    :param batch_size: rows from the data, and as many from the model, per update.
    :param learning_rate: Adam's.
    :param continue_fit: with weight 0, go on fitting the data; otherwise weight 0 does nothing.
    :param baseline: subtract Q(s, a) from the score functions' return.
    :param normalise: standardise the advantage over the batch (P 5.2).
    :param xi: with weight ``"auto"``, nats per transition by which the model's negative
        log-likelihood on the data may exceed the best it has been; see :class:`DualWeight`.
    :param max_weight: with weight ``"auto"``, what lambda may rise to.
    """

    weight: float | Literal["auto"] = 3e-4
    score: Score = "mixture"
    batch_size: int = 256
    learning_rate: float = 3e-4
    continue_fit: bool = False
    baseline: bool = True
    normalise: bool = True
    xi: float = 0.1
    max_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score = {self.score!r} is not one of {', '.join(SCORES)}")
        if isinstance(self.weight, str):
            if self.weight != "auto":
                raise ValueError(f"weight = {self.weight!r} is neither a number nor 'auto'")
        elif self.weight < 0:
            raise ValueError(f"weight = {self.weight} must not be negative")
        if self.xi <= 0 or self.max_weight <= 0:
            raise ValueError(f"xi = {self.xi}, max_weight = {self.max_weight} must be positive")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size} must be at least 1")


def model_gradient(
    model: WorldModel,
    obs: Tensor,
    action: Tensor,
    value: ValueFunction,
    gamma: float,
    members: MemberDraw,
    noise: Tensor,
    settings: AdversarySettings,
    real: tuple[Tensor, Tensor] | None = None,
) -> tuple[ModelGradient, Tensor]:
    """Estimate the gradient of E[r + gamma (1 - d) V(s')] in the model's parameters (P eq. 5).

    :param obs: raw states ``(B, S)``; :param action: raw actions ``(B, A)`` of the policy there.
    :param value: V and Q of the agent; no gradient reaches its parameters through the score
        functions.
    :param members: the member drawn for each row. :param noise: standard normals ``(B, D)``.
    :param real: standardised inputs and targets of a batch of data, evaluated in the same product.
    :return: the estimate, and L_sup of ``real`` (zero without).
    """
    n, ensemble = len(obs), model.ensemble
    action = torch.clamp(action, model.action_low, model.action_high)
    x = model.inputs(obs, action)
    mixture = settings.score == "mixture"
    rows = x.expand(model.n_members, -1, -1) if mixture else members.scatter(x)
    n_rows = rows.shape[1]
    if real is not None:
        rows = torch.cat([rows, real[0].expand(model.n_members, -1, -1)], dim=1)
    mean_all, logvar_all = ensemble(rows)
    mean, logvar = mean_all[:, :n_rows], logvar_all[:, :n_rows]

    if mixture:
        index = torch.arange(n, device=x.device)
        mu, lv = mean[members.member, index], logvar[members.member, index]
    else:
        mu, lv = members.gather(mean), members.gather(logvar)
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


class Draws(NamedTuple):
    """The random numbers of adversarial updates; the leading dimension is the update."""

    batch: Tensor  #: (n, B), rows of the data to fit
    slots: Tensor  #: (n, n_slots(B, E)), who evaluates which model row
    action: Tensor  #: (n, B, A), standard normals of the policy
    outcome: Tensor  #: (n, B, D), standard normals of the model
    starts: Tensor  #: (n, B), data-set rows where rollouts start again
    restart: Tensor  #: (n, 1), bool: the rollouts' horizon is reached


class Adversary:
    """Lowers the agent's value in a world model while the model keeps fitting the data.

    One update minimises lambda L_adv + L_sup (P eq. 9) on ``batch_size`` model rows and as many
    rows of data. The model rows come from rollouts of the policy in the present model: they start
    in data-set states, move one step per update, start again after ``horizon`` steps, and where
    the model terminated them (the authors' code simulates past a termination).

    :param model: changed in place. :param dataset: what it keeps fitting.
    :param horizon: k, steps of a rollout. :param gamma: discount.
    :param seed: of everything drawn here; the optimiser is fresh, as after the fit.
    :param graphs: replay the update as a CUDA graph, on a GPU.
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
        graphs: bool = True,
    ) -> None:
        self.model, self.settings = model, settings
        self.horizon, self.gamma, self.graphs = horizon, gamma, graphs
        device = model.device
        self.generator = make_generator(seed, "adversary", device)
        self.optimizer = make_optimizer(model.ensemble, settings.learning_rate)
        make_capturable(self.optimizer, device)
        self.parameters = list(model.ensemble.parameters())
        self.inputs, self.targets = model.encode(dataset)
        self.train_rows, self.holdout_rows = model.split(dataset)
        self.start_states = shared_tensor(dataset.observations, device)
        #: present states of the rollouts, ``(B, S)``
        self.obs = self.start_states[self._rows(len(self.start_states), 1)[0]]
        #: lambda, where the settings leave it to the constraint
        self.dual: DualWeight | None = None
        if settings.weight == "auto":
            self.dual = DualWeight(self.nll_by_row(), settings.xi, settings.max_weight)
        self.n_updates = 0
        self._against: tuple[Policy, ValueFunction] | None = None
        self._step: GraphedStep | None = None

    @property
    def active(self) -> bool:
        """Whether an update changes anything: lambda = 0 leaves the model at its fit."""
        return self.settings.weight != 0 or self.settings.continue_fit

    @torch.no_grad()
    def nll_by_row(self) -> Tensor:
        """The members' mean negative log-likelihood of each row of the data (nats), ``(N,)``."""
        parts = []
        for x, y in zip(
            self.inputs.split(ROWS_TOGETHER), self.targets.split(ROWS_TOGETHER), strict=True
        ):
            mean, logvar = self.model.ensemble(x)
            parts.append(-gaussian_log_density(y, mean, logvar).mean(0))
        return torch.cat(parts)

    def _rows(self, n: int, n_updates: int) -> Tensor:
        shape = (n_updates, self.settings.batch_size)
        return torch.randint(n, shape, generator=self.generator, device=self.model.device)

    def draw(self, n_updates: int) -> Draws:
        """The random numbers of the next ``n_updates`` updates."""
        model, generator, n_rows = self.model, self.generator, self.settings.batch_size
        device = model.device
        places = n_slots(n_rows, model.n_members)
        keys = torch.rand((n_updates, places), generator=generator, device=device)
        widths = (model.action_dim, model.ensemble.output_dim)
        action, outcome = (
            torch.randn((n_updates, n_rows, width), generator=generator, device=device)
            for width in widths
        )
        steps = torch.arange(self.n_updates + 1, self.n_updates + n_updates + 1, device=device)
        return Draws(
            self.train_rows[self._rows(len(self.train_rows), n_updates)],
            keys.argsort(dim=1),
            action,
            outcome,
            self._rows(len(self.start_states), n_updates),
            (steps % self.horizon == 0).unsqueeze(-1),
        )

    def run(self, n_updates: int, policy: Policy, value: ValueFunction) -> dict[str, float]:
        """Make ``n_updates`` updates against the agent's present policy and value.

        :return: means over the updates of ``objective`` (the normalised L_adv), ``advantage_mean``
            and ``advantage_std`` (before normalisation, in units of reward), ``supervised_loss``;
            after them ``holdout_nll``, the mixture's on held-out data (nats per transition).
            With weight 0 there is no adversary and none of its first three. With weight
            ``"auto"`` also lambda as it is in the end, ``weight``, and ``excess_nll``, what the
            constraint bounds by xi.
        """
        sums = torch.zeros(4, device=self.model.device)
        left = n_updates if self.active else 0
        while left > 0:
            n = min(left, DRAWN_TOGETHER)
            for draws in zip(*self.draw(n), strict=True):
                sums += self.update(Draws(*draws), policy, value)
            left -= n
        names = ["objective", "advantage_mean", "advantage_std", "supervised_loss", "holdout_nll"]
        found = [*(sums / max(n_updates, 1)), self.holdout_nll()]
        if self.dual is not None:
            names += ["weight", "excess_nll"]
            found += [self.dual.weight, self.dual.excess]
        means = torch.stack(found).tolist()  # the one wait for the device
        unknown = names[:4] if not self.active else names[:3] if self.settings.weight == 0 else ()
        return {n: mean for n, mean in zip(names, means, strict=True) if n not in unknown}

    def update(self, draws: Draws, policy: Policy, value: ValueFunction) -> Tensor:
        """One update with the random numbers of one update; returns four metrics as a tensor."""
        if self._step is None or self._against != (policy, value):
            self._against = (policy, value)
            function = self._fit_step if self.settings.weight == 0 else self._adversarial_step
            self._step = GraphedStep(function, self.model.device, enabled=self.graphs)
        self.n_updates += 1
        return self._step(*draws)[0]

    def _fit_step(self, batch: Tensor, *_: Tensor) -> tuple[Tensor]:
        """``continue_fit``: maximum likelihood alone."""
        self.optimizer.zero_grad()
        mean, logvar = self.model.ensemble(self.inputs[batch])
        loss = supervised_loss(self.model.ensemble, mean, logvar, self.targets[batch])
        loss.backward()
        self.optimizer.step()
        zero = torch.zeros_like(loss)
        return (torch.stack([zero, zero, zero, loss.detach()]),)

    def _adversarial_step(
        self,
        batch: Tensor,
        slots: Tensor,
        action_noise: Tensor,
        noise: Tensor,
        starts: Tensor,
        restart: Tensor,
    ) -> tuple[Tensor]:
        assert self._against is not None
        policy, value = self._against
        self.optimizer.zero_grad()
        with torch.no_grad():
            action = policy.sample(self.obs, action_noise)
        step, supervised = model_gradient(
            self.model,
            self.obs,
            action,
            value,
            self.gamma,
            MemberDraw(slots, len(self.obs), self.model.n_members),
            noise,
            self.settings,
            (self.inputs[batch], self.targets[batch]),
        )
        # without a dual weight the settings hold a number
        weight = float(self.settings.weight) if self.dual is None else self.dual.weight
        loss = weight * step.loss + supervised
        loss.backward(inputs=self.parameters)
        if self.dual is not None:
            self.dual.update(mean_nll(self.model.ensemble, supervised.detach()), batch)
        self.optimizer.step()
        ended = (step.terminated | restart).unsqueeze(-1)
        self.obs.copy_(torch.where(ended, self.start_states[starts], step.next_obs))
        std, centre = torch.std_mean(step.advantage, correction=0)
        return (torch.stack([step.loss.detach(), centre, std, supervised.detach()]),)

    def holdout_nll(self) -> Tensor:
        """The mixture's mean negative log-likelihood on held-out data (nats per transition)."""
        rows = self.holdout_rows
        return self.model.nll(self.inputs[rows], self.targets[rows])
