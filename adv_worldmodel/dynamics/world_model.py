"""The world model: ensemble, standardisation, reward and termination, in raw units outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.device import resolve_device, shared_tensor
from adv_worldmodel.dynamics.ensemble import Ensemble, MemberDraw, mixture_log_density
from adv_worldmodel.dynamics.termination import (
    Termination,
    TerminationFunction,
    termination_from_spec,
)

RewardFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMAT_VERSION = 1
WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"
#: Below this a dimension counts as constant.
SMALLEST_STD = 1e-6
#: What reading a damaged file raises, ValueErrors with a message of their own aside.
DAMAGE = (
    AttributeError,
    KeyError,
    TypeError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    SafetensorError,
)


class WorldModel(nn.Module):
    """A learned model of one environment's dynamics: T(s', r | s, a) and its terminations.

    The networks see the standardised (s, a) and predict y, the reward (unless it is known) and
    the change of the state, each in units of its own standard deviation over the data. Everything
    that comes in and goes out is raw.

    :param ensemble: networks over D = S + 1 targets (reward first), or D = S with a known reward.
    :param termination: rule on raw ``(s, a, s')``; see :func:`make_termination`.
    :param observation_space: the real environment's; finite bounds clip predicted states.
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
        self.register_buffer("input_mean", torch.zeros(ensemble.input_dim))
        self.register_buffer("input_std", torch.ones(ensemble.input_dim))
        self.register_buffer("target_mean", torch.zeros(ensemble.output_dim))
        self.register_buffer("target_std", torch.ones(ensemble.output_dim))
        self.register_buffer("obs_low", torch.as_tensor(observation_space.low, dtype=torch.float32))
        self.register_buffer(
            "obs_high", torch.as_tensor(observation_space.high, dtype=torch.float32)
        )
        self.register_buffer("action_low", torch.as_tensor(action_space.low, dtype=torch.float32))
        self.register_buffer("action_high", torch.as_tensor(action_space.high, dtype=torch.float32))
        self.register_buffer("holdout_rows", torch.zeros(0, dtype=torch.int64))
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

    def inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        """Standardised network inputs ``(B, S + A)`` of raw states and actions."""
        return (torch.cat([obs, action], dim=-1) - self.input_mean) / self.input_std

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

    def outcome(self, obs: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Raw next state ``(B, S)`` and reward ``(B,)`` of standardised targets ``(B, D)``."""
        raw = y * self.target_std + self.target_mean
        next_obs = obs + raw[..., -self.obs_dim :]
        if self.bounded:
            next_obs = torch.clamp(next_obs, self.obs_low, self.obs_high)
        if self.reward_function is None:
            return next_obs, raw[..., 0]
        return next_obs, self.reward_function(obs, action, next_obs)

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
        noise = torch.randn(shape, generator=generator, device=obs.device)
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

    @torch.no_grad()
    def nll(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood per transition (nats, standardised units) of the mixture."""
        mean, logvar = self.ensemble(inputs)
        return -mixture_log_density(targets, mean, logvar).mean()

    def encode(self, dataset: OfflineDataset) -> tuple[Tensor, Tensor]:
        """Inputs ``(N, S + A)`` and targets ``(N, D)`` of a data set, on the model's device."""
        obs, action, reward, next_obs = (
            shared_tensor(array, self.device)
            for array in (
                dataset.observations, dataset.actions, dataset.rewards, dataset.next_observations
            )
        )  # fmt: skip
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
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        description = {
            "format": "adv-worldmodel",
            "format_version": FORMAT_VERSION,
            "n_members": self.n_members,
            "hidden_sizes": list(self.ensemble.hidden_sizes),
            "observation_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "known_reward": self.reward_function is not None,
            "termination": dict(self.termination.spec),
            "fit_info": self.fit_info,
        }
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")

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
        :raises ValueError: a file is damaged, from a newer version, or needs a function.
        """
        folder = Path(folder)
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is no world model: {name} is missing; give the folder that "
                    "WorldModel.save wrote"
                )
        try:
            description = json.loads((folder / DESCRIPTION_FILE).read_text())
            version = description["format_version"]
            if version > FORMAT_VERSION:
                raise ValueError(
                    f"{folder / DESCRIPTION_FILE} has format version {version}, this library reads "
                    f"up to {FORMAT_VERSION}: install a newer adv-worldmodel"
                )
            known_reward = description["known_reward"]
            if known_reward and reward_function is None:
                raise ValueError(
                    f"{folder} was fitted with a known reward function: pass reward_function="
                )
            obs_dim, action_dim = description["observation_dim"], description["action_dim"]
            ensemble = Ensemble(
                description["n_members"],
                obs_dim + action_dim,
                obs_dim + (not known_reward),
                description["hidden_sizes"],
            )
            tensors = load_file(folder / WEIGHTS_FILE)
            obs_space = Box(
                tensors["obs_low"].numpy(), tensors["obs_high"].numpy(), dtype=np.float32
            )
            action_space = Box(
                tensors["action_low"].numpy(), tensors["action_high"].numpy(), dtype=np.float32
            )
            rule = termination_from_spec(description["termination"], termination)
            fit_info, holdout_rows = description["fit_info"], tensors["holdout_rows"]
        except DAMAGE as e:
            raise ValueError(
                f"{folder} is damaged ({type(e).__name__}: {e}); fit the model again"
            ) from e
        model = cls(
            ensemble,
            rule,
            obs_space,
            action_space,
            reward_function=reward_function if known_reward else None,
        )
        model.holdout_rows = holdout_rows
        try:
            model.load_state_dict(tensors)
        except RuntimeError as e:
            first = str(e).splitlines()[-1].strip()
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its model.json: {first}") from e
        model.fit_info = fit_info
        return model.to(resolve_device(device))
