"""What is said of rows that do not follow one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from adv_worldmodel.data import OfflineDataset
from adv_worldmodel.data.row_order import why_not_in_order

Array = NDArray[np.float32]


@pytest.mark.parametrize(
    ("successors", "reason"),
    [
        (lambda obs, following: following[::-1], "as in a log that was shuffled"),
        (lambda obs, following: obs, "a model of them learns that nothing ever moves"),
        (lambda obs, following: following + 1e-3, r"\(column 0 differs by 0.001\): recorded apart"),
    ],
    ids=["shuffled", "standing still", "rounded"],
)
def test_the_likely_reason(
    pendulum: OfflineDataset, successors: Callable[[Array, Array], Array], reason: str
) -> None:
    """Columns of the pendulum: cosine and sine, whose spread is 0.7, and velocity."""
    assert pendulum.in_order
    found = successors(pendulum.observations, pendulum.next_observations)
    ends = np.ones(len(pendulum), dtype=bool)  # each row is an episode: no successor is the next
    changed = replace(pendulum, next_observations=found, truncations=ends)
    assert not changed.in_order
    with pytest.raises(ValueError, match=reason):
        raise ValueError(why_not_in_order(changed))
