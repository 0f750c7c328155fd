"""Offline data sets: one immutable class, and readers for files, Minari, arrays and buffers."""

from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.minari_io import from_minari, to_minari
from adv_worldmodel.data.replay_buffer import from_replay_buffer
from adv_worldmodel.data.scores import Score, evaluation_env, normalised_score
from adv_worldmodel.data.sources import load_dataset

__all__ = [
    "OfflineDataset",
    "Score",
    "evaluation_env",
    "from_minari",
    "from_replay_buffer",
    "load_dataset",
    "normalised_score",
    "to_minari",
]
