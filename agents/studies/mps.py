"""NVIDIA's MPS, with which the kernels of several processes run on a GPU side by side.

Without it processes take turns, and five runs at once take as long as one after the other. Each of
their kernels leaves most of a GPU idle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

__all__ = ["CONTROL", "mps", "mps_if_possible"]

CONTROL = "nvidia-cuda-mps-control"
#: Where processes look for a daemon unless the environment names another place.
USUAL_PIPES = Path("/tmp/nvidia-mps")
#: Seconds that the daemon may take to start or to end.
SECONDS = 20.0
#: Whether a process that is started now finds the GPU, and the seconds it may take to import torch.
PROBE, PROBE_SECONDS = "import torch; torch.ones(1, device='cuda').item()", 120.0


@contextmanager
def mps_if_possible() -> Iterator[str | None]:
    """:func:`mps` where it can be had; gives the reason where it cannot.

    Nothing is done where a daemon runs already, which processes find by themselves.
    """
    with ExitStack() as stack:
        reason = None
        if not _daemon_runs():
            try:
                stack.enter_context(mps())
            except RuntimeError as error:
                reason = str(error)
        yield reason


@contextmanager
def mps() -> Iterator[None]:
    """A daemon of its own while the block runs, for the processes that are started in it.

    No setting of the device is changed, and a daemon that runs already is not touched.

    :raises RuntimeError: there is none here, it does not start, processes do not find the GPU with
        it, or there are several GPUs, on all of which it would open.
    """
    command = shutil.which(CONTROL)
    if command is None:
        raise RuntimeError(f"no {CONTROL} here")
    if (count := torch.cuda.device_count()) > 1:
        raise RuntimeError(f"{count} GPUs: make the one visible (CUDA_VISIBLE_DEVICES)")
    with TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        places = {
            name: str(Path(folder, name))
            for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        }
        for place in places.values():
            Path(place).mkdir()
        # the daemon shows the GPU that it sees as the first one
        seen = {"CUDA_VISIBLE_DEVICES": "0"} if "CUDA_VISIBLE_DEVICES" in os.environ else {}
        _call([command, "-d"], {**os.environ, **places})
        try:
            with _environment({**places, **seen}):
                _call([sys.executable, "-c", PROBE], dict(os.environ), seconds=PROBE_SECONDS)
                yield
        finally:
            with suppress(RuntimeError):  # it has ended by itself
                _call([command], {**os.environ, **places}, "quit\n")


def _daemon_runs() -> bool:
    """Whether somebody has started one for the processes of this environment."""
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    return Path(pipes or USUAL_PIPES, "control").exists()


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _call(
    command: list[str], environment: dict[str, str], text: str = "", *, seconds: float = SECONDS
) -> None:
    try:
        subprocess.run(
            command, env=environment, input=text, text=True, check=True, timeout=seconds,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        name = CONTROL if CONTROL in command[0] else "with MPS no process finds the GPU"
        raise RuntimeError(f"{name}: {error}") from error
