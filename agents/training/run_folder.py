"""The folder that one run writes: its file names, its lock, and reading it back.

A run folder holds::

    config.yaml          the resolved configuration, which reruns the run
    evaluations.csv      one row per evaluation in the real environment
    progress.csv         one row of metrics per iteration; its evaluation stands in the next row
    tensorboard/         the same metrics as TensorBoard events
    world_model/         the model after the maximum-likelihood fit
    adversarial_model/   the model at the end of training
    checkpoints/         the last two states of the training, to go on from
    clone/               the policy before training, cloned from the data, like `policy/`
    policy/              the policy, for `RAMBO.load_weights`, which runs no code
    policy.zip           the agent, for `RAMBO.load`, which runs what the file's pickles say
    learning_curve.png   return against iteration
    result.json          what the run amounts to; `status` says whether it finished

Whatever is not appended to row by row is written by `atomic_files`, so that a run that stops at any
moment leaves no half-written file.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agents.training.atomic_files import find_asides, is_stream, remove, write_json

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from agents.rambo import RAMBO
    from agents.training.config import AgentConfig

LOCK = ".lock"
#: What network file systems say that lock no files.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
CHECKPOINT = "iteration-{}"  #: a folder in `checkpoints/`, by its number


@dataclass(frozen=True)
class RunFolder:
    """The paths inside the run folder `path`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.csv"

    @property
    def progress(self) -> Path:
        return self.path / "progress.csv"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def world_model(self) -> Path:
        return self.path / "world_model"

    @property
    def adversarial_model(self) -> Path:
        return self.path / "adversarial_model"

    @property
    def clone(self) -> Path:
        return self.path / "clone"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def policy_zip(self) -> Path:
        return self.path / "policy.zip"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def written(self) -> tuple[Path, ...]:
        """All that a run writes; last what tells that it is one."""
        return (
            self.evaluations, self.progress, self.tensorboard, self.world_model,
            self.adversarial_model, self.checkpoints, self.clone, self.policy, self.policy_zip,
            self.learning_curve, self.config, self.result,
        )  # fmt: skip

    def iterations_logged(self) -> int:
        """Rows of `progress.csv`: iterations that are done, and one more of the last evaluation."""
        rows = 0  # of a CSV file with a header; there is none yet before the first
        with suppress(OSError), self.progress.open(encoding="utf-8") as file:
            rows = max(0, sum(1 for _ in file) - 1)
        return rows

    def asides(self) -> list[Path]:
        """What a run is writing aside, or was when it was killed; no file of the user's."""
        own = [path.name for path in self.written]
        return [
            *find_asides(self.path, own),
            *find_asides(self.checkpoints, [CHECKPOINT.format("*")]),
        ]

    def remove_asides(self) -> None:
        for path in self.asides():
            remove(path)

    def result_or_nothing(self) -> dict[str, Any]:
        """The content of `result.json`; empty where there is none, or none that can be read."""
        try:
            return self.read_result()
        except (FileNotFoundError, ValueError):
            return {}

    def read_result(self) -> dict[str, Any]:
        """Return the content of `result.json`.

        :raises FileNotFoundError: if there is no such folder, or no run in it.
        :raises ValueError: if the file is not the JSON object that a run writes.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"no run folder at {self.path}: give a folder that 'adv-worldmodel train' printed"
            )
        if not self.result.is_file():
            inside = sorted(file.parent.name for file in self.path.glob("*/result.json"))
            raise FileNotFoundError(
                f"{self.path} is not a run folder (it holds no result.json): give "
                + (
                    f"one of the runs in it ({', '.join(inside)})"
                    if inside
                    else "a folder that 'adv-worldmodel train' printed"
                )
            )
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.result} is not valid JSON ({error}): train again") from error
        if not isinstance(result, dict):
            raise ValueError(
                f"{self.result} holds a {type(result).__name__}, expected an object: train again"
            )
        return result

    def env_id(self, *, trust: bool = False) -> str:
        """Return the environment in which `result.json` says the policy was evaluated.

        :param trust: allow `module:ID`, with which a stranger's file would choose what is imported.
        :raises FileNotFoundError, ValueError: as `read_result`; none is named, or a module's.
        """
        env_id = self.read_result().get("env_id")
        if not isinstance(env_id, str):
            raise ValueError(
                f"{self.result} names no environment (env_id): give --env ID, or --in-model fit"
            )
        check_trusted(self.result, env_id, trust, f"give --env {env_id}, or --trust")
        return env_id

    def alpha_in_values(self, agent: AgentConfig) -> float:
        """The entropy coefficient at the end of the run; 0 where the critics' targets leave it out.

        :raises FileNotFoundError: it was learned, and `progress.csv` is missing.
        """
        if not agent.entropy_in_target:
            return 0.0
        if not isinstance(agent.ent_coef, str):
            return agent.first_alpha
        with self.progress.open(newline="", encoding="utf-8") as file:
            found = [row.get("train/ent_coef") for row in csv.DictReader(file)]
        return float(next((value for value in reversed(found) if value), agent.first_alpha))

    def load_policy(self, device: str = "auto") -> RAMBO:
        """Load the agent, for prediction, from `policy/`: no code in it can run.

        :raises FileNotFoundError: the run was stopped before there was an agent.
        :raises ValueError: a file is damaged or of another version.
        """
        if not self.policy.is_dir():
            raise FileNotFoundError(f"{self.path} holds no policy/: {self._why_no_policy()}")
        return _load_agent(self.policy, device)

    def _why_no_policy(self) -> str:
        result = self.result_or_nothing()
        status, error = result.get("status"), result.get("error")
        if status == "running":
            return (
                "the run is at work, or was killed; 'adv-worldmodel train --resume "
                f"{self.path}' goes on with it"
            )
        if status in ("diverged", "failed"):
            return f"the run {status}{f' ({error})' if error else ''}"
        return (
            "the run stopped before there was a policy; train again with 'adv-worldmodel train "
            f"{self.config}'"
        )

    def load_clone(self, device: str = "auto") -> RAMBO | None:
        """The same from `clone/`; None where the run cloned nothing, or kept no clone yet.

        :raises ValueError: as `load_policy`.
        """
        return _load_agent(self.clone, device) if self.clone.is_dir() else None


def _load_agent(weights: Path, device: str) -> RAMBO:
    from agents.rambo import RAMBO

    agent = RAMBO.load_weights(weights, device)
    if not all(bool(p.isfinite().all()) for p in agent.policy.parameters()):
        raise ValueError(f"{weights} is no policy: its parameters are not finite, the run diverged")
    return agent


def check_trusted(file: Path, name: str, trust: bool, remedy: str) -> None:
    """ValueError if `name`, from a file that may be a stranger's, would import a module."""
    if ":" in name and not trust:
        raise ValueError(
            f"{file} names {name!r}, which imports the module before the colon: where you trust "
            f"it, {remedy}"
        )


