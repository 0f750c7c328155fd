"""What RAMBO's settings may be, when they come into effect, and where an agent may be."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import torch

from adv_worldmodel.checks import check_finite, check_shares, check_whole
from agents.buffers import rows_of_data
from agents.rollouts import ROLLOUT_POLICIES

if TYPE_CHECKING:
    from agents.rambo import RAMBO

__all__ = [
    "begin_alpha_anew_where_lost",
    "check_devices",
    "check_settings",
    "put_into_effect",
    "take_settings",
]


def check_devices(agent: torch.device, world: torch.device) -> None:
    """Refuse an agent on another device than its world model.

    :param agent: as the algorithm names it, with an index or without.
    """
    if torch.empty(0, device=agent).device != world:
        raise ValueError(
            f"the agent is on {agent}, its world model on {world}: give both the same device"
        )


def check_settings(agent: RAMBO) -> None:
    """Refuse what cannot be meant: of the constructor, of ``load(..., setting=value)``, set since.

    :raises ValueError: the message names the setting, its value and what it may be.
    """
    if callable(agent.learning_rate):
        raise ValueError("learning_rate is a schedule, RAMBO's are constant: give a number")
    if agent.rollout_policy not in ROLLOUT_POLICIES:
        raise ValueError(f"rollout_policy = {agent.rollout_policy!r} is not 'current' or 'random'")
    check_whole(
        at_least=1,
        retain_iterations=agent.retain_iterations,
        gradient_steps=agent.gradient_steps,
        batch_size=agent.batch_size,
    )
    check_whole(at_least=0, critic_warmup=agent.critic_warmup)
    check_shares(real_ratio=agent.real_ratio, gamma=agent.gamma, tau=agent.tau)
    check_finite(
        learning_rate=agent.learning_rate,
        actor_learning_rate=agent.actor_learning_rate,
        entropy_learning_rate=agent.entropy_learning_rate,
        cloning_weight=agent.cloning_weight,
    )
    _check_entropy_coefficient(agent.ent_coef)
    made_with = agent._made_with_ent_coef
    if agent.ent_coef != made_with and str in (type(agent.ent_coef), type(made_with)):
        raise ValueError(
            f"ent_coef = {agent.ent_coef!r}, and the agent was made with {made_with!r}: later "
            "only a number can take a number's place"
        )
    target = agent.target_entropy
    if target != "auto" and not (isinstance(target, Real) and math.isfinite(target)):
        raise ValueError(f"target_entropy = {target!r} must be 'auto' or a finite number")
    if agent.cloning_weight > 0.0 and rows_of_data(agent.real_ratio, agent.batch_size) < 1:
        raise ValueError(
            f"cloning_weight = {agent.cloning_weight} needs rows of data: "
            f"real_ratio = {agent.real_ratio}"
        )
    agent.check_own_settings()


def _check_entropy_coefficient(value: str | float) -> None:
    """SB3 takes each text that begins with "auto" for one to be learnt, and others for numbers."""
    text = str(value)
    learnt = isinstance(value, str) and (text == "auto" or text.startswith("auto_"))
    try:
        number = 1.0 if text == "auto" else float(text.removeprefix("auto_"))
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf or (learnt and number == 0.0):
        raise ValueError(
            f"ent_coef = {value!r} must be a finite number of at least 0, 'auto', or 'auto_X' with "
            "a positive X to begin with"
        )


def take_settings(agent: RAMBO) -> None:
    """Go on with the settings as they are now; attributes may have been set since."""
    check_settings(agent)
    put_into_effect(agent)
    if agent.target_entropy == "auto":
        agent.target_entropy = -float(agent.action_space.shape[0])  # type: ignore[index]
    if agent.log_ent_coef is None and agent.ent_coef != agent._made_with_ent_coef:
        agent.ent_coef_tensor.fill_(float(agent.ent_coef))
        agent._made_with_ent_coef = agent.ent_coef


def begin_alpha_anew_where_lost(agent: RAMBO) -> None:
    """A learned entropy coefficient that is no number starts again.

    It is no part of what ``set_parameters`` puts back after a divergence.
    """
    if agent.log_ent_coef is None or agent.first_log_alpha is None:
        return
    if not bool(agent.log_ent_coef.isfinite().all()):
        with torch.no_grad():
            agent.log_ent_coef.copy_(agent.first_log_alpha)
        if agent.ent_coef_optimizer is not None:
            agent.ent_coef_optimizer.state.clear()


def put_into_effect(agent: RAMBO) -> None:
    """Hand on the learning rates and the share of data, where they were set since."""
    optimizers = {
        "learning_rate": agent.critic.optimizer,
        "actor_learning_rate": agent.actor.optimizer,
        "entropy_learning_rate": agent.ent_coef_optimizer,
    }
    for name in (*optimizers, "real_ratio"):
        value = float(getattr(agent, name))  # what is of NumPy neither SB3 nor torch would load
        setattr(agent, name, value)
        if agent._in_effect.get(name) == value:  # a callback may have set an optimiser's own
            continue
        agent._in_effect[name] = value
        if name == "real_ratio":
            agent.replay_buffer.real_ratio = value
        elif (optimizer := optimizers[name]) is not None:
            for group in optimizer.param_groups:
                group["lr"] = value
