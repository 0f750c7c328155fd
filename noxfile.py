"""The tests against other versions, and the wheel in an empty environment: ``make check-all``.

Each session installs what it needs into an environment of its own, with the versions that
constraints.txt pins, but for those that it is about. ``PIP_ARGS`` is passed on to pip.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = True
nox.options.default_venv_backend = "venv"

PIP_ARGS = shlex.split(os.environ.get("PIP_ARGS", ""))
#: Those, and sympy, of which each torch wants its own.
FREE = ("gymnasium", "stable_baselines3", "sb3_contrib", "torch", "sympy")
#: The oldest that pyproject.toml admits; tests/test_packaging.py compares the two.
OLDEST = ("gymnasium==1.1.1", "stable-baselines3==2.6.0", "sb3-contrib==2.6.0", "torch==2.6.0")
NEWEST = ("gymnasium", "stable-baselines3", "sb3-contrib", "torch")


def constraints(session: nox.Session, free: tuple[str, ...] = ()) -> str:
    """A file of the pinned versions without those of the packages named."""
    lines = Path("constraints.txt").read_text().splitlines()
    kept = [line for line in lines if re.split(r"[=<>]", line)[0] not in free]
    path = Path(session.create_tmp()) / "constraints.txt"
    path.write_text("\n".join(kept) + "\n")
    return str(path.resolve())


@nox.session
@nox.parametrize("versions", [OLDEST, NEWEST], ids=["oldest", "newest"])
def tests(session: nox.Session, versions: tuple[str, ...]) -> None:
    """The fast tests on the oldest and newest gymnasium, Stable-Baselines3 and torch."""
    pins = constraints(session, FREE)
    session.install(*PIP_ARGS, "--upgrade", "-c", pins, "-e", ".[dev]", *versions)
    session.run("python", "-m", "pytest", "-q", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel; with nothing else, `make demo`'s configuration trains for an iteration."""
    session.install(*PIP_ARGS, "build")
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder / "dist"), ".")
    (built,) = (folder / "dist").glob("*.whl")
    empty = folder / "venv"
    session.run("python", "-m", "venv", "--clear", str(empty))
    pip = [str(empty / "bin" / "python"), "-m", "pip", "install", "-q", *PIP_ARGS]
    session.run(*pip, "-c", constraints(session), str(built), external=True)
    session.chdir(folder)  # away from the checkout: only what was installed counts
    command = str(empty / "bin" / "adv-worldmodel")
    run = ["train", "pendulum-random", "iterations=1", "out=run", "--overwrite"]
    session.run(command, *run, external=True)
