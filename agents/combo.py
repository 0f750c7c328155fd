"""COMBO: SAC in a fixed world model with conservative critics (Yu et al., NeurIPS 2021)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from adv_worldmodel.checks import check_finite
from agents.agent_step import Update
from agents.buffers import Batch, rows_of_data
from agents.rambo import RAMBO
from agents.updates import METRICS, SACParts, sac_update, sample_action

#: Uniform actions per state in the soft maximum, and as many of the policy (CQL's number).
N_ACTIONS = 10


class COMBO(RAMBO):
    """Conservative offline model-based policy optimisation in RAMBO's loop.

    RAMBO's rollouts, buffer, cloning and saving; against the model's errors the critics are
    pessimistic where the model is used, in place of an adversary: learn without
    :class:`agents.RamboCallback`, so that the model stays at its fit. See :func:`combo_update`
    for the loss.

    :param beta: weight of the critics' regulariser (Yu et al. take 0.5, 1 or 5 on MuJoCo); 0 is
        model-based policy optimisation on a fixed model.

    The other arguments are RAMBO's. Beside its metrics, ``train/conservative_gap`` is the
    regulariser, mean over critics, before ``beta``.
    """

    metrics: ClassVar[tuple[str, ...]] = (*METRICS, "conservative_gap")
    noises_per_update: ClassVar[int] = 2 + 2 * N_ACTIONS

    def __init__(self, *args: Any, beta: float = 0.5, **kwargs: Any) -> None:
        self.beta = beta
        super().__init__(*args, **kwargs)

    def check_own_settings(self) -> None:
        """Refuse a ``beta`` that is none, and batches without data or without model rows."""
        check_finite(beta=self.beta)
        n_real = rows_of_data(self.real_ratio, self.batch_size)
        if not 0 < n_real < self.batch_size:  # the regulariser compares the batch's two parts
            raise ValueError(
                f"real_ratio = {self.real_ratio} puts {n_real} rows of data into batches of "
                f"{self.batch_size}: COMBO needs data and model rows, choose one in between"
            )

    def settings_of_updates(self) -> tuple[Any, ...]:
        """RAMBO's, and the regulariser's weight."""
        return (*super().settings_of_updates(), self.beta)

    def _make_update(self, parts: SACParts, batch_size: int) -> Update:
        return partial(combo_update, parts, beta=self.beta)


def conservative_gap(
    parts: SACParts, obs: Tensor, uniform: Tensor, noise: Tensor, data_q: Tensor
) -> Tensor:
    """Per critic, ``(C,)``: the soft maximum of Q at model states, minus Q of the data rows.

    E_s[log int exp Q(s, a) da] over states of the model minus E_D[Q(s, a)]: the regulariser of
    Yu et al. 2021 ("conservative policy evaluation"), E_rho[Q] - E_D[Q], with the model's states
    for rho(s) and the rho(a|s) of CQL(H) (Kumar et al. 2020, eq. 4). The integral over [-1, 1]^A
    is estimated with N uniform actions, density 2^-A, and N of the policy (Kumar et al.,
    appendix F): log 1/2N [sum exp Q / 2^-A + sum exp Q / pi(a|s)].

    :param obs: states of model rows, ``(M, S)``.
    :param uniform: actions in [-1, 1], ``(N, M, A)``.
    :param noise: standard normals of the
        policy's actions, ``(N, M, A)``; no gradient reaches the policy.
    :param data_q: Q of the data rows, ``(C, n)``.
    """
    n, m, width = uniform.shape
    obs = obs.repeat(n, 1)
    with torch.no_grad():
        action, log_density = sample_action(parts.actor, obs, noise.reshape(n * m, width))
        uniform_density = torch.full_like(log_density, -width * math.log(2.0))
        log_density = torch.cat([uniform_density, log_density])
    actions = torch.cat([uniform.reshape(n * m, width), action])
    q = parts.critic.q_values(obs.repeat(2, 1), actions)
    weighted = (q - log_density).reshape(-1, 2 * n, m)
    soft_maximum = torch.logsumexp(weighted, dim=1) - math.log(2 * n)
    return soft_maximum.mean(dim=1) - data_q.mean(dim=1)


def combo_update(parts: SACParts, batch: Batch, noise: Tensor, beta: float) -> Tensor:
    """SAC's update, in which each critic's loss has ``beta`` times :func:`conservative_gap`.

    That is 1/2 E[(Q - target)^2] over the mixed batch + beta gap (Yu et al. 2021), with SAC's
    target, policy and entropy coefficient.

    :param noise: standard normals ``(2 + 2 N, B, A)``: at s and at s' as SAC's, then what the
        uniform and the policy's actions of the soft maximum are made of.
    :return: the values named in :attr:`COMBO.metrics`, on the device.
    """
    n_real, normals = parts.n_real, noise[2:, parts.n_real :]
    n = len(normals) // 2
    uniform = torch.erf(normals[:n] / math.sqrt(2.0))  # 2 Phi(z) - 1
    gaps = []

    def penalty(q: Tensor) -> Tensor:
        gap = conservative_gap(parts, batch.obs[n_real:], uniform, normals[n:], q[:, :n_real])
        gaps.append(gap.detach().mean())
        return beta * gap.sum()

    metrics = sac_update(parts, batch, noise[0], noise[1], penalty)
    return torch.stack([*metrics, *gaps])
