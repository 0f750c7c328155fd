"""The adversarial update of the world model (P eq. 9)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_worldmodel.adam import step_of
from adv_worldmodel.checks import check_shares, check_whole
from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.device import shared_tensor
from adv_worldmodel.dynamics.constraint import DualWeight
from adv_worldmodel.dynamics.ensemble import MemberDraw, gaussian_log_density, n_slots
from adv_worldmodel.dynamics.explicit_gradients import ExplicitModelGradient
from adv_worldmodel.dynamics.likelihood import likelihood_step, make_optimizer, mean_nll
from adv_worldmodel.dynamics.model_gradient import (
    STD_FLOOR,
    AdversarySettings,
    model_gradient,
)
from adv_worldmodel.dynamics.world_model import WorldModel, check_dimensions
from adv_worldmodel.graphs import (
    Branches,
    GraphedStep,
    hooks_of,
    make_capturable,
    taken_from_outside,
)
from adv_worldmodel.protocols import Policy, ValueFunction
from adv_worldmodel.seeding import make_generator

#: Data rows whose likelihood is found together; bounds memory.
ROWS_TOGETHER = 10_000
#: Updates whose random numbers are drawn together; bounds memory, and calls to the generator.
DRAWN_TOGETHER = 250
#: Below this, a hundred times the floor of the advantages' standard deviation, lambda may weaken.
SMALLEST_REWARD_STD = 100 * STD_FLOOR


class Draws(NamedTuple):
    """The random numbers of adversarial updates; the leading dimension is the update."""

    batch: Tensor  #: (n, B), rows of the data to fit
    slots: Tensor  #: (n, n_slots(B, E)), who evaluates which model row
    action: Tensor  #: (n, B, A), standard normals of the policy, in the states after the update
    outcome: Tensor  #: (n, B, D), standard normals of the model
    starts: Tensor  #: (n, B), data-set rows where rollouts start again
    restart: Tensor  #: (n, 1), bool: all rollouts start again


def _warn_of_tiny_rewards(dataset: OfflineDataset) -> None:
    """Warn where advantages may be as small as what keeps their normalisation from dividing by 0.

    Rewards that are all the same say nothing of their unit.
    """
    spread = float(dataset.rewards.std(dtype=np.float64))
    if np.ptp(dataset.rewards) > 0 and spread < SMALLEST_REWARD_STD:
        warnings.warn(
            f"{dataset.name}: the rewards' standard deviation is {spread:.2g}, below "
            f"{SMALLEST_REWARD_STD:g}, which weakens the adversary: rescale the rewards",
            stacklevel=3,
        )


class Adversary:
    """Lowers the agent's value in a world model while the model keeps fitting the data.

    One update minimises lambda L_adv + L_sup (P eq. 9) on ``batch_size`` model rows and as many
    rows of data. The model rows come from rollouts of the policy in the present model: they start
    in data-set states and move one step per update; all start again every ``horizon`` updates, and
    each where the model terminated it (the authors' code simulates past a termination). Their
    members are drawn anew each step, whatever ``member_per`` says of the agent's rollouts.

    :param model: changed in place.
    :param dataset: what it keeps fitting.
    :param settings: of the updates; see :class:`AdversarySettings`.
    :param horizon: k, steps of a rollout.
    :param gamma: discount.
    :param seed: of everything drawn here; the optimiser is fresh, as after the fit.
    :param graphs: replay the update as a CUDA graph, on a GPU.
    :raises ValueError: data of other dimensions than the model's, or of one transition; ``horizon``
        or ``gamma`` out of range.
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
        check_whole(at_least=1, horizon=horizon)
        check_shares(gamma=gamma)
        check_dimensions(dataset, model)
        if settings.weight != 0 and settings.normalise:
            _warn_of_tiny_rewards(dataset)
        self.model, self.settings = model, settings
        self.horizon, self.gamma, self.graphs = horizon, gamma, graphs
        #: of the data that the model keeps fitting
        self.content_hash = dataset.content_hash
        device = model.device
        self.generator = make_generator(seed, "adversary", device)
        self.parameters: list[Tensor] = []
        #: the faster way to the gradients of the score functions; ``None`` takes autograd's
        self.explicit: ExplicitModelGradient | None = None
        self._learners: tuple[Any, ...] = ()
        self._take_learners()
        self.inputs, self.targets = model.encode(dataset)
        self.train_rows, self.holdout_rows = model.split(dataset)
        if self.active and not len(self.train_rows):
            raise ValueError(
                "the data have one transition, which is held out: the adversary needs at least 2 "
                "to keep the model near the data"
            )
        self.start_states = shared_tensor(dataset.observations, device)
        #: present states of the rollouts, ``(B, S)``, and the policy's actions there, ``(B, A)``
        self.obs = self.start_states[self._rows(len(self.start_states), 1)[0]]
        self.action = self.obs.new_zeros(len(self.obs), model.action_dim)
        #: lambda, where the settings leave it to the constraint
        self.dual: DualWeight | None = None
        if settings.weight == "auto":
            self.dual = DualWeight(self.nll_by_row(), settings.xi, settings.max_weight)
        self.n_updates = 0
        self._against: tuple[Policy, ValueFunction] | None = None
        self._step: GraphedStep | None = None
        self._outside: tuple[Any, ...] = ()
        self._hooked = False

    def _take_learners(self) -> None:
        """The ensemble's parameters, of which a user may freeze some, or give others."""
        ensemble, score = self.model.ensemble, self.settings.score
        parameters = list(ensemble.parameters())
        learners = tuple((id(p), p.requires_grad, hooks_of(p)) for p in parameters)
        if learners == self._learners:
            return
        if not self._learners or not self._learns(parameters):
            self.optimizer = make_optimizer(ensemble, self.settings.learning_rate)
            make_capturable(self.optimizer, self.model.device)
        self._learners = learners
        self.parameters = [p for p in parameters if p.requires_grad]
        self.explicit = None
        hooks = any(map(hooks_of, parameters))
        if score != "pathwise" and not hooks and len(self.parameters) == len(parameters):
            self.explicit = ExplicitModelGradient(self.model, self.settings, self.gamma)

    def _learns(self, parameters: list[nn.Parameter]) -> bool:
        """Whether these are the optimiser's: a copy of this adversary's are others, as its own."""
        groups = self.optimizer.param_groups
        return {id(p) for group in groups for p in group["params"]} == set(map(id, parameters))

    def discount_by(self, gamma: float) -> None:
        """Play on at another discount."""
        if gamma == self.gamma:
            return
        check_shares(gamma=gamma)
        self.gamma, self._step = gamma, None
        if self.explicit is not None:
            self.explicit.gamma = gamma

    @property
    def active(self) -> bool:
        """Whether an update changes anything: lambda = 0 leaves the model at its fit."""
        return self.settings.weight != 0 or self.settings.continue_fit

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All that changes in place beside the model and the optimiser, by name; not the actions,
        which each :meth:`run` begins by finding anew.
        """
        yield "obs", self.obs
        if self.dual is not None:
            yield from self.dual.state()

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
            torch.randn(
                (n_updates, n_rows, width), generator=generator, device=device, dtype=torch.float32
            )
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

    def run(
        self,
        n_updates: int,
        policy: Policy,
        value: ValueFunction,
        networks: Iterable[Tensor | nn.Module] = (),
    ) -> dict[str, float]:
        """Make ``n_updates`` updates against the agent's present policy and value.

        :param networks: the parameters and buffers that policy and value read, and their layers:
            where an algorithm has given the ones new memory, a GPU's graph is captured anew, and
            none is while there are hooks, which a replay would not call.
        :return: means over the updates of ``objective`` (the normalised L_adv), ``advantage_mean``
            and ``advantage_std`` (before normalisation, in units of reward), ``supervised_loss``;
            after them ``holdout_nll``, the mixture's on held-out data (nats per transition).
            With weight 0 there is no adversary and none of its first three, without an update none
            of the first four. With weight ``"auto"`` also lambda as it is in the end, ``weight``,
            and ``excess_nll``, what the constraint bounds by xi.
        """
        check_whole(at_least=0, n_updates=n_updates)
        networks = tuple(networks)
        if self._outside != self._taken_as_it_is(networks):
            self._step = None
            self._take_learners()
            self._hooked = any(hooks_of(part) for part in (*networks, *self.parameters))
            self._hooked |= bool(hooks_of(self.optimizer))
        sums = torch.zeros(4, device=self.model.device, dtype=torch.float32)
        left = n_updates = n_updates if self.active and self.parameters else 0
        while left > 0:
            n = min(left, DRAWN_TOGETHER)
            drawn = self.draw(n)
            if self.settings.weight != 0:
                self.act(policy, drawn.action[0])
            # those in the states that the last one leaves are drawn, and found, anew
            drawn = drawn._replace(action=drawn.action.roll(-1, 0))
            for draws in zip(*drawn, strict=True):
                sums += self.update(Draws(*draws), policy, value)
            left -= n
        self._outside = self._taken_as_it_is(networks)  # by now the optimiser has its states
        names = ["objective", "advantage_mean", "advantage_std", "supervised_loss", "holdout_nll"]
        found = [*(sums / max(n_updates, 1)), self.holdout_nll()]
        if self.dual is not None:
            names += ["weight", "excess_nll"]
            found += [self.dual.weight, self.dual.excess]
        means = torch.stack(found).tolist()  # the one wait for the device
        unknown = names[:4] if n_updates == 0 else names[:3] if self.settings.weight == 0 else ()
        return {n: mean for n, mean in zip(names, means, strict=True) if n not in unknown}

    def _taken_as_it_is(self, networks: tuple[Tensor | nn.Module, ...]) -> tuple[Any, ...]:
        outside = taken_from_outside(networks, self.optimizer)
        return self.settings, *self.model.taken_as_it_is(), *outside

    @torch.no_grad()
    def act(self, policy: Policy, noise: Tensor) -> None:
        """Find the policy's actions in the present states, for the next update.

        :param noise: standard normals ``(B, A)``.
        """
        self.action.copy_(policy.sample(self.obs, noise))

    def update(self, draws: Draws, policy: Policy, value: ValueFunction) -> Tensor:
        """One update with the random numbers of one update; returns four metrics as a tensor.

        The actions it takes are those that :meth:`act`, or the update before, has found. It finds
        those in the states that it leaves: a GPU does so beside the gradients' way back.
        """
        if self._step is None or self._against != (policy, value):
            self._against = (policy, value)
            function = self._fit_step if self.settings.weight == 0 else self._adversarial_step
            enabled = self.graphs and not self._hooked
            self._step = GraphedStep(function, self.model.device, enabled=enabled)
        self.n_updates += 1
        return self._step(*draws)[0]

    def _fit_step(self, batch: Tensor, *_: Tensor) -> tuple[Tensor]:
        """``continue_fit``: maximum likelihood alone."""
        real = self.inputs[batch], self.targets[batch]
        loss = likelihood_step(self.model.ensemble, self.optimizer, *real)
        zero = torch.zeros_like(loss)
        return (torch.stack([zero, zero, zero, loss]),)

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
        branches = Branches(self.obs.device)
        with branches.beside():
            real = self.inputs[batch], self.targets[batch]
        with branches.beside():
            fresh = self.start_states[starts]
        branches.join()
        members = MemberDraw(slots, len(self.obs), self.model.n_members)
        # without a dual weight the settings hold a number
        weight = float(self.settings.weight) if self.dual is None else self.dual.weight

        def go_on(next_obs: Tensor, terminated: Tensor) -> None:
            with branches.beside():
                ended = (terminated | restart).unsqueeze(-1)
                torch.where(ended, fresh, next_obs, out=self.obs)
                self.act(policy, action_noise)

        at = self.obs, self.action
        if self.explicit is not None:
            step, supervised = self.explicit(*at, value, members, noise, real, weight, go_on)
        else:
            step, supervised = model_gradient(
                self.model, *at, value, self.gamma, members, noise, self.settings, real
            )
            self.optimizer.zero_grad()
            (weight * step.loss + supervised).backward(inputs=self.parameters)
            go_on(step.next_obs, step.terminated)
        with branches.beside():
            std, centre = torch.std_mean(step.raw_advantage, correction=0)
            metrics = torch.stack([step.loss.detach(), centre, std, supervised.detach()])
        if self.dual is not None:
            nll = mean_nll(self.model.ensemble, supervised.detach())
            with branches.beside():
                self.dual.update(nll, batch)
        step_of(self.optimizer)
        branches.join()
        return (metrics,)

    def holdout_nll(self) -> Tensor:
        """The mixture's mean negative log-likelihood on held-out data (nats per transition)."""
        rows = self.holdout_rows
        return self.model.nll(self.inputs[rows], self.targets[rows])
