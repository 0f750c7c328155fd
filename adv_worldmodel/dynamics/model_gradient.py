"""The model gradient (P eq. 5): what the world model can do about the agent's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from adv_worldmodel.checks import check_finite, check_whole
from adv_worldmodel.dynamics.ensemble import (
    MemberDraw,
    gaussian_log_density,
    mixture_log_density,
)
from adv_worldmodel.dynamics.likelihood import supervised_loss
from adv_worldmodel.dynamics.world_model import WorldModel
from adv_worldmodel.graphs import HERE, Branches
from adv_worldmodel.protocols import ValueFunction

Score = Literal["mixture", "member", "pathwise"]
SCORES: tuple[str, ...] = get_args(Score)
STD_FLOOR = 1e-6


@dataclass(frozen=True)
class AdversarySettings:
    """How the world model is turned against the agent; defaults are the paper's.

    :param weight: lambda of P eq. 9, on the *mean* over the batch of the adversarial loss;
        ``"auto"``: found by dual ascent on the constraint that P's problem has in its place.
    :param score: estimator of the model gradient: ``mixture`` (the paper's: score of the elite
        mixture), ``member`` (score of the drawn member alone: same expectation, each row
        one member's work, more variance) or ``pathwise`` (through the sample and the critic).
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
    max_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score = {self.score!r} is not one of {', '.join(SCORES)}")
        if isinstance(self.weight, str):
            if self.weight != "auto":
                raise ValueError(f"weight = {self.weight!r} is neither a number nor 'auto'")
        else:
            check_finite(weight=self.weight)
        check_finite(xi=self.xi, max_weight=self.max_weight)
        if not (self.xi > 0 and self.max_weight > 0):
            raise ValueError(f"xi = {self.xi}, max_weight = {self.max_weight} must be positive")
        check_whole(at_least=1, batch_size=self.batch_size)
        check_finite(learning_rate=self.learning_rate)
        if self.normalise and self.batch_size < 2:  # one row's advantage would always be 0
            raise ValueError(
                "batch_size = 1: expected at least 2 rows, over which the advantage is normalised; "
                "give more, or AdversarySettings(normalise=False)"
            )


class ModelGradient(NamedTuple):
    """What one batch of model rows gives; its ``loss`` has the model gradient as its gradient."""

    loss: Tensor  #: scalar
    raw_advantage: Tensor  #: (B,), before normalisation
    next_obs: Tensor  #: (B, S), the sampled successors
    terminated: Tensor  #: (B,), bool


class Outcome(NamedTuple):
    """What sampled targets mean for the agent, row by row."""

    advantage: Tensor  #: (B,), as it enters the loss: normalised, if the settings say so
    raw_advantage: Tensor  #: (B,), before normalisation
    next_obs: Tensor  #: (B, S)
    terminated: Tensor  #: (B,), bool


def model_rows(
    model: WorldModel, obs: Tensor, action: Tensor, members: MemberDraw, score: Score
) -> Tensor:
    """Inputs ``(E, R, S + A)``: all rows for every member, or each for the member drawn for it."""
    x = model.inputs(obs, action)
    return x.expand(model.n_members, -1, -1) if score == "mixture" else members.scatter(x)


def drawn_moments(
    mean: Tensor, logvar: Tensor, members: MemberDraw, score: Score
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``(B, D)`` of the members drawn, of those of :func:`model_rows`."""
    if score == "mixture":
        index = members.member, torch.arange(members.n_rows, device=mean.device)
        return mean[index], logvar[index]
    return members.gather(mean), members.gather(logvar)


def outcome_of(
    model: WorldModel,
    obs: Tensor,
    action: Tensor,
    y: Tensor,
    value: ValueFunction,
    gamma: float,
    baseline: Tensor | None,
    *,
    normalise: bool,
) -> Outcome:
    """r + gamma (1 - d) V(s') - Q(s, a) of sampled targets y ``(B, D)``.

    :param baseline: Q(s, a), ``(B,)``, without gradient; ``None`` takes nothing off.
    :param normalise: the advantages.
    """
    next_obs, reward = model.outcome(obs, action, y)
    branches = Branches(y.device)
    with branches.beside():
        terminated = model.termination(obs, action, next_obs.detach())
        nothing = reward.new_zeros(())
    # what autograd goes back through stays in one stream
    with HERE if baseline is None or reward.requires_grad else branches.beside():
        gain = reward if baseline is None else reward - baseline
    continued = value.v(next_obs)
    branches.join()
    raw = torch.add(gain, torch.where(terminated, nothing, continued), alpha=gamma)
    advantage = raw
    if normalise:
        std, centre = torch.std_mean(raw.detach(), correction=0)
        with branches.beside():
            unit = std + STD_FLOOR
        advantage = raw - centre
        branches.join()
        advantage = advantage / unit
    return Outcome(advantage, raw.detach(), next_obs.detach(), terminated)


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

    For the score functions :class:`ExplicitModelGradient` computes the same faster; this says what
    it computes.

    :param obs: raw states ``(B, S)``.
    :param action: raw actions ``(B, A)`` of the policy there.
    :param value: V and Q of the agent; no gradient reaches its parameters through the score
        functions.
    :param members: the member drawn for each row.
    :param noise: standard normals ``(B, D)``.
    :param real: standardised inputs and targets of a batch of data, evaluated in the same product.
    :return: the estimate, and L_sup of ``real`` (zero without).
    """
    ensemble, score = model.ensemble, settings.score
    action = torch.clamp(action, model.action_low, model.action_high)
    rows = model_rows(model, obs, action, members, score)
    n_rows = rows.shape[1]
    if real is not None:
        rows = torch.cat([rows, real[0].expand(model.n_members, -1, -1)], dim=1)
    mean_all, logvar_all = ensemble(rows)
    mean, logvar = mean_all[:, :n_rows], logvar_all[:, :n_rows]

    mu, lv = drawn_moments(mean, logvar, members, score)
    y = mu + noise * torch.exp(0.5 * lv)
    pathwise = score == "pathwise"
    if not pathwise:
        y = y.detach()  # no gradient through the sample: the score carries all of it
    with torch.no_grad():
        baseline = value.q(obs, action) if settings.baseline else None
    with torch.set_grad_enabled(pathwise):
        outcome = outcome_of(
            model, obs, action, y, value, gamma, baseline, normalise=settings.normalise
        )

    if pathwise:
        loss = outcome.advantage.mean()
    else:
        mixture = score == "mixture"
        log_p = mixture_log_density(y, mean, logvar) if mixture else gaussian_log_density(y, mu, lv)
        loss = (outcome.advantage * log_p).mean()
    supervised = loss.new_zeros(())
    if real is not None:
        supervised = supervised_loss(
            ensemble, mean_all[:, n_rows:], logvar_all[:, n_rows:], real[1]
        )
    return ModelGradient(loss, *outcome[1:]), supervised
