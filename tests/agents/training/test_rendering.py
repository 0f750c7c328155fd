"""Films of an episode, and what cannot be filmed."""

from __future__ import annotations

import gc
from pathlib import Path

import imageio.v3 as imageio
import pytest

from agents.training.rendering import render
from tests.agents.countdown import ConstantPolicy


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_has_a_frame_per_step(tmp_path: Path, suffix: str) -> None:
    path = render(ConstantPolicy(1.0), "Pendulum-v1", tmp_path / f"film{suffix}", max_steps=9)
    frames = imageio.imread(path)
    assert frames.shape == (10, 500, 500, 3)  # Pendulum draws 500 x 500 at 30 frames per second
    assert frames[0].astype(int).tolist() != frames[-1].astype(int).tolist()


def test_what_cannot_be_filmed_says_so(tmp_path: Path, countdown: str) -> None:
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        render(ConstantPolicy(0.0), "Pendulum-v1", tmp_path / "film.avi")
    with pytest.raises((ValueError, RuntimeError), match="Countdown-v0"):
        render(ConstantPolicy(0.0), countdown, tmp_path / "film.gif")
    gc.collect()
    assert not list(tmp_path.iterdir())
