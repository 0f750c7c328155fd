"""The world model: ensemble, standardisation, reward and termination, in raw units outside."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.device import resolve_device, shared_tensor
from adv_worldmodel.dynamics.ensemble import Ensemble, MemberDraw, mixture_log_density
from adv_worldmodel.dynamics.termination import (
    Termination,
    TerminationFunction,
    kind_of,
    left_as_they_are,
    termination_from_spec,
)
from adv_worldmodel.errors import last_line
from adv_worldmodel.graphs import taken_from_outside
from adv_worldmodel.saved_folder import FLAG, OBJECT, SIZE, SIZES, SavedFormat

RewardFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMAT_VERSION = 1
FORMAT = SavedFormat(
    what="world model",
    name="adv-worldmodel",
    version=FORMAT_VERSION,
    weights_file="model.safetensors",
    description_file="model.json",
    keys={
        "n_members": SIZE,
        "hidden_sizes": SIZES,
        "observation_dim": SIZE,
        "action_dim": SIZE,
        "known_reward": FLAG,
        "termination": OBJECT,
        "fit_info": OBJECT,
    },
    writer="WorldModel.save",
    remedy="fit the model again",
)
#: Below this a dimension counts as constant.
SMALLEST_STD = 1e-6


class WorldModel(nn.Module):
    """A learned model of one environment's dynamics: T(s', r | s, a) and its terminations.

    The networks see the standardised (s, a) and predict y, the reward (unless it is known) and
    the change of the state, each in units of its own standard deviation over the data. Everything
    that comes in and goes out is raw.

    :param ensemble: networks over D = S + 1 targets (reward first), or D = S with a known reward.
    :param termination: rule on raw ``(s, a, s')``; see :func:`make_termination`.
    :param observation_space: the real environment's; finite bounds clip predicted states (a fit
        widens them to what its data hold).
    :param action_space: the real environment's, finite; actions outside are clipped.
    :param reward_function: known reward ``f(obs, action, next_obs) -> (B,)`` on raw tensors,
        in place of a learned one.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    obs_low: Tensor
    obs_high: Tensor
    action_low: Tensor
    action_high: Tensor
    holdout_rows: Tensor

    def __init__(
        self,
        ensemble: Ensemble,
        termination: Termination,
        observation_space: Box,
        action_space: Box,
        *,
        reward_function: RewardFunction | None = None,
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.termination = termination
        self.reward_function = reward_function
        self.observation_space = observation_space
        self.action_space = action_space
        self.obs_dim = observation_space.shape[0]
        self.action_dim = action_space.shape[0]
        expected = self.obs_dim + (reward_function is None)
        if ensemble.output_dim != expected:
            raise ValueError(
                f"the ensemble predicts {ensemble.output_dim} targets, this environment needs "
                f"{expected}: {self.obs_dim} of the state"
                + (" and the reward" if reward_function is None else "; the reward is known")
            )
        #: What the fit did: steps, seconds, holdout errors, hash of the data.
        self.fit_info: dict[str, Any] = {}
        device = ensemble.max_logvar.device
        floats: dict[str, Any] = {"dtype": torch.float32, "device": device}
        for name, width in (("input", ensemble.input_dim), ("target", ensemble.output_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(width, **floats))
            self.register_buffer(f"{name}_std", torch.ones(width, **floats))
        # copies: a fit widens the bounds, and a file overwrites them
        for name, space in (("obs", observation_space), ("action", action_space)):
            self.register_buffer(f"{name}_low", torch.tensor(space.low, **floats))
            self.register_buffer(f"{name}_high", torch.tensor(space.high, **floats))
        self.register_buffer("holdout_rows", torch.zeros(0, dtype=torch.int64, device=device))
        self.bounded = bool(
            np.isfinite(observation_space.low).any() or np.isfinite(observation_space.high).any()
        )

    @property
    def n_members(self) -> int:
        """Number of networks; after a fit, the elites."""
        return self.ensemble.n_members

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.input_mean.device

    def inputs(self, obs: Tensor, action: Tensor, out: Tensor | None = None) -> Tensor:
        """Standardised network inputs ``(B, S + A)`` of raw states and actions."""
        rows = torch.cat([obs, action], dim=-1) - self.input_mean
        return torch.div(rows, self.input_std, out=out)

    def raw_targets(self, obs: Tensor, next_obs: Tensor, reward: Tensor) -> Tensor:
        """Targets ``(B, D)`` before standardisation: the reward, if learned, and s' - s."""
        change = next_obs - obs
        if self.reward_function is not None:
            return change
        return torch.cat([reward.unsqueeze(-1), change], dim=-1)

    def targets(self, obs: Tensor, next_obs: Tensor, reward: Tensor) -> Tensor:
        """Standardised targets y ``(B, D)`` of observed transitions."""
        return (self.raw_targets(obs, next_obs, reward) - self.target_mean) / self.target_std

    def set_scales(self, inputs: Tensor, targets: Tensor) -> None:
        """Take mean and standard deviation from raw inputs ``(N, S + A)`` and targets ``(N, D)``.

        A constant input is divided by one: it may vary outside the data. A constant target is
        measured in units so small that the predicted noise vanishes.
        """
        for rows, mean, std, unit in (
            (inputs, self.input_mean, self.input_std, 1.0),
            (targets, self.target_mean, self.target_std, SMALLEST_STD),
        ):
            deviation, centre = torch.std_mean(rows.double(), dim=0, correction=0)
            mean.copy_(centre)
            std.copy_(torch.where(deviation < SMALLEST_STD, unit, deviation))
        self._hold_constants()

    def _hold_constants(self) -> None:
        """The lower log-variance limit of a constant target stays where it is."""
        constant = self.target_std <= SMALLEST_STD
        self.ensemble.held = constant if bool(constant.any()) else None

    def outcome(self, obs: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Raw next state ``(B, S)`` and reward ``(B,)`` of standardised targets ``(B, D)``."""
        raw = torch.addcmul(self.target_mean, y, self.target_std)
        next_obs = obs + raw[..., -self.obs_dim :]
        if self.bounded:
            next_obs = torch.clamp(next_obs, self.obs_low, self.obs_high)
        if self.reward_function is None:
            return next_obs, raw[..., 0]
        return next_obs, self.known_reward(obs, action, next_obs)

    def known_reward(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """What a model's ``reward_function`` says of raw rows, ``(B,)``.

        :raises ValueError: that is no reward per row, or it wrote to its arguments.
        """
        assert self.reward_function is not None
        with left_as_they_are("reward", obs, action, next_obs):
            reward = self.reward_function(obs, action, next_obs)
        if (
            not isinstance(reward, Tensor)
            or reward.shape not in (next_obs.shape[:-1], obs.shape[:-1])
            or not reward.is_floating_point()
        ):
            raise ValueError(
                f"the reward function returned {kind_of(reward)}; expected a floating-point tensor "
                f"of shape {tuple(next_obs.shape[:-1])}, one reward per row"
            )
        return reward.to(next_obs.dtype)

    @torch.no_grad()
    def step(
        self,
        obs: Tensor,
        action: Tensor,
        *,
        generator: torch.Generator,
        members: MemberDraw | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample one transition per row, each from the one member drawn for it.

        :param obs: raw states ``(B, S)``.
        :param action: raw actions ``(B, A)``.
        :param generator: on the model's device.
        :param members: who evaluates which row; drawn anew by default.
        :return: next states ``(B, S)``, rewards ``(B,)``, terminations ``(B,)`` (bool).
        """
        members = members or MemberDraw.draw(len(obs), self.n_members, generator)
        shape = (len(obs), self.ensemble.output_dim)
        noise = torch.randn(shape, generator=generator, device=obs.device, dtype=obs.dtype)
        return self.transition(obs, action, members, noise)

    @torch.no_grad()
    def transition(
        self, obs: Tensor, action: Tensor, members: MemberDraw, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`step` as a function of tensors, with standard normals ``noise`` ``(B, D)``."""
        action = torch.clamp(action, self.action_low, self.action_high)
        slabs = self.ensemble(members.scatter(self.inputs(obs, action)))
        mean, logvar = (members.gather(slab) for slab in slabs)
        y = mean + noise * torch.exp(0.5 * logvar)
        next_obs, reward = self.outcome(obs, action, y)
        return next_obs, reward, self.termination(obs, action, next_obs)

    def taken_as_it_is(self) -> tuple[Any, ...]:
        """What a captured :meth:`transition` takes as it is; see :func:`taken_from_outside`."""
        tensors = taken_from_outside((*self.parameters(), *self.buffers()))
        return self.termination, self.reward_function, *tensors

    @torch.no_grad()
    def nll(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood per transition (nats, standardised units) of the mixture."""
        mean, logvar = self.ensemble(inputs)
        return -mixture_log_density(targets, mean, logvar).mean()

    def encode(self, dataset: OfflineDataset) -> tuple[Tensor, Tensor]:
        """Standardised inputs ``(N, S + A)`` and targets ``(N, D)`` of the data, on the device."""
        obs, action, reward, next_obs = data_tensors(dataset, self.device)
        return self.inputs(obs, action), self.targets(obs, next_obs, reward)

    def split(self, dataset: OfflineDataset) -> tuple[Tensor, Tensor]:
        """Training and holdout row numbers, the same split as in the fit on the same data.

        For data that the model was not fitted on, the last tenth (at most 1000) is the holdout.
        """
        n = len(dataset)
        if self.fit_info.get("content_hash") == dataset.content_hash:
            holdout = self.holdout_rows
        else:
            holdout = torch.arange(n - min(1000, max(1, n // 10)), n, device=self.device)
        mask = torch.ones(n, dtype=torch.bool, device=self.device)
        mask[holdout] = False
        return mask.nonzero().squeeze(-1), holdout

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into ``folder`` (made if absent)."""
        description = {
            "n_members": self.n_members,
            "hidden_sizes": list(self.ensemble.hidden_sizes),
            "observation_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "known_reward": self.reward_function is not None,
            "termination": dict(self.termination.spec),
            "fit_info": self.fit_info,
        }
        FORMAT.write(Path(folder), description, self.state_dict())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        termination: TerminationFunction | None = None,
        reward_function: RewardFunction | None = None,
    ) -> WorldModel:
        """Read a folder written by :meth:`save`; no code in it can run.

        :param device: where to put it, whatever it was saved from.
        :param termination: the user's function, needed again if the model was made with one.
        :param reward_function: likewise for a known reward.
        :raises FileNotFoundError: a file is missing.
        :raises ValueError: a file is damaged, from a newer version, needs a function, or needs
            none of those given.
        """
        folder = Path(folder)
        description, tensors = FORMAT.read(folder)
        known_reward = description["known_reward"]
        if known_reward and reward_function is None:
            raise ValueError(
                f"{folder} was fitted with a known reward function: pass reward_function="
            )
        own_rule = description["termination"].get("kind") != "function"
        for name, idle in (
            ("termination", termination is not None and own_rule),
            ("reward_function", reward_function is not None and not known_reward),
        ):
            if idle:
                raise ValueError(
                    f"{name} would change nothing: the world model in {folder} has its own; set it "
                    "where the model is fitted"
                )
        obs_dim, action_dim = description["observation_dim"], description["action_dim"]
        with _fitting(folder):
            spaces = _box(tensors, "obs", obs_dim), _box(tensors, "action", action_dim)
            ensemble = _empty_ensemble(description, tensors)
            holdout_rows = tensors["holdout_rows"]
            if holdout_rows.dtype != torch.int64 or holdout_rows.dim() != 1:
                raise ValueError("holdout_rows are no row numbers")
        try:
            rule = termination_from_spec(description["termination"], termination, obs_dim)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        known = reward_function if known_reward else None
        model = cls(ensemble, rule, *spaces, reward_function=known)
        model.holdout_rows = holdout_rows
        with _fitting(folder):
            model.load_state_dict(tensors)
        model._hold_constants()
        model.fit_info = description["fit_info"]
        return model.to(resolve_device(device))


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Tensors that are not those of the description, as a ValueError of one line."""
    try:
        yield
    except KeyError as error:
        raise FORMAT.damaged(folder, f"{FORMAT.weights_file} has no {error}") from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{folder / FORMAT.weights_file} does not fit its {FORMAT.description_file}: "
            f"{last_line(error)}"
        ) from error


def _box(tensors: Mapping[str, Tensor], name: str, dim: int) -> Box:
    """The space with the bounds ``{name}_low`` and ``{name}_high``, both ``(dim,)``."""
    low, high = (tensors[f"{name}_{side}"].float() for side in ("low", "high"))
    if low.shape != (dim,) or high.shape != (dim,) or not bool((low <= high).all()):
        raise ValueError(f"{name}_low and {name}_high are not the bounds of {dim} dimensions")
    return Box(low.numpy(), high.numpy(), dtype=np.float32)


def _empty_ensemble(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    """The described ensemble; ValueError, before it fills the memory, where it is not the saved."""
    inputs = description["observation_dim"] + description["action_dim"]
    outputs = description["observation_dim"] + (not description["known_reward"])
    sizes = [inputs, *description["hidden_sizes"], 2 * outputs]
    for layer, pair in enumerate(itertools.pairwise(sizes)):
        found = tensors[f"ensemble.weights.{layer}"].shape
        if found != (description["n_members"], *pair):
            raise ValueError(f"the weights of layer {layer} have the shape {tuple(found)}")
    return Ensemble(description["n_members"], inputs, outputs, description["hidden_sizes"])


def check_dimensions(dataset: OfflineDataset, model: WorldModel) -> None:
    """Refuse data whose observations or actions have another length than the model's."""
    for mine, theirs, what in (
        (model.obs_dim, dataset.observations.shape[1], "observations"),
        (model.action_dim, dataset.actions.shape[1], "actions"),
    ):
        if mine != theirs:
            raise ValueError(
                f"the world model was fitted on {what} of length {mine}, {dataset.name} "
                f"has length {theirs}: give the model of this data set"
            )


def data_tensors(
    dataset: OfflineDataset, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations ``(N, S)``, actions ``(N, A)``, rewards ``(N,)`` and successors ``(N, S)``."""
    arrays = (
        dataset.observations, dataset.actions, dataset.rewards, dataset.next_observations
    )  # fmt: skip
    obs, action, reward, next_obs = (shared_tensor(array, device) for array in arrays)
    return obs, action, reward, next_obs
