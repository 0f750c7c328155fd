"""A long run of small iterations in one process takes no more memory, files or threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import soak


@pytest.mark.slow
def test_a_long_run_leaves_nothing_behind(tmp_path: Path) -> None:
    found = soak(1000, tmp_path)
    assert found.slope_kib < 8.0  # 16 MiB in the paper's 2000 iterations
    assert found.checkpoint_mib < 5.0
    assert found.threads[1] <= found.threads[0]
