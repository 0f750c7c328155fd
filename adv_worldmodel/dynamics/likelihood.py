"""The supervised loss of the ensemble (P eq. 9) and its optimiser, of the fit and the adversary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adv_worldmodel.adam import step_of
from adv_worldmodel.dynamics.ensemble import LOG_2PI, Ensemble

LOGVAR_LIMIT_WEIGHT = 0.001


def weight_decays(n_layers: int) -> tuple[float, ...]:
    """L2 weight per layer; for the paper's five layers 2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4."""
    if n_layers < 3:
        return (2.5e-5, 1e-4)[-n_layers:]
    return (2.5e-5, 5e-5, *[7.5e-5] * (n_layers - 3), 1e-4)


def make_optimizer(ensemble: Ensemble, learning_rate: float) -> torch.optim.Adam:
    """Adam on the ensemble, with the layers' L2 terms.

    Adam's coupled ``weight_decay`` adds w W to the gradient: exactly that of w / 2 ||W||^2.
    """
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": decay}
        for weight, decay in zip(
            ensemble.weights, weight_decays(len(ensemble.weights)), strict=True
        )
    ]
    rest = [*ensemble.biases, ensemble.max_logvar, ensemble.min_logvar]
    return torch.optim.Adam([*groups, {"params": rest}], lr=learning_rate, fused=True)


def supervised_loss(
    ensemble: Ensemble, mean: Tensor, logvar: Tensor, y: Tensor, beta: float = 0.0
) -> Tensor:
    """L_sup of P eq. 9, 2 / D times the negative log-likelihood, and the log-variance limits.

    Sum over members of the mean over rows and dimensions of (y - mu)^2 / sigma^2 + log sigma^2.
    The L2 terms live in the optimiser (:func:`make_optimizer`).

    :param beta: each term counts sigma^(2 beta) times, as a constant: the beta-NLL of Seitzer et
        al. 2022. The likelihood's own gradient in the mean is divided by sigma^2, so that what is
        badly predicted at first is taken for noise and hardly learnt any more; with 1 it is that of
        the squared error.
    """
    terms = (y - mean).square() * torch.exp(-logvar) + logvar
    if beta > 0.0:
        terms = terms * torch.exp(beta * logvar.detach())
    return terms.mean(dim=(-2, -1)).sum() + logvar_limits_loss(ensemble)


def likelihood_step(
    ensemble: Ensemble,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    beta: float = 0.0,
) -> Tensor:
    """One step of maximum likelihood on a batch; returns its :func:`supervised_loss`."""
    mean, logvar = ensemble(inputs)
    optimizer.zero_grad()
    loss = supervised_loss(ensemble, mean, logvar, targets, beta)
    loss.backward()
    step_of(optimizer)
    return loss.detach()


def logvar_limits_loss(ensemble: Ensemble) -> Tensor:
    """What keeps the log-variance limits near each other."""
    spread: Tensor = (ensemble.max_logvar - ensemble.lower_limit).sum()
    return LOGVAR_LIMIT_WEIGHT * spread


@torch.no_grad()
def mean_nll(ensemble: Ensemble, supervised: Tensor) -> Tensor:
    """The members' mean negative log-likelihood (nats per transition) behind a supervised loss."""
    per_dimension = (supervised - logvar_limits_loss(ensemble)) / ensemble.n_members + LOG_2PI
    return per_dimension * (0.5 * ensemble.output_dim)
