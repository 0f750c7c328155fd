"""The world model as a Stable-Baselines3 ``VecEnv``; the package's only import of SB3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Wrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.dynamics import WorldModel
from adv_worldmodel.envs.vector import AdvWorldModelVectorEnv

Array = NDArray[Any]
Indices = int | Iterable[int] | None


class AdvWorldModelVecEnv(VecEnv):
    """SB3's face of :class:`AdvWorldModelVectorEnv`; any SB3 algorithm trains in it.

    Rows restart within the step that ends them.
    """

    def __init__(self, envs: AdvWorldModelVectorEnv) -> None:
        self.world = envs
        self.render_mode = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._actions: torch.Tensor | None = None

    @property
    def dataset(self) -> OfflineDataset:
        """The data whose states episodes start in."""
        return self.world.dataset

    @property
    def world_model(self) -> WorldModel:
        """The dynamics; an adversary may change them in place."""
        return self.world.world_model

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""
        return self.world.horizon

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the one random stream that all rows share; takes effect at once."""
        self.world.seed(seed)
        return [seed] * self.num_envs

    def reset(self) -> Array:
        """Put every row into a data-set state: ``(n_envs, S)``."""
        return self.world.reset_all().cpu().numpy().copy()

    def step_async(self, actions: Array) -> None:
        """Take the actions ``(n_envs, A)`` for :meth:`step_wait`."""
        self._actions = self.world.action_tensor(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step; successors of ended rows are in ``infos[i]["terminal_observation"]``."""
        if self._actions is None:
            raise RuntimeError("step_wait() was called before step_async()")
        out = self.world.advance(self._actions)
        self._actions = None
        done = out.done
        obs = self.world.restart(done).cpu().numpy().copy()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        dones = done.cpu().numpy()
        if dones.any():
            ended = out.next_obs.cpu().numpy()
            cut = (out.truncated & ~out.terminated).cpu().numpy()
            for i in np.flatnonzero(dones):
                infos[i] = {
                    "terminal_observation": ended[i],
                    "TimeLimit.truncated": bool(cut[i]),
                }
        return obs, out.reward.cpu().numpy(), dones, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute, once per row: they all share it."""
        owner = self if hasattr(type(self), attr_name) or attr_name in vars(self) else self.world
        return [getattr(owner, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the world for all rows at once; they cannot differ.

        :raises ValueError: for some of the rows, the data, or a value that is none of the
            attribute's.
        """
        self._refuse_some(attr_name, indices)
        if attr_name == "dataset":
            raise ValueError("the data cannot be changed: make a new environment")
        setattr(self if attr_name in vars(self) else self.world, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the world once, which is all rows'; its result is every row's.

        :raises ValueError: for some of the rows.
        """
        self._refuse_some(method_name, indices)
        result = getattr(self.world, method_name)(*method_args, **method_kwargs)
        return [result] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: type[Wrapper], indices: Indices = None) -> list[bool]:
        """No row is wrapped by a Gymnasium wrapper."""
        return [False] * len(self._rows(indices))

    def _refuse_some(self, name: str, indices: Indices) -> None:
        if len(self._rows(indices)) != self.num_envs:
            raise ValueError(f"{name} is shared by all rows and cannot be for some of them")

    def _rows(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))


def make_sb3_env(
    dataset: Any, n_envs: int = 1, horizon: int = 5, *, seed: int | None = None, **kwargs: Any
) -> AdvWorldModelVecEnv:
    """A batch of world-model rollouts for SB3.

    :param dataset: an :class:`OfflineDataset`, an id or a path.
    :param n_envs: rollouts side by side; RAMBO starts this many per iteration.
    :param horizon: k, steps of a rollout.
    :param seed: of the environment's random stream.
    :param kwargs: ``world_model``, ``fit``, ``termination``, ``reward_function``, ``member_per``,
        ``device``, ``progress``: see :class:`AdvWorldModelVectorEnv`.
    """
    envs = AdvWorldModelVectorEnv(dataset, num_envs=n_envs, horizon=horizon, seed=seed, **kwargs)
    return AdvWorldModelVecEnv(envs)