class FolderInUseError(ValueError):
    """Another process writes into the folder."""


def lock_folder(path: Path, who: str, remedy: str) -> IO[str]:
    """Keep others out of `path` as long as the file is open; FolderInUseError if one is in.

    Where the file system locks no files, as on Windows, nobody is kept out.
    """
    file = (path / LOCK).open("a")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FolderInUseError(
            f"{who} is at work in {path}: wait for its end, or {remedy}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
        warnings.warn(
            f"{path / LOCK} cannot be locked ({error.strerror}): let no other process write there",
            stacklevel=1,  # this place, so that it is said once of a folder
        )
    return file


@contextmanager
def run_locked(path: Path) -> Iterator[None]:
    """Be the only process that writes the run in `path`; FolderInUseError if another one does."""
    lock = lock_folder(path, "a run", "train into another folder")
    try:
        yield
    finally:
        if fcntl is None:  # Windows removes no file that is open, here or in another process
            lock.close()
            with suppress(PermissionError):
                (path / LOCK).unlink(missing_ok=True)
        else:  # before it is closed: whoever locks it next shall not lose it
            (path / LOCK).unlink(missing_ok=True)
            lock.close()


def check_unlocked(path: Path) -> None:
    """ValueError if a process writes the run in `path`; writes nothing."""
    if (path / LOCK).is_file():
        with run_locked(path):
            pass


def check_new_folder(out: str | None, *, overwrite: bool = False) -> None:
    """Raise ValueError unless `new_run_folder` can make its folder; writes nothing."""
    path = Path("runs" if out is None else out)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"out={out!r} is no UTF-8, in which TensorBoard writes names: {error.reason}"
        ) from error
    if overwrite and holds_run(path):
        check_unlocked(path)
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give out=FOLDER that does not exist yet")
    if out is not None and path.is_dir() and any(file.name != LOCK for file in path.iterdir()):
        if holds_run(path):
            raise ValueError(
                f"out={out} holds a run: go on with it by 'adv-worldmodel train --resume {out}', "
                "replace it by --overwrite, or give another folder"
            )
        raise ValueError(f"out={out} is not empty: give a folder that does not exist yet")
    check_parents(path, "give another out=FOLDER")


