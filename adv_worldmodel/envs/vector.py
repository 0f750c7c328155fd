"""The learned dynamics as a Gymnasium vector environment: the one place that writes stepping."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from adv_worldmodel.checks import check_whole
from adv_worldmodel.data import OfflineDataset, load_dataset
from adv_worldmodel.data.validation import ACTION_TOLERANCE
from adv_worldmodel.device import resolve_device, shared_tensor
from adv_worldmodel.dynamics import FitSettings, WorldModel, cached_world_model
from adv_worldmodel.dynamics.ensemble import MemberDraw
from adv_worldmodel.dynamics.rewards import compare_with_rewards
from adv_worldmodel.dynamics.termination import TerminationFunction, compare_with_flags
from adv_worldmodel.dynamics.world_model import RewardFunction, check_dimensions
from adv_worldmodel.graphs import GraphedStep
from adv_worldmodel.seeding import make_generator

Array = NDArray[Any]
MEMBER_PER = ("step", "rollout")
#: The paper's k, for a rollout of which nobody says how long it is.
HORIZON = 5


class Transition(NamedTuple):
    """One batched step, as tensors on the model's device."""

    next_obs: Tensor  #: (B, S), the true successors, also where an episode ended
    reward: Tensor  #: (B,)
    terminated: Tensor  #: (B,), bool
    truncated: Tensor  #: (B,), bool: the horizon was reached

    @property
    def done(self) -> Tensor:
        """Rows that end, ``(B,)``."""
        return self.terminated | self.truncated


