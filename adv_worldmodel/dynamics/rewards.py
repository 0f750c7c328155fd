"""Whether a model's rewards are those of the data."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.data.validation import spread_rows
from adv_worldmodel.dynamics.world_model import WorldModel

#: How many rows of the data are looked at.
CHECKED_ROWS = 10_000
#: Standard deviations of the data's rewards by which known ones may differ from them: in the mean
#: over the rows, where noise cancels out, and in the mean of the sizes.
MEAN_GAP, GAP = 0.1, 1.0
#: Shares of the rewards' size that are rounding.
ROUNDING = 1e-4


@torch.no_grad()
def compare_with_rewards(
    model: WorldModel, dataset: OfflineDataset, *, again: bool = False
) -> None:
    """Warns where the model's rewards are not those of the data, beside which they are learnt from.

    A learned reward has the offset of the data that it was fitted to; a known one is evaluated on
    `CHECKED_ROWS` that are spread over the data.

    :param model: with the data's dimensions.
    :param dataset: the data.
    :param again: whether the known rewards have been given again, to a model of a file: they may
        not be those of its fit, which has looked at them.
    :raises ValueError: the known rewards are no tensor of one finite number per row.
    """
    if model.fit_info.get("content_hash") == dataset.content_hash and not again:
        return  # the fit has said it
    if model.reward_function is None:
        fitted = model.fit_info.get("reward_offset", dataset.reward_offset)
        if fitted != dataset.reward_offset:
            warnings.warn(
                f"the world model was fitted to rewards with {fitted:g} added, those of "
                f"{dataset.name} have {dataset.reward_offset:g} added: give the model of this data",
                stacklevel=3,
            )
        return
    rows = spread_rows(len(dataset), CHECKED_ROWS)
    obs, action, next_obs, reward = (
        torch.as_tensor(column[rows], device=model.device)
        for column in (
            dataset.observations, dataset.actions, dataset.next_observations, dataset.rewards
        )
    )  # fmt: skip
    gap = (model.known_reward(obs, action, next_obs) - reward).double()
    wrong = torch.nonzero(~gap.isfinite())
    if len(wrong):
        row = int(rows[int(wrong[0])])
        raise ValueError(f"{dataset.name}: the known reward of row {row} is not a finite number")
    std = float(dataset.rewards.std(dtype=np.float64))
    rounding = ROUNDING * float(reward.abs().max())
    mean, mean_size = float(gap.mean()), float(gap.abs().mean())
    if abs(mean) > MEAN_GAP * std + rounding or mean_size > GAP * std + rounding:
        offset = f" (with reward_offset={dataset.reward_offset:g})" if dataset.reward_offset else ""
        warnings.warn(
            f"{dataset.name}: the known rewards differ from the data's{offset} by {mean:.3g} on "
            f"average, {mean_size:.3g} in size, where the data's standard deviation is {std:.3g}: "
            "the agent learns from both",
            stacklevel=3,
        )
