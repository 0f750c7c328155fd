"""The agent's update as a function of drawn rows and noise, and the drawing of both."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adv_worldmodel.dynamics.adversary import DRAWN_TOGETHER
from adv_worldmodel.dynamics.ensemble import MemberDraw, n_slots
from adv_worldmodel.graphs import (
    GraphedStep,
    can_be_captured,
    hooks_of,
    make_capturable,
    parts_of,
    taken_from_outside,
)
from agents.buffers import Batch
from agents.policies import Standardise
from agents.updates import SACParts

if TYPE_CHECKING:
    from adv_worldmodel.dynamics import WorldModel
    from agents.rambo import RAMBO

#: Least tau while only the critics learn. The policy is fixed, so slow targets are not needed; with
#: SAC's tau the values would take ten times as long to reach their size.
WARMUP_TAU = 0.05
#: One update of a batch and standard normals, which returns metrics.
Update = Callable[[Batch, Tensor], Tensor]


def _optimizers(model: RAMBO) -> tuple[torch.optim.Optimizer | None, ...]:
    return model.policy.actor.optimizer, model.policy.critic.optimizer, model.ent_coef_optimizer


class AgentStep:
    """Updates of RAMBO's networks on mixed batches of one size.

    :param model: whose networks, buffer and generator they are.
    :param batch_size: rows, real and synthetic.
    :param actor_frozen: only the critics learn.
    """

    def __init__(self, model: RAMBO, batch_size: int, *, actor_frozen: bool = False) -> None:
        self.model, self.buffer, self.batch_size = model, model.replay_buffer, batch_size
        self.actor_frozen = actor_frozen
        self.n_real = self.buffer.n_real(batch_size)
        self.update = model._make_update(self.parts(), batch_size)
        self.note_outside()
        self.graphed = GraphedStep(self._update, model.device, enabled=self._with_graphs())

    def note_outside(self) -> None:
        """Remember what the updates take as it is; again after updates, which make states."""
        self._outside = self._taken_as_it_is()

    def serves(self, batch_size: int, *, actor_frozen: bool) -> bool:
        """Whether further updates may be this one's, or a callback, say, has changed something."""
        same = (batch_size, actor_frozen) == (self.batch_size, self.actor_frozen)
        return same and self._outside == self._taken_as_it_is()

    def _taken_as_it_is(self) -> tuple[Any, ...]:
        """See :func:`taken_from_outside`."""
        model = self.model
        policy, log_alpha, buffer = model.policy, model.log_ent_coef, model.replay_buffer
        alpha = model.ent_coef_tensor if log_alpha is None else log_alpha
        # loaded weights bring their statistics, of which the update has made factors
        fixed = [m for m in policy.modules() if type(m) is Standardise]
        versions = tuple(t._version for module in fixed for t in module.buffers())
        outside = taken_from_outside([*parts_of(policy), alpha], *_optimizers(model))
        n_real = buffer.n_real(self.batch_size)
        rows = [t.data_ptr() for t in (buffer.real, buffer.synthetic) if t is not None]
        world = self.world_model.taken_as_it_is() if model.fresh_outcomes else ()
        return *outside, *world, id(buffer), *rows, versions, n_real, model.settings_of_updates()

    def _with_graphs(self) -> bool:
        """Whether the updates may be captured, on a GPU; says why they may not."""
        model, why = self.model, ""
        optimizers = [optimizer for optimizer in _optimizers(model) if optimizer is not None]
        if counting := [o for o in optimizers if not can_be_captured(o)]:
            why = f"{type(counting[0]).__name__} has no option 'capturable'"
        if any(map(hooks_of, parts_of(model.policy))) or any(map(hooks_of, optimizers)):
            why = "there are hooks, which a replay would not call"
        if model.graphs and why and model.device.type == "cuda":
            warnings.warn(f"running without CUDA graphs, which is slower: {why}", stacklevel=2)
        return model.graphs and not why

    def parts(self) -> SACParts:
        """The networks, optimisers and settings of an update."""
        model = self.model
        policy, device = model.policy, model.device
        for optimizer in _optimizers(model):
            if optimizer is not None:
                make_capturable(optimizer, device)
        learnt = model.log_ent_coef is not None
        # the tensor itself: a callback may write to it
        fixed_alpha = torch.zeros(1, device=device) if learnt else model.ent_coef_tensor.reshape(1)
        return SACParts(
            actor=policy.actor,
            critic=policy.critic,
            critic_target=policy.critic_target,
            log_alpha=model.log_ent_coef,
            fixed_alpha=fixed_alpha,
            entropy_optimizer=model.ent_coef_optimizer,
            gamma=model.gamma,
            tau=max(model.tau, WARMUP_TAU) if self.actor_frozen else model.tau,
            target_entropy=float(model.target_entropy),
            entropy_in_target=model.entropy_in_target,
            actor_frozen=self.actor_frozen,
            cloning_weight=model.cloning_weight,
            n_real=self.n_real,
            log_alpha_limit=model.first_log_alpha if model.cloning_weight > 0.0 else None,
        )

    @property
    def captured(self) -> bool:
        """Whether updates are replays of a CUDA graph by now."""
        return self.graphed.captured

    @property
    def world_model(self) -> WorldModel:
        """Whose rollouts the buffer holds."""
        world_model: WorldModel = self.model.env.world_model  # type: ignore[union-attr]
        return world_model

    def __call__(self, *draws: Tensor) -> Tensor:
        """One update with the draws of one update; returns ``model.metrics``."""
        return self.graphed(*draws)[0]

    def _update(
        self, real: Tensor, synthetic: Tensor, noise: Tensor, *outcome: Tensor
    ) -> tuple[Tensor]:
        batch = self.buffer.gather(real, synthetic)
        if outcome:
            batch = self._renewed(batch, *outcome)
        return (self.update(batch, noise),)

    def draws(self, n_updates: int) -> Iterator[tuple[Tensor, ...]]:
        """For each update: row numbers of data and model rows, standard normals of the policy.

        With ``fresh_outcomes`` also who evaluates which model row, and its standard normals.
        """
        model, generator, device = self.model, self.model._generator, self.model.device
        rows = self.buffer.draw(n_updates, self.batch_size)
        n_model = self.batch_size - self.n_real
        for start in range(0, n_updates, DRAWN_TOGETHER):
            n = min(DRAWN_TOGETHER, n_updates - start)
            shape = (n, model.noises_per_update, self.batch_size, self.buffer.action_dim)
            blocks = [block[start : start + n] for block in rows]
            blocks.append(torch.randn(shape, generator=generator, device=device))
            if model.fresh_outcomes and n_model > 0:
                ensemble = self.world_model.ensemble
                places = n_slots(n_model, ensemble.n_members)
                keys = torch.rand((n, places), generator=generator, device=device)
                shape_y = (n, n_model, ensemble.output_dim)
                blocks.append(keys.argsort(dim=1))
                blocks.append(torch.randn(shape_y, generator=generator, device=device))
            yield from zip(*blocks, strict=True)

    def _renewed(self, batch: Batch, slots: Tensor, noise: Tensor) -> Batch:
        """The batch with what the present model makes of the model rows' (s, a)."""
        world_model, bounds, k = self.world_model, self.buffer.bounds, self.n_real
        obs, action = batch.obs[k:], bounds.unscale(batch.action[k:])
        members = MemberDraw(slots, len(obs), world_model.n_members)
        next_obs, reward, terminated = world_model.transition(obs, action, members, noise)
        return batch._replace(
            reward=torch.cat([batch.reward[:k], reward]),
            next_obs=torch.cat([batch.next_obs[:k], next_obs]),
            continues=torch.cat([batch.continues[:k], (~terminated).float()]),
        )
