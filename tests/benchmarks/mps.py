"""NVIDIA's MPS, with which the kernels of several processes run on a GPU side by side."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

CONTROL = "nvidia-cuda-mps-control"
SECONDS = 20.0


@contextmanager
def mps() -> Iterator[None]:
    """A daemon of its own while the block runs, for the processes that are started in it.

    No setting of the device is changed, and a daemon that runs already is not touched.

    :raises RuntimeError: there is none here, or it does not start.
    """
    command = shutil.which(CONTROL)
    if command is None:
        raise RuntimeError(f"no {CONTROL} here")
    with TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        places = {
            name: str(Path(folder, name))
            for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        }
        for place in places.values():
            Path(place).mkdir()
        with patch.dict(os.environ, places):
            _control([command, "-d"])
            try:
                yield
            finally:
                _control([command], "quit\n")


def _control(command: list[str], text: str = "") -> None:
    try:
        subprocess.run(
            command, input=text, text=True, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise RuntimeError(f"{CONTROL}: {error}") from error