def check_file(path: Path) -> None:
    """Raise ValueError unless a file can be written to `path`; writes nothing."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if not is_stream(path):
        check_parents(Path(os.path.realpath(path)), "give another file")
    elif not os.access(path, os.W_OK):
        raise ValueError(f"{path} is not writable: give another file")


def check_parents(path: Path, remedy: str) -> None:
    """Raise ValueError, which ends in `remedy`, unless `path` can be made where it is to lie."""
    parent = path.absolute()
    while not parent.is_dir():
        if parent.exists() and parent != path.absolute():
            raise ValueError(f"{path} lies below the file {parent}: {remedy}")
        if parent == parent.parent:  # a drive of Windows
            raise ValueError(f"{path}: there is no {parent}: {remedy}")
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{parent} is not writable: {remedy}")


def holds_run(path: Path) -> bool:
    """Whether a run wrote there: a `config.yaml` beside nothing of a run may be the user's own."""
    folder = RunFolder(path)
    return folder.config.is_file() and sum(written.exists() for written in folder.written) > 1


def check_only_a_run(folder: RunFolder) -> None:
    """ValueError if the folder, where there is one, holds anything that no run writes."""
    if not folder.path.is_dir():
        return
    known = {*folder.written, *folder.asides(), folder.path / LOCK}
    if others := sorted(path.name for path in folder.path.iterdir() if path not in known):
        raise ValueError(
            f"{folder.path} is to be trained anew, and holds more than a run "
            f"({', '.join(others)}): move that elsewhere"
        )


def _remove_run(folder: RunFolder) -> None:
    """Remove all that a run writes, its subfolders whole, and no file of the user's beside them."""
    with suppress(OSError, ValueError):  # what is left by an interruption is no finished run
        write_json(folder.result, folder.read_result() | {"status": "interrupted"})
    folder.remove_asides()
    for path in folder.written:
        remove(path)


def new_run_folder(
    out: str | None, name: str, seed: int | str, *, overwrite: bool = False
) -> RunFolder:
    """Make the folder of a run: `out`, or `runs/<name>-<seed>-<date-time>` of the current one.

    :param overwrite: remove a run that `out` holds; files that no run writes stay.
    """
    if out is not None:
        path = Path(out)
        if overwrite and holds_run(path):
            with run_locked(path):
                _remove_run(RunFolder(path))
        path.mkdir(parents=True, exist_ok=True)
        return RunFolder(path)
    stem = f"{name}-{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        path = Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run started within the same second
            continue
        return RunFolder(path)
    raise FileExistsError(f"runs/{stem}-* are all taken: give out=FOLDER")
