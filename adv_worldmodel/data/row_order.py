"""Why the rows of a data set do not follow one another."""

from __future__ import annotations

import numpy as np

from adv_worldmodel.data.dataset import OfflineDataset
from adv_worldmodel.data.validation import spread_rows

#: How many rows are looked at.
CHECKED_ROWS = 10_000
#: Standard deviations of a column within which successors are near the next rows' observations.
NEAR = 0.05


def why_not_in_order(dataset: OfflineDataset) -> str:
    """Of data that are not `in_order`, the likely reason, and what follows from it; a clause."""
    rows = spread_rows(len(dataset) - 1, CHECKED_ROWS)
    successors = dataset.next_observations[rows].astype(np.float64)
    if np.mean((successors == dataset.observations[rows]).all(axis=1)) > 0.5:
        return (
            "and most have next_observations equal to observations: a model of them learns that "
            "nothing ever moves. Give what followed each row"
        )
    gaps = np.median(np.abs(successors - dataset.observations[rows + 1]), axis=0)
    spread = dataset.observations[rows].std(axis=0, dtype=np.float64)
    if (gaps <= NEAR * spread).all():
        column = int((gaps / np.where(spread > 0, spread, np.inf)).argmax())
        return (
            "though next_observations are near the next rows' observations (column "
            f"{column} differs by {gaps[column]:.2g}): recorded apart, or rounded otherwise? "
            "Training does not mind, but what an episode returned and how long it was is not known"
        )
    return (
        "as in a log that was shuffled: training does not mind, but what an episode returned and "
        "how long it was is not known"
    )
