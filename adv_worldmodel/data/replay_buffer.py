"""A Stable-Baselines3 `ReplayBuffer` to an `OfflineDataset`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from adv_worldmodel.data import validation
from adv_worldmodel.data.dataset import OfflineDataset, infer_truncations

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import ReplayBuffer


def is_replay_buffer(source: object) -> bool:
    """Whether `source` is SB3's `ReplayBuffer` (or a subclass), told without importing SB3."""
    return any(
        cls.__name__ == "ReplayBuffer" and cls.__module__ == "stable_baselines3.common.buffers"
        for cls in type(source).__mro__
    )


def from_replay_buffer(
    buffer: ReplayBuffer,
    *,
    actions: Literal["auto", "scaled", "raw"] = "auto",
    name: str = "replay buffer",
    env_id: str | None = None,
) -> OfflineDataset:
    """What `buffer` holds: each environment's rows in order of time, one environment after another.

    A done row counts as truncated if the buffer recorded it as a time-out, else as terminated. With
    `optimize_memory_usage` the successor of a done row is overwritten by the next episode's first
    observation: such rows are dropped, of which a warning tells, and the row before them ends the
    episode as truncated; only an environment's newest row may still be a termination. A row that
    the newest one overwrites in a full buffer is dropped too.

    :param buffer: with flat Box observations and actions; n_envs >= 1.
    :param actions: SB3's off-policy algorithms store actions scaled to [-1, 1] ("scaled"), who
        fills a buffer by hand mostly stores the environment's own ("raw"). "auto" takes the one
        that the data fit. If both fit a warning tells; taken is "raw" where the action space lies
        within [-1, 1], which scaled actions would have left, and else "scaled".
    :param name: how messages and results call the data.
    :param env_id: environment to evaluate in.
    :raises ValueError: an empty buffer, other spaces, or as `OfflineDataset`.
    """
    if not hasattr(buffer, "observations"):
        raise ValueError(
            f"{name}: a {type(buffer).__name__} does not keep its rows as SB3's ReplayBuffer does "
            "(RAMBO's holds rows of the model beside the data): give the data set itself."
        )
    observation_space = validation.flat_box(buffer.observation_space, "observation", name)
    action_space = validation.flat_box(buffer.action_space, "action", name)
    size = buffer.buffer_size
    if not buffer.full and buffer.pos == 0:
        raise ValueError(f"{name}: the replay buffer is empty (0 rows); expected at least 1.")
    shared = bool(buffer.optimize_memory_usage)
    start = buffer.pos + int(shared) if buffer.full else 0
    count = size - int(shared) if buffer.full else buffer.pos
    if count < 1:
        raise ValueError(f"{name}: the replay buffer holds no whole transition; expected one.")
    order = (start + np.arange(count)) % size

    def column(array: NDArray[Any], rows: NDArray[np.intp] = order) -> NDArray[Any]:
        """(time, environment, ...) to (environment x time, ...)."""
        taken = np.swapaxes(array[rows], 0, 1)
        return taken.reshape(-1, *taken.shape[2:])

    stored = column(buffer.observations)
    if shared:
        following = column(buffer.observations, (order + 1) % size)
    else:
        following = column(buffer.next_observations)
    observations = validation.float_matrix(stored, "observations", name)
    next_observations = validation.float_matrix(following, "next_observations", name)
    validation.warn_of_rounding(stored, following, name)
    dones = validation.flag_vector(column(buffer.dones), "dones", name)
    timeouts = validation.flag_vector(column(buffer.timeouts), "timeouts", name)
    if not shared and not buffer.handle_timeout_termination and dones.any():
        warnings.warn(
            f"{name}: handle_timeout_termination=False, so every done counts as a termination. If "
            "episodes were cut by a time limit, fill a buffer with it.",
            stacklevel=2,
        )
    terminations = dones & ~timeouts
    truncations = dones & timeouts
    series_end = np.zeros(len(dones), dtype=np.bool_)
    series_end[count - 1 :: count] = True
    truncations |= series_end & ~terminations
    kept, lost = np.ones(len(dones), dtype=np.bool_), 0
    if shared:
        kept = ~dones | series_end
        before_dropped = np.append(~kept[1:], False) & ~series_end
        truncations |= before_dropped & ~terminations
        if not kept.any():
            raise ValueError(f"{name}: every row ends its episode, so no successor is known.")
        lost = int((terminations & ~kept).sum())
        if lost:
            left = int(terminations[kept].sum())
            warnings.warn(
                f"{name}: recorded with optimize_memory_usage=True, which keeps no last state of "
                f"an episode: {lost} rows that terminated are left out, {left or 'no'} termination "
                f"{'is' if left < 2 else 's are'} left, and values go on where the task ended. "
                "Record with optimize_memory_usage=False.",
                stacklevel=2,
            )
    else:
        truncations |= infer_truncations(observations, next_observations, terminations)
    action_rows = validation.float_matrix(column(buffer.actions), "actions", name)
    return OfflineDataset(
        observations=observations[kept],
        actions=_raw_actions(action_rows, action_space, actions, name)[kept],
        rewards=column(buffer.rewards)[kept],
        next_observations=next_observations[kept],
        terminations=terminations[kept],
        truncations=truncations[kept],
        observation_space=observation_space,
        action_space=action_space,
        name=name,
        env_id=env_id,
        terminations_lost=lost > 0,
    )


#: Stored actions that come so near to 1 and never pass it are taken as scaled without a word, where
#: raw ones would pass it: an SB3 agent's first, uniform ones come so near.
LIKELY_SCALED = 0.95


def _raw_actions(
    actions: NDArray[np.float32],
    space: Box,
    stored: Literal["auto", "scaled", "raw"],
    name: str,
) -> NDArray[np.float32]:
    span = space.high - space.low
    if stored == "auto":
        slack = validation.ACTION_TOLERANCE * np.maximum(span, 2.0)
        fits_raw = bool(((actions >= space.low - slack) & (actions <= space.high + slack)).all())
        fits_scaled = bool((np.abs(actions) <= 1.0 + slack).all())
        unit = bool(((space.low == -1.0) & (space.high == 1.0)).all())  # both are the same
        reaches = float(np.abs(actions).max()) >= LIKELY_SCALED
        narrower = (space.low > -1.0) | (space.high < 1.0)
        inside = bool(((space.low >= -1.0) & (space.high <= 1.0)).all())
        doubtful = fits_raw and fits_scaled and not unit
        # Neither fitting is reported as raw.
        stored = "scaled" if fits_scaled and not unit and not (doubtful and inside) else "raw"
        if doubtful and (narrower.any() or not reaches):
            warnings.warn(
                f"{name}: the actions fit the action space's bounds as well as [-1, 1], to which "
                f"SB3's agents scale what they store; taken as {stored}. Say which they are: "
                "from_replay_buffer(..., actions='scaled'), or actions='raw' if they are the "
                "environment's own.",
                stacklevel=3,
            )
    if stored == "raw":
        return actions
    middle = (space.high + space.low) / 2.0
    return (middle + actions * (span / 2.0)).astype(np.float32)
