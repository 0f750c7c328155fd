"""Films of an episode, and what cannot be filmed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import imageio.v2 as imageio_v2
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


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg says on stderr that the disk is full, and the file is a part of one."""
    path = tmp_path / f"film{suffix}"
    path.write_bytes(b"before")
    get_writer = imageio_v2.get_writer

    def cut(file: Path, **kwargs: Any) -> Any:
        writer = get_writer(file, **kwargs)
        close = writer.close

        def closed() -> None:
            close()
            file.write_bytes(file.read_bytes()[:10])

        writer.close = closed
        return writer

    monkeypatch.setattr(imageio_v2, "get_writer", cut)
    with pytest.raises(OSError, match="the film could not be written"):
        render(ConstantPolicy(1.0), "Pendulum-v1", path, max_steps=3)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_film(tmp_path: Path) -> None:
    folder = tmp_path / "mine.gif"
    folder.mkdir()
    (folder / "file").write_text("kept")
    with pytest.raises(OSError, match="is a folder: give the name of a file"):
        render(ConstantPolicy(1.0), "Pendulum-v1", folder, max_steps=3)
    assert (folder / "file").read_text() == "kept"


def test_what_cannot_be_filmed_says_so(tmp_path: Path, countdown: str) -> None:
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
        render(ConstantPolicy(0.0), "Pendulum-v1", tmp_path / "film.avi")
    with pytest.raises((ValueError, RuntimeError), match="Countdown-v0"):
        render(ConstantPolicy(0.0), countdown, tmp_path / "film.gif")
    gc.collect()
    assert not list(tmp_path.iterdir())