class AdvWorldModelVectorEnv(VectorEnv[Array, Array, Array]):
    """Rollouts of a world model from data-set states, ``num_envs`` at once.

    :param dataset: an :class:`OfflineDataset`, or an id or a path (:func:`load_dataset`).
    :param num_envs: rollouts side by side.
    :param world_model: a fitted model or the folder of a saved one. By default one is fitted to
        the data, with a progress bar, and kept in a cache.
    :param horizon: k, steps after which an episode is truncated; default 5.
    :param max_episode_steps: what :func:`gymnasium.make_vec` calls the horizon (here alone: with
        ``vectorization_mode="sync"`` give ``horizon``). Of both the lower cuts.
    :param fit: settings of the fit made where ``world_model`` is not given.
    :param termination: rule of the model that is fitted here (:func:`make_termination`), or the
        function that a saved one needs again; a :class:`WorldModel` has its own.
    :param reward_function: likewise, a known reward.
    :param member_per: each row draws its network anew each ``"step"``, or keeps one for the
        ``"rollout"`` until it ends (TS1 and TS-infinity of Chua et al. 2018; the paper's text has
        the second, its authors' code the first). The networks step equally many rows, give or take
        the remainder of rows by networks. With ``"rollout"``, networks are therefore uniform
        over the steps, and over the rollouts that a full reset starts; rows that restart within a
        step share the networks that ended there, so that one which ends its rollouts early starts
        more of them than the others.
    :param device: of a model fitted or loaded here; ``"auto"`` takes a GPU where there is one.
    :param seed: of everything drawn here, until :meth:`reset` is given another. Environments that
        are made apart with the same one draw the same.
    :param progress: show the fit's bar.
    :param render_mode: nothing but None; otherwise a TypeError.

    Observations and actions are raw float32. Episodes start in data-set states, end by the model's
    termination or after ``horizon`` steps, and restart within the same step
    (``AutoresetMode.SAME_STEP``, true successors in ``info["final_obs"]``); for Gymnasium's
    wrappers that want another mode, ``gym.make_vec(..., vectorization_mode="sync")``. The
    observation space is the model's: the data's, and wider where the data leave it.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        dataset: Any,
        num_envs: int = 1,
        *,
        world_model: WorldModel | str | Path | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        fit: FitSettings | None = None,
        termination: str | TerminationFunction | None = None,
        reward_function: RewardFunction | None = None,
        member_per: Literal["step", "rollout"] = "step",
        device: str | torch.device = "auto",
        seed: int | None = None,
        progress: bool = True,
        render_mode: str | None = None,
    ) -> None:
        limits = [limit for limit in (horizon, max_episode_steps) if limit is not None] or [HORIZON]
        for limit in limits:
            check_whole(at_least=1, num_envs=num_envs, horizon=limit)
        self.horizon, self.member_per = min(limits), member_per
        if render_mode is not None:
            raise TypeError(  # as of an unknown argument: SB3's make_vec_env then leaves it out
                f"render_mode = {render_mode!r}: a world model draws no pictures; render the "
                "policy in the real environment"
            )
        self.dataset: OfflineDataset = load_dataset(dataset)
        if fit is not None and not isinstance(fit, FitSettings):
            raise TypeError(f"fit is {type(fit).__name__}: expected FitSettings(...)")
        if reward_function is not None and not callable(reward_function):
            raise TypeError(f"reward_function is {type(reward_function).__name__}: not callable")
        functions = {"termination": termination, "reward_function": reward_function}
        device = resolve_device(device)
        if world_model is None:
            world_model = cached_world_model(
                self.dataset,
                fit or FitSettings(),
                device=device,
                progress=progress,
                **functions,  # type: ignore[arg-type]
            )
        else:
            again = {} if isinstance(world_model, WorldModel) else functions
            needed = {name: f for name, f in again.items() if callable(f)}
            if not isinstance(world_model, WorldModel):
                world_model = WorldModel.load(world_model, device=device, **needed)
            _check_unused(world_model, fit, functions)
            self._check(world_model, again="reward_function" in needed)
            if "termination" in needed:  # it may be another one than that of the fit
                compare_with_flags(world_model.termination, self.dataset, world_model.device)
        self._take(world_model)
        self.num_envs = num_envs
        # of its own: a space has a random stream, which other environments would share
        self.single_observation_space = self._reached()
        actions = self.dataset.action_space
        self.single_action_space = Box(actions.low, actions.high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.device = world_model.device
        self.start_states = shared_tensor(self.dataset.observations, self.device)
        self.seed(seed)
        self.reset_all()

    def _reached(self) -> Box:
        """The model's observation space, which may be another data set's, and the start states."""
        fitted, states = self.world_model.observation_space, self.dataset.observations
        low, high = fitted.low, fitted.high
        if self.world_model.bounded:  # else a look at all rows would change nothing
            low, high = np.minimum(low, states.min(0)), np.maximum(high, states.max(0))
        return Box(low, high, dtype=np.float32)

    @property
    def horizon(self) -> int:
        """k, steps after which an episode is truncated."""
        return self._horizon

    @horizon.setter
    def horizon(self, steps: int) -> None:
        check_whole(at_least=1, horizon=steps)
        self._horizon = steps

    @property
    def member_per(self) -> str:
        """For how long a row keeps its network: a ``"step"`` or a ``"rollout"``."""
        return self._member_per

    @member_per.setter
    def member_per(self, duration: str) -> None:
        if duration not in MEMBER_PER:
            raise ValueError(f"member_per = {duration!r} is neither 'step' nor 'rollout'")
        self._member_per = duration

    @property
    def world_model(self) -> WorldModel:
        """What steps the rows."""
        return self._world_model

    @world_model.setter
    def world_model(self, model: WorldModel) -> None:
        spaces = (self._world_model.observation_space, model.observation_space)
        if model.device != self.device or spaces[0] != spaces[1]:
            raise ValueError(
                "another world model must be on the same device and have the same observation "
                "space: make a new environment"
            )
        self._check(model)
        self._take(model)

    def _check(self, model: WorldModel, *, again: bool = False) -> None:
        """Whether a model is one of these data; see :func:`compare_with_rewards`."""
        check_dimensions(self.dataset, model)
        _warn_of_another_task(self.dataset, model)
        _check_actions(self.dataset, model.action_space)
        compare_with_rewards(model, self.dataset, again=again)

    def _take(self, model: WorldModel) -> None:
        self._world_model = model
        self._members: MemberDraw | None = None  # another model's are no members of this one
        self._renew_transition()

    def _renew_transition(self) -> None:
        self._transition = GraphedStep(self._transition_of, self._world_model.device)
        self._outside = self._world_model.taken_as_it_is()

    # --- tensors: what RAMBO and the other faces use -------------------------------------------

    def seed(self, seed: int | None) -> None:
        """Start the random stream anew; ``None`` takes entropy from the operating system."""
        self.generator = make_generator(seed, "env", self.device)

    def _draw_starts(self) -> Tensor:
        n = len(self.start_states)
        rows = torch.randint(n, (self.num_envs,), generator=self.generator, device=self.device)
        return self.start_states[rows]

    def reset_all(self) -> Tensor:
        """Put every row into a data-set state; returns the states ``(B, S)``."""
        self.obs = self._draw_starts()
        self.elapsed = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._members = None
        return self.obs

    def advance(self, action: Tensor) -> Transition:
        """Step every row by raw actions ``(B, A)``; ended rows wait for :meth:`restart`."""
        if self.member_per == "step" or self._members is None:
            n = self.world_model.n_members
            self._members = MemberDraw.draw(self.num_envs, n, self.generator)
        shape = (self.num_envs, self.world_model.ensemble.output_dim)
        noise = torch.randn(
            shape, generator=self.generator, device=self.device, dtype=self.obs.dtype
        )
        if self._transition.captured and self._outside != self.world_model.taken_as_it_is():
            self._renew_transition()
        next_obs, reward, terminated = self._transition(
            self.obs, action, self._members.slots, noise
        )
        self.elapsed = self.elapsed + 1
        self.obs = next_obs
        return Transition(next_obs, reward, terminated, self.elapsed >= self.horizon)

    def _transition_of(
        self, obs: Tensor, action: Tensor, slots: Tensor, noise: Tensor
    ) -> tuple[Tensor, ...]:
        members = MemberDraw(slots, self.num_envs, self.world_model.n_members)
        return self.world_model.transition(obs, action, members, noise)

    def restart(self, done: Tensor) -> Tensor:
        """Restart the rows where ``done`` ``(B,)``; returns all present states ``(B, S)``."""
        self.obs = torch.where(done.unsqueeze(-1), self._draw_starts(), self.obs)
        self.elapsed = torch.where(done, 0, self.elapsed)
        if self.member_per == "rollout" and self._members is not None:
            self._members = self._members.redeal(done, self.generator)
        return self.obs

    def action_tensor(self, actions: Any) -> Tensor:
        """Check a batch of actions and put it on the device.

        :raises ValueError: wrong shape, or not finite.
        """
        array = np.asarray(actions, dtype=np.float32)
        shape = (self.num_envs, *self.single_action_space.shape)  # type: ignore[misc]
        if array.shape != shape:
            raise ValueError(f"actions have shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(f"the action of environment {row} is not finite: {array[row]}")
        return torch.as_tensor(array, device=self.device)

    # --- Gymnasium's VectorEnv ------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draw new start states, ``(B, S)``; see :meth:`gymnasium.vector.VectorEnv.reset`.

        :param options: ``{"reset_mask": mask}`` restarts only the rows of the bool mask ``(B,)``.
        """
        if seed is not None:
            super().reset(seed=seed)
            self.seed(seed)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(
                    f"reset_mask is {mask.dtype} {mask.shape}, expected bool ({self.num_envs},)"
                )
            return self.restart(torch.tensor(mask, device=self.device)).cpu().numpy().copy(), {}
        return self.reset_all().cpu().numpy().copy(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step every row; rows that end restart, their successors are in ``info["final_obs"]``."""
        out = self.advance(self.action_tensor(actions))
        done = out.done
        obs = self.restart(done).cpu().numpy().copy()
        info: dict[str, Any] = {}
        mask = done.cpu().numpy()
        if mask.any():
            final = np.full(self.num_envs, None, dtype=object)
            ended = out.next_obs.cpu().numpy()
            for i in np.flatnonzero(mask):
                final[i] = ended[i].copy()
            info = {"final_obs": final, "_final_obs": mask.copy()}
            info |= {"final_info": {}, "_final_info": mask.copy()}
        reward = out.reward.double().cpu().numpy()
        return obs, reward, out.terminated.cpu().numpy(), out.truncated.cpu().numpy(), info


def _check_unused(model: WorldModel, fit: FitSettings | None, functions: Mapping[str, Any]) -> None:
    """Refuse what only a model that is fitted here would take.

    :param functions: termination and reward_function, as given.
    """
    own = {
        "termination": (model.termination, model.termination.rule),
        "reward_function": (model.reward_function,),
    }
    unused = [name for name, f in functions.items() if f not in (None, "auto", *own[name])]
    if fit is not None:
        unused.append("fit")
    if unused:
        raise ValueError(
            f"{unused[0]} would change nothing: the world model that is given has its own; set it "
            "where the model is fitted"
        )


def _warn_of_another_task(dataset: OfflineDataset, model: WorldModel) -> None:
    """Warns of data from another environment than those of the fit; versions and modules aside."""
    fitted, own = model.fit_info.get("env_id"), dataset.env_id
    tasks = {re.sub(r"^.*:|-v\d+$", "", str(env_id)) for env_id in (fitted, own)}
    if fitted and own and len(tasks) == 2:
        warnings.warn(
            f"the world model was fitted to data of {fitted}, {dataset.name} is of {own}: give the "
            "model of this data set",
            stacklevel=4,
        )


def _check_actions(dataset: OfflineDataset, fitted: Box) -> None:
    """Refuse data whose actions a model fitted within ``fitted`` would clip; warn of a wider space.

    :raises ValueError: an action lies outside.
    """
    space, rows = dataset.action_space, dataset.actions
    slack = ACTION_TOLERANCE * (space.high - space.low)
    low, high = fitted.low - slack, fitted.high + slack
    if (space.low >= low).all() and (space.high <= high).all():
        return  # and so do the rows
    words = f"the world model was fitted for actions from {fitted.low} to {fitted.high}"
    if (rows.min(0) < low).any() or (rows.max(0) > high).any():
        raise ValueError(
            f"{words} and would clip those of {dataset.name}: give the model of this data set"
        )
    warnings.warn(
        f"{words}: beyond, up to {space.low} and {space.high}, they act as on these bounds",
        stacklevel=4,
    )


def register() -> None:
    """Make ``AdvWorldModel-v0`` known to :func:`gymnasium.make` and :func:`gymnasium.make_vec`."""
    if "AdvWorldModel-v0" not in gym.registry:
        gym.register(
            id="AdvWorldModel-v0",
            entry_point="adv_worldmodel.envs.single:AdvWorldModelEnv",
            vector_entry_point="adv_worldmodel.envs.vector:AdvWorldModelVectorEnv",
            # ends by its own horizon: gym.make would wrap a second limit around it
            max_episode_steps=None,
        )
