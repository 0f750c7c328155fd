"""Names of a run folder, and writes that neither an error nor a signal cuts short."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from agents.training import run_folder
from agents.training.atomic_files import (
    write_json,
    write_text_where_named,
    written_aside,
    written_where_named,
)
from agents.training.run_folder import (
    LOCK,
    RunFolder,
    check_file,
    check_new_folder,
    check_only_a_run,
    check_unlocked,
    lock_folder,
    new_run_folder,
    run_locked,
)
from agents.training.signals import signals_held
from tests.agents.made_up_runs import make_run


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "policy.zip"
    target.write_text("old")

    def write_half() -> None:
        with written_aside(target) as aside:
            assert aside.suffix == ".zip"  # SB3 would add it to another name
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with written_aside(target) as aside:
        aside.mkdir()
        (aside / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_link_to_a_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "model"
    elsewhere.mkdir()
    (elsewhere / "old").touch()
    target.symlink_to(elsewhere)
    with written_aside(target) as aside:
        aside.mkdir()
        (aside / "new").touch()
    assert not target.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in elsewhere.iterdir()] == ["old"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for target in (tmp_path / ("x" * 251 + ".csv"), tmp_path / ("ü" * 125 + ".csv")):
        with written_aside(target) as aside:
            assert aside.suffix == ".csv"
            aside.write_text("new")
        assert target.read_text() == "new"
        target.unlink()
    assert not list(tmp_path.iterdir())


def test_where_the_user_names_a_link_the_file_behind_it_is_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, text in (("old.csv", "old"), ("none.csv", None)):
        link = tmp_path / name
        link.symlink_to(elsewhere / name)
        if text is not None:
            link.write_text(text)
        write_text_where_named(link, "new")
        assert link.is_symlink()
        assert (elsewhere / name).read_text() == "new"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["none.csv", "old.csv"]
    (tmp_path / "film.gif").symlink_to(elsewhere / "film.avi")
    with written_where_named(tmp_path / "film.gif") as aside:  # the named suffix says the format
        assert aside.suffix == ".gif"
        aside.write_text("film")
    assert (elsewhere / "film.avi").read_text() == "film"


def test_in_a_run_folder_no_link_is_followed(tmp_path: Path) -> None:
    """The folder may be a stranger's, and the link lead to a file of the user's."""
    mine, link = tmp_path / "mine", tmp_path / "result.json"
    mine.write_text("mine")
    link.symlink_to(mine)
    write_json(link, {})
    assert mine.read_text() == "mine"
    assert not link.is_symlink()


def test_a_pipe_is_written_to_where_it_stands(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text_where_named(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_pipe_needs_no_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /dev/stdout, for all users but root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr("os.access", lambda path, _: Path(path) == pipe)
    check_file(pipe)
    with pytest.raises(ValueError, match="not writable: give another file"):
        check_file(tmp_path / "table.csv")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="pipe is not writable: give another file"):
        check_file(pipe)


def test_json_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    content = {"a": math.nan, "b": [math.inf, np.float32(0.5)], "c": np.arange(2), "d": (True, "x")}
    write_json(tmp_path / "x.json", content)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"a": None, "b": [None, 0.5], "c": [0, 1], "d": [True, "x"]}


def test_two_runs_of_one_second_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {new_run_folder(None, "name", 3).path.name for _ in range(3)}
    assert len(found) == 3
    assert all(name.startswith("name-3-2") for name in found)


@pytest.fixture
def mixed(tmp_path: Path) -> RunFolder:
    """A run that was killed twice while it wrote, and files of the user's."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    for path in (folder.config, folder.result):
        path.write_text("{}")
    for name in (".123-policy.zip", ".45-result.json"):
        (folder.path / name).touch()
    (folder.path / ".123-world_model").mkdir()
    (folder.checkpoints / ".123-iteration-000010").mkdir()
    (folder.path / ".7-zip").mkdir()
    for name in (".2024-01-05-notes", ".123-policy.zip.bak", ".123-iteration-000010", ".x-config"):
        (folder.path / name).touch()
    (folder.checkpoints / ".2-notes").touch()
    return folder


