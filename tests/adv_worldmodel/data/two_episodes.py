"""The smallest data with all kinds of rows, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def arrays(**changes: Any) -> dict[str, Any]:
    """Two episodes on a line: 0 -> 1 -> 2 (terminated) and 5 -> 6 (cut), rewards 1, 2, 4."""
    columns: dict[str, Any] = {
        "observations": np.array([[0.0], [1.0], [5.0]]),
        "actions": np.array([[0.5], [-0.5], [1.0]]),
        "rewards": np.array([1.0, 2.0, 4.0]),
        "next_observations": np.array([[1.0], [2.0], [6.0]]),
        "terminations": np.array([False, True, False]),
        "truncations": np.array([False, False, True]),
    }
    return columns | changes
