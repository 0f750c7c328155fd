"""One episode of a policy in the real environment, as a film."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from adv_worldmodel.errors import first_line
from agents.training.atomic_files import written_where_named
from agents.training.real_env import check_spaces, make_real_env

_SUFFIXES = (".mp4", ".gif")
_ENDLESS = 1000  # steps that are filmed where no episode need ever end
_GIF_FPS = 25  # browsers slow down a GIF whose frames are shorter than about 0.03 s


def render(
    policy: Any, env_id: str, path: str | Path, *, seed: int = 0, max_steps: int | None = None
) -> Path:
    """Film one episode of the deterministic policy.

    :param policy: an SB3 algorithm or policy (anything with SB3's `predict`).
    :param env_id: Gymnasium id or `module:ID` of the real environment.
    :param path: file to write; `.mp4` or `.gif` says the format.
    :param seed: of the environment's reset.
    :param max_steps: the film ends here if the episode does not end before; by default after 1000
        steps where the environment has no time limit.
    :return: the path written.
    :raises ValueError: another suffix, an unknown environment, one that has no `rgb_array` mode, or
        spaces that are not the policy's.
    :raises OSError: the file could not be written; what was there before is as it was.
    :raises RuntimeError: the environment cannot draw on this machine (no working OpenGL).
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"Cannot write a film to '{path}': the name has to end in .mp4 or .gif.")
    env, first, observation = _open(policy, env_id, seed)
    try:
        fps = float(env.metadata.get("render_fps") or 30)
        stride = max(1, round(fps / _GIF_FPS)) if path.suffix.lower() == ".gif" else 1
        path.parent.mkdir(parents=True, exist_ok=True)
        if max_steps is None:
            limit = None if env.spec is None else env.spec.max_episode_steps
            max_steps = _ENDLESS if limit is None else limit
        with written_where_named(path) as aside, _writer(aside, fps / stride) as append:
            append(first)
            for step in range(1, max_steps + 1):
                action, _ = policy.predict(observation, deterministic=True)
                observation, _, terminated, truncated, _ = env.step(action)
                if step % stride == 0 or terminated or truncated:
                    append(_frame(env, env_id))
                if terminated or truncated:
                    break
    finally:
        env.close()
    return path


def _open(
    policy: Any, env_id: str, seed: int
) -> tuple[gym.Env[Any, Any], NDArray[np.uint8], NDArray[Any]]:
    """Environment that can draw, its first frame and first observation.

    MuJoCo draws through the library that MUJOCO_GL names. Where that is unset and there is no
    display, its default (a window) fails: the headless ones are tried.
    """
    backends: list[str | None] = [None]
    if "MUJOCO_GL" not in os.environ and sys.platform.startswith("linux"):
        has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        backends = [None, "egl", "osmesa"] if has_display else ["egl", "osmesa"]
    problem = ""
    for backend in backends:
        with _mujoco_gl(backend):
            env = make_real_env(env_id, render_mode="rgb_array")
            try:
                check_spaces(policy, env, env_id)
                observation, _ = env.reset(seed=seed)
                return env, _frame(env, env_id), observation
            except RuntimeError as error:
                problem = str(error)
                drawn_by_mujoco = hasattr(env.unwrapped, "mujoco_renderer")
                env.close()
                if not drawn_by_mujoco:
                    raise
            except BaseException:
                env.close()
                raise
    tried = os.environ.get("MUJOCO_GL") or " and ".join(name for name in backends if name)
    raise RuntimeError(
        f"{problem}. Tried MUJOCO_GL={tried or 'as the system has it'};"
        " install the system's EGL (libegl1) or OSMesa (libosmesa6) library."
    )


@contextmanager
def _mujoco_gl(backend: str | None) -> Iterator[None]:
    """Set MUJOCO_GL, which Gymnasium reads when the first frame is drawn; None leaves it."""
    if backend is None:
        yield
        return
    os.environ["MUJOCO_GL"] = backend
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


def _frame(env: gym.Env[Any, Any], env_id: str) -> NDArray[np.uint8]:
    """`(H, W, 3)` with even H and W, as the usual video codec wants them."""
    try:
        frame = env.render()
    except Exception as error:  # OpenGL's loaders raise whatever they meet
        raise RuntimeError(
            f"{env_id!r} cannot be drawn on this machine: {first_line(error)}"
        ) from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise ValueError(f"{env_id!r} cannot be drawn: its render mode rgb_array gives no image.")
    height, width = (size - size % 2 for size in frame.shape[:2])
    return np.ascontiguousarray(frame[:height, :width], dtype=np.uint8)


@contextmanager
def _writer(path: Path, fps: float) -> Iterator[Any]:
    """Function that appends a frame; the file is complete when the context ends."""
    import imageio.v2 as imageio
    from imageio.v3 import imread

    if path.suffix.lower() == ".gif":
        writer = imageio.get_writer(path, mode="I", duration=1000 / fps, loop=0)
    else:
        # Frames are even already; a block of 2 keeps the codec from rescaling them to 16.
        writer = imageio.get_writer(path, fps=fps, macro_block_size=2)
    try:
        yield writer.append_data
    finally:
        writer.close()
    if path.is_file():  # ffmpeg tells nobody where it failed
        try:
            imread(path, index=0)
        except Exception as error:  # of whichever reader
            raise OSError("the film could not be written: is the disk full?") from error