MINE = {".2024-01-05-notes", ".7-zip", ".123-policy.zip.bak", ".123-iteration-000010", ".x-config"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_run_wrote_aside_is_removed_and_nothing_else(mixed: RunFolder) -> None:
    mixed.remove_asides()
    assert names(mixed.path) == {"checkpoints", "config.yaml", "result.json"} | MINE
    assert names(mixed.checkpoints) == {".2-notes"}


def test_a_run_that_is_replaced_leaves_the_files_of_the_user(mixed: RunFolder) -> None:
    new_run_folder(str(mixed.path), "name", 0, overwrite=True)
    assert names(mixed.path) == MINE


def test_a_folder_with_files_of_the_user_is_more_than_a_run(mixed: RunFolder) -> None:
    with pytest.raises(ValueError, match="holds more than a run") as refused:
        check_only_a_run(mixed)
    assert all(name in str(refused.value) for name in MINE)
    assert ".45-result.json" not in str(refused.value)


@pytest.mark.parametrize("name", [path.name for path in RunFolder(Path()).written])
def test_each_file_of_a_run_is_known_while_it_is_written(tmp_path: Path, name: str) -> None:
    with written_aside(tmp_path / name) as aside:
        aside.touch()
        RunFolder(tmp_path).remove_asides()
        assert not aside.exists()
        aside.touch()


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is locked, and no file is removed that is open."""
    opened: list[IO[str]] = []
    open_path, unlink = Path.open, Path.unlink

    def open_and_note(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(open_path(path, *args, **kwargs))
        return opened[-1]

    def unlink_closed(path: Path, missing_ok: bool = False) -> None:
        if any(not file.closed and Path(file.name) == path for file in opened):
            raise PermissionError(13, "used by another process", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(run_folder, "fcntl", None)
    monkeypatch.setattr(Path, "open", open_and_note)
    monkeypatch.setattr(Path, "unlink", unlink_closed)


@pytest.mark.usefixtures("windows")
def test_where_open_files_stay_the_lock_goes_all_the_same(tmp_path: Path) -> None:
    with run_locked(tmp_path):
        assert names(tmp_path) == {LOCK}
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("windows")
def test_where_open_files_stay_the_lock_of_another_process_stays(tmp_path: Path) -> None:
    with lock_folder(tmp_path, "a run", "wait"):
        check_unlocked(tmp_path)
        assert names(tmp_path) == {LOCK}


def test_a_folder_on_a_drive_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(100))  # StopIteration ends a search that has no end
    monkeypatch.setattr(Path, "is_dir", lambda _: next(looks) < 0)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(ValueError, match="there is no /: give another out=FOLDER"):
        check_new_folder("/runs/new")


def test_a_name_that_tensorboard_cannot_write_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, as the command line hands them on."""
    with pytest.raises(ValueError, match="is no UTF-8"):
        check_new_folder(str(tmp_path / "lat\udcfc"))


class Flock:
    """In place of `fcntl`: locking fails with this error."""

    LOCK_EX = LOCK_NB = 0

    def __init__(self, number: int) -> None:
        self.number, self.files = number, list[IO[str]]()

    def flock(self, file: IO[str], _: int) -> None:
        self.files.append(file)
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flock = Flock(number)
    monkeypatch.setattr(run_folder, "fcntl", flock)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            with run_locked(tmp_path):
                check_unlocked(tmp_path)
                assert not flock.files[-2].closed  # the run's own
    assert [str(tmp_path) in str(warning.message) for warning in caught] == [True]
    assert names(tmp_path) == set()
    assert all(file.closed for file in flock.files)


def test_an_error_in_locking_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = Flock(errno.EIO)
    monkeypatch.setattr(run_folder, "fcntl", flock)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        lock_folder(tmp_path, "a run", "wait")
    assert flock.files[0].closed


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_takes_effect_after_the_files_are_written() -> None:
    written = []

    def write() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            written.append("whole")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["whole"]
    with pytest.raises(KeyboardInterrupt):  # and the handler is the old one again
        signal.raise_signal(signal.SIGINT)


def test_a_removal_that_is_interrupted_leaves_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("dataset: pendulum-random")
    write_json(folder.result, {"status": "finished", "return_mean": 1.0})

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_run_folder(str(tmp_path), "name", 0, overwrite=True)
    assert folder.read_result()["status"] == "interrupted"


@pytest.mark.parametrize(
    ("status", "remedy"),
    [("running", "goes on with it"), ("diverged", "the run diverged (as it happens)"),
     ("interrupted", "train again with")],
)  # fmt: skip
def test_why_there_is_no_policy_is_said(tmp_path: Path, status: str, remedy: str) -> None:
    make_run(tmp_path / "run", status=status, error="as it happens")
    with pytest.raises(FileNotFoundError, match=re.escape(remedy)):
        RunFolder(tmp_path / "run").load_policy()
