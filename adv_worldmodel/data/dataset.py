"""The data set that everything else works on: immutable arrays, two spaces, a content hash."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import ArrayLike, NDArray

from adv_worldmodel.building import check_id
from adv_worldmodel.data import validation
from adv_worldmodel.data.environments import buildable, spaces_for, time_limit

#: Of a number and of its column's standard deviation: what float32 arithmetic may lose.
ROUNDING = 1e-6


def infer_truncations(
    observations: NDArray[np.float32],
    next_observations: NDArray[np.float32],
    terminations: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Where episodes end without a termination, as the rows tell (shapes (N, S) and (N,)).

    A row whose successor is not the next row's observation ends its episode, and so does the last.
    A recorder that rounds the two in different ways makes no gap.
    """
    truncations = np.ones(len(observations), dtype=np.bool_)
    gaps = truncations[:-1]
    gaps[:] = False
    if len(gaps):
        for successor, state in zip(next_observations[:-1].T, observations[1:].T, strict=True):
            spread = float(state.std(dtype=np.float64))  # whose squares float32 might not hold
            gaps |= np.abs(successor - state) > ROUNDING * (spread + np.abs(state))
    return truncations & ~terminations


@dataclass(frozen=True, eq=False, repr=False)
class OfflineDataset:
    """N transitions (s, a, r, s', terminated, truncated) of a continuous-control task, raw.

    Values are the real environment's own (no standardisation). The constructor takes the arrays as
    they are named here; `from_arrays` fills in what is missing. Every array is float32 or bool and
    read-only: a copy, unless it was read-only already. Actions that leave the bounds by float error
    alone are clipped.

    :param observations: (N, S).
    :param actions: (N, A), within `action_space`.
    :param rewards: (N,), with `reward_offset` already added.
    :param next_observations: (N, S), the true successors, also at the end of an episode.
    :param terminations: (N,), the task ended: no value beyond.
    :param truncations: (N,), the episode was cut (time limit, end of the recording): values go on.
    :param observation_space: flat float32 Box, (S,); may be unbounded.
    :param action_space: flat float32 Box, (A,), with finite bounds.
    :param name: how the user named the data.
    :param env_id: Gymnasium id of the environment to evaluate in; None if unknown.
    :param reward_offset: what was added to every reward of the source (-1 for AntMaze).
    :param goal_terminals: terminations mark the rows at the goal of a trajectory that goes on
        (AntMaze's data): where it does, they end no episode.
    :param action_bounds_guessed: nothing stated the bounds of `action_space`.
    :param terminations_lost: rows that terminated are not among these, since nobody knows what
        followed them: where an episode ends early it may have terminated.
    :raises ValueError: wrong shape or length, NaN or infinity, actions outside the bounds, no rows,
        a space that is not a flat Box; the message names key and row.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    next_observations: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    observation_space: Box
    action_space: Box
    name: str = "arrays"
    env_id: str | None = None
    reward_offset: float = 0.0
    goal_terminals: bool = False
    action_bounds_guessed: bool = False
    terminations_lost: bool = False

    def __post_init__(self) -> None:
        where = str(self.name)
        self._set("name", where)
        self._set("reward_offset", float(self.reward_offset))  # NumPy's are not JSON's
        observation_space = validation.flat_box(self.observation_space, "observation", where)
        action_space = validation.flat_box(self.action_space, "action", where)
        states = (self.observations, self.next_observations)
        for key in ("observations", "actions", "next_observations"):
            self._set(key, validation.float_matrix(getattr(self, key), key, where))
        self._set("rewards", validation.float_vector(self.rewards, "rewards", where))
        for key in ("terminations", "truncations"):
            self._set(key, validation.flag_vector(getattr(self, key), key, where))
        validation.same_length(where, **{key: len(array) for key, array in self._arrays()})
        state_dim, action_dim = observation_space.shape[0], action_space.shape[0]
        for key, width, expected, space in (
            ("next_observations", self.next_observations.shape[1], self.observations.shape[1], ""),
            ("observations", self.observations.shape[1], state_dim, "the observation space"),
            ("actions", self.actions.shape[1], action_dim, "the action space"),
        ):
            validation.same_width(where, key, width, space or "observations", expected)
        validation.warn_of_rounding(np.asarray(states[0]), np.asarray(states[1]), where)
        self._set(
            "actions", validation.actions_in_bounds(self.actions, action_space, "actions", where)
        )
        self._set("observation_space", observation_space)
        self._set("action_space", action_space)
        for key, array in self._arrays():
            self._set(key, validation.frozen(array))

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        next_observations: ArrayLike,
        terminations: ArrayLike,
        truncations: ArrayLike | None = None,
        *,
        observation_space: Space[Any] | None = None,
        action_space: Space[Any] | None = None,
        name: str = "arrays",
        env_id: str | None = None,
        goal_terminals: bool = False,
    ) -> OfflineDataset:
        """A data set of arrays with one row per transition, episodes one after the other.

        :param observations: (N, S).
        :param actions: (N, A), of a floating type where neither `action_space` nor `env_id` tells
            that they are continuous.
        :param rewards: (N,).
        :param next_observations: (N, S), true successors.
        :param terminations: (N,), the task ended.
        :param truncations: (N,), the episode was cut; it counts as cut at gaps too
            (`infer_truncations`), which alone tell where this is None.
        :param observation_space: None: that of `env_id` where it can be built here, else unbounded.
        :param action_space: None: that of `env_id` where it can be built here, else guessed:
            [-1, 1] if all actions fit, or the range that they span, which a warning says.
        :param name: how messages and results call the data.
        :param env_id: Gymnasium id of the real environment, for evaluation and termination.
        :param goal_terminals: see the class.
        :raises ValueError: as for the class.
        """
        if env_id is not None:
            check_id(env_id)
        observations = validation.numeric(observations, "observations", name)
        next_observations = validation.numeric(next_observations, "next_observations", name)
        states = validation.float_matrix(observations, "observations", name)
        successors = validation.float_matrix(next_observations, "next_observations", name)
        if action_space is None and not buildable(env_id):
            validation.continuous(actions, name)
        action_rows = validation.float_matrix(actions, "actions", name)
        ends = validation.flag_vector(terminations, "terminations", name)
        flags = None
        if truncations is not None:
            flags = validation.flag_vector(truncations, "truncations", name)
        validation.same_length(
            name,
            observations=len(states),
            next_observations=len(successors),
            actions=len(action_rows),
            terminations=len(ends),
            truncations=len(ends if flags is None else flags),
        )
        width = states.shape[1]
        validation.same_width(name, "next_observations", successors.shape[1], "observations", width)
        validation.warn_of_rounding(observations, next_observations, name)
        cuts = infer_truncations(states, successors, ends)
        if flags is not None:  # flags of time limits alone leave out where a recording broke off
            cuts |= flags
        bounds = None
        if action_space is not None:
            bounds = validation.flat_box(action_space, "action", name)
        guessed = False
        if observation_space is None or bounds is None:
            found, bounds, guessed = spaces_for(states, action_rows, env_id, name, bounds)
            observation_space = found if observation_space is None else observation_space
        return cls(
            observations=states,
            actions=action_rows,
            rewards=validation.float_vector(rewards, "rewards", name),
            next_observations=successors,
            terminations=ends,
            truncations=cuts,
            observation_space=validation.flat_box(observation_space, "observation", name),
            action_space=bounds,
            name=name,
            env_id=env_id,
            goal_terminals=goal_terminals,
            action_bounds_guessed=guessed,
        )

    def with_reward_offset(self, offset: float) -> OfflineDataset:
        """The same data with `offset` added to every reward (beyond what was added before)."""
        if not (isinstance(offset, Real) and math.isfinite(offset)):
            raise ValueError(f"reward_offset is {offset!r}; expected a finite number.")
        if offset == 0.0:
            return self
        with np.errstate(over="ignore"):
            rewards = self.rewards + np.float32(offset)
        if not np.isfinite(rewards).all():
            raise ValueError(f"reward_offset is {offset:g}: rewards must stay within float32.")
        return replace(self, rewards=rewards, reward_offset=self.reward_offset + offset)

    def with_env_id(self, env_id: str) -> OfflineDataset:
        """The same data, to be evaluated in the environment `env_id`.

        Where action bounds were guessed and it can be built here, its spaces are taken, but for
        observation bounds that were given.

        :raises ValueError: if the data do not fit these spaces.
        """
        spaces: dict[str, Any] = {}
        if self.action_bounds_guessed and buildable(env_id):
            observation_space, action_space, _ = spaces_for(
                self.observations, self.actions, env_id, self.name
            )
            spaces = {"action_space": action_space, "action_bounds_guessed": False}
            if not np.isfinite([self.observation_space.low, self.observation_space.high]).any():
                spaces["observation_space"] = observation_space
        if env_id == self.env_id and not spaces:
            return self
        return replace(self, env_id=env_id, **spaces)

    def __len__(self) -> int:
        return len(self.observations)

    def __repr__(self) -> str:
        return f"OfflineDataset({self.name!r}, {len(self)} transitions)"

    def __deepcopy__(self, memo: dict[int, Any]) -> OfflineDataset:
        # Immutable; gymnasium deep-copies the keyword arguments of an environment once per wrapper.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, value in state.items():  # what was unpickled is writable
            if isinstance(value, np.ndarray):
                validation.freeze(value)
            self._set(key, value)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the arrays and the spaces; names do not count."""
        digest = hashlib.sha256()
        spaces = (self.observation_space, self.action_space)
        bounds = [(f"space{i}", b) for i, s in enumerate(spaces) for b in (s.low, s.high)]
        for key, array in [*self._arrays(), *bounds]:
            order = array.dtype.newbyteorder("<")
            little_endian = np.ascontiguousarray(array).astype(order, copy=False)
            digest.update(f"{key}{array.shape}{array.dtype}".encode())
            digest.update(little_endian.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def episode_ends(self) -> NDArray[np.intp]:
        """Last row of each episode, ascending; (episodes,).

        With `goal_terminals` a termination whose successor is the next row's observation ends none.
        Rows after the last end are no episode, unless there is no other.
        """
        ended = self.terminations | self.truncations
        if self.goal_terminals:  # of the terminations those after which the rows do not go on
            stops = infer_truncations(self.observations, self.next_observations, ~self.terminations)
            ended = self.truncations | stops
        ends = np.flatnonzero(ended)
        return ends if ends.size else np.array([len(self) - 1], dtype=np.intp)

    def episode_starts(self) -> NDArray[np.intp]:
        """First row of each episode, ascending; (episodes,)."""
        return np.concatenate((np.zeros(1, np.intp), self.episode_ends()[:-1] + 1))

    def episode_lengths(self) -> NDArray[np.int64]:
        """Transitions per episode; (episodes,)."""
        return np.diff(self.episode_ends(), prepend=-1).astype(np.int64)

    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted return per episode in the environment's own rewards; (episodes,).

        `reward_offset` is taken off again, so that these compare with returns in the environment.
        """
        ends = self.episode_ends()
        rewards = self.rewards[: ends[-1] + 1].astype(np.float64)
        sums = np.add.reduceat(rewards, self.episode_starts())
        returns: NDArray[np.float64] = sums - self.reward_offset * self.episode_lengths()
        return returns

    @cached_property
    def in_order(self) -> bool:
        """Whether rows follow one another in time; not in a log that was shuffled.

        There most rows are an episode of one step, which nothing terminated.
        """
        alone = (self.episode_lengths() == 1) & ~self.terminations[self.episode_ends()]
        return len(self) == 1 or 2 * int(alone.sum()) <= len(self)

    def whole_episodes(self) -> NDArray[np.bool_]:
        """Which episodes the recording did not cut; (episodes,).

        Cut are those that were truncated before the time limit: that of a known environment (less
        one row, whose successor may not be recorded), else the greatest length of truncated ones,
        where at least two share it. Where no two do, only the last one is taken for cut, if it did
        not terminate and is shorter than another truncated one. So it is too where
        `terminations_lost`.
        """
        lengths, truncated = self.episode_lengths(), ~self.terminations[self.episode_ends()]
        limit = None if self.terminations_lost else time_limit(self.env_id)
        if limit is None:
            limit = int(lengths[truncated].max(initial=0)) + 1
            at_limit = np.count_nonzero(truncated & (lengths >= limit - 1))
            if self.terminations_lost or at_limit < 2:
                truncated[:-1] = False
        whole: NDArray[np.bool_] = ~(truncated & (lengths < limit - 1))
        return whole

    @cached_property
    def behaviour_return(self) -> float:
        """Mean of `episode_returns` of the `whole_episodes`.

        NaN where most rows are of episodes that were cut, of which those that failed early are what
        is whole, or the rows are not `in_order`: nobody knows then what an episode was.
        """
        whole, lengths = self.whole_episodes(), self.episode_lengths()
        if not self.in_order or 2 * lengths[whole].sum() < lengths.sum():
            return math.nan
        return float(self.episode_returns()[whole].mean())

    def _arrays(self) -> list[tuple[str, NDArray[Any]]]:
        keys = ("observations", "actions", "rewards", "next_observations")
        return [(key, getattr(self, key)) for key in (*keys, "terminations", "truncations")]

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
