"""Files and folders that are written wholly or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


def remove(path: Path) -> None:
    """Remove a file, a folder or a link to one, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_aside(target: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a path to write a file or folder to, which becomes `target` if the block succeeds.

    The path keeps the suffix of `target` (Stable-Baselines3 and matplotlib look at it), and of a
    long name the end alone: a file system takes no more than 255 bytes. A link is replaced: in a
    run folder, which may be a stranger's, none is followed.

    :param suffix: one for the path in its place.
    """
    aside = target.with_name(f".{os.getpid()}-{target.name[-50:]}{suffix}")
    try:
        yield aside
        if target.is_dir():  # a folder that is not empty cannot be replaced
            remove(target)
        aside.replace(target)
    finally:
        remove(aside)


@contextmanager
def written_where_named(target: Path) -> Iterator[Path]:
    """`written_aside` for a file that the user names: what a link leads to is written, it stays.

    The path is `target` itself where that is a pipe or a device.

    :raises IsADirectoryError: there is a folder of that name.
    """
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of a file")
    if is_stream(target):
        yield target
        return
    with written_aside(Path(os.path.realpath(target)), target.suffix) as aside:
        yield aside


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a device or the like, to which is written as it stands."""
    return path.exists() and not path.is_file() and not path.is_dir()


def find_asides(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """What a process is writing aside in `folder`, or was when it was killed.

    :param names: patterns of the names that it writes; no other file is one.
    """
    for name in names:
        for path in folder.glob(f".*-{name}"):
            number, _, rest = path.name[1:].partition("-")
            if number.isdigit() and fnmatchcase(rest, name):
                yield path


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target`, wholly or not at all."""
    with written_aside(target) as aside:
        aside.write_text(text, encoding="utf-8")


def write_text_where_named(target: Path, text: str) -> None:
    """Write `text` to a file that the user names."""
    with written_where_named(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON; numbers that JSON lacks (NaN, infinity) become null."""
    write_text(target, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Return `value` with mappings, sequences and NumPy numbers as what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
