"""What there is to say about a data set, and which ones there are: plain text for a terminal."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adv_worldmodel.data import builtin, d4rl, minari_io
from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.scores import normalised_score


def describe(dataset: OfflineDataset) -> str:
    """Sizes, range of every dimension, episode returns and lengths, several lines."""
    returns, lengths = dataset.episode_returns(), dataset.episode_lengths()
    shown, n_cut = shown_episodes(dataset)
    cut = f", {n_cut:,} of them cut by the recording" if n_cut else ""
    behaviour = dataset.behaviour_return
    score = None if math.isnan(behaviour) else normalised_score(dataset.env_id, behaviour)
    lines = [
        dataset.name,
        f"  environment    {dataset.env_id or 'unknown (name one: data.env_id=ID, --env ID)'}",
        f"  transitions    {len(dataset):,} in {len(returns):,} episodes "
        f"({int(dataset.terminations.sum()):,} terminated, "
        f"{int((dataset.truncations & ~dataset.terminations).sum()):,} truncated{cut})",
        f"  observations   {dataset.observations.shape[1]} dimensions",
        f"  actions        {dataset.actions.shape[1]} dimensions",
        f"  content hash   {dataset.content_hash}",
        _spread("  episode return", returns[shown]),
        _spread("  episode length", lengths[shown].astype(np.float64)),
        _spread("  reward        ", dataset.rewards.astype(np.float64)),
    ]
    if not dataset.in_order:
        lines.append("  order          rows do not follow one another: episodes mean nothing")
    if dataset.reward_offset:
        lines.append(f"  reward offset  {dataset.reward_offset:g} (in rewards, not in returns)")
    if score is not None:
        lines.append(f"  score          {score.value:.1f} ({score.reference})")
    if dataset.name in builtin.NAMES:
        card = builtin.load_card(dataset.name)
        lines += [f"  origin         {card['origin']}", f"  made           {card['made']}"]
    for key, values, space in (
        ("observation", dataset.observations, dataset.observation_space),
        ("action", dataset.actions, dataset.action_space),
    ):
        guessed = " (guessed)" if key == "action" and dataset.action_bounds_guessed else ""
        lines.append(f"  {key:<12}{'min':>11}{'mean':>11}{'max':>11}{'std':>11}   bounds{guessed}")
        for column in range(values.shape[1]):
            data = values[:, column].astype(np.float64)
            numbers = (data.min(), data.mean(), data.max(), data.std())
            row = "".join(f"{number:>11.4g}" for number in numbers)
            low, high = space.low[column], space.high[column]
            lines.append(f"  {column:<12}{row}   [{low:g}, {high:g}]")
    return "\n".join(lines)


def shown_episodes(dataset: OfflineDataset) -> tuple[NDArray[np.bool_], int]:
    """Which episodes are shown, (episodes,), and how many the recording cut.

    Those that are whole; all where these say little (`OfflineDataset.behaviour_return` is NaN), or
    where rows are not in order and none is known to be cut.
    """
    whole = dataset.whole_episodes()
    if not dataset.in_order:
        return np.ones_like(whole), 0
    few = math.isnan(dataset.behaviour_return)
    return np.ones_like(whole) if few else whole, int((~whole).sum())


def list_sources() -> str:
    """The built-in sets, and the D4RL files and Minari sets on this machine, several lines."""
    lines = ["built in"]
    for name in builtin.NAMES:
        card = builtin.load_card(name)
        mean = card["returns"]["mean"]
        lines.append(
            f"  {name:<28}{card['transitions']:>8,} transitions, {card['env_id']}, "
            f"mean return {mean:.0f}"
        )
    lines.append(f"D4RL files in {d4rl.d4rl_folder()}")
    lines += [f"  d4rl:{name}" for name in d4rl.present_sets()] or ["  none"]
    lines.append(f"Minari sets in {minari_io.minari_folder()}")
    lines += [f"  minari:{name}" for name in minari_io.local_ids()] or ["  none"]
    return "\n".join(lines)


def _spread(title: str, values: NDArray[np.float64]) -> str:
    return (
        f"{title} mean {values.mean():.6g}, std {values.std():.6g}, min {values.min():.6g}, "
        f"max {values.max():.6g}"
    )
