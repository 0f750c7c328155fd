"""Configuration files: where they are, and how they are read and written.

Knows YAML and folders, but none of the settings: a file becomes a flat mapping of dotted keys
(``{"rollout.horizon": 5}``) that :mod:`agents.training.config` gives types to.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "config_names",
    "dump_yaml",
    "expanded",
    "find_config",
    "parse_value",
    "read_config",
    "split_override",
]

_SUFFIXES = (".yaml", ".yml")
DATA_SUFFIXES = (".npz", ".hdf5", ".h5")


class _Loader(yaml.SafeLoader):
    """Safe YAML (a tag that would build an object is an error) without silent duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` alone, which is an error then: a few lines of merges can fill the memory."""


def _refuse_tag(loader: _Loader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(
        None, None, f"{node.tag!r} is not read here: write plain values", node.start_mark
    )


_Loader.add_constructor(None, _refuse_tag)


class _Dumper(yaml.SafeDumper):
    """Safe YAML with tuples as ``[256, 256]``."""


# PyYAML follows YAML 1.1, in which 3e-4 is a text (a float needs a dot and a signed exponent),
# 1:3 is 63, to the base of 60, and 010 is 8: here a number is decimal, and those two are texts.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(0|[1-9][\d_]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^([-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
        r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN))$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in _NUMBERS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _rule in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _rule, list("-+.0123456789"))
    # The writer needs the same rules, to put quotes around a text that looks like a number.
    _Dumper.add_implicit_resolver(_tag, _rule, list("-+.0123456789"))
_Dumper.add_representer(
    tuple,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=True
    ),
)


def config_names() -> list[str]:
    """Names of the shipped configurations but ``base``, sorted.

    ``fast``, as ``base``, needs ``dataset=...``; those of AntMaze need ``data.env_id=...``.
    """
    return sorted(path.stem for path in _shipped_folder().glob("*.yaml") if path.stem != "base")


def expanded(path: str | Path) -> Path:
    """`path` with `~` and `~user` replaced by a home; as it stands where there is none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises RuntimeError


def absolute_source(dataset: str) -> str:
    """A data set that is a file, here or missing, by its absolute path, any other name as it is."""
    path = expanded(dataset)
    is_one = path.suffix in DATA_SUFFIXES or (path.suffix and path.is_file())
    return str(path.resolve()) if is_one else dataset


def find_config(path_or_name: str | Path) -> Path:
    """The file that a path or a shipped name stands for.

    :raises FileNotFoundError: there is none; the message lists near names.
    """
    path = expanded(path_or_name)
    shipped = _shipped_folder() / f"{path.stem if path.suffix in _SUFFIXES else path.name}.yaml"
    plain_name = len(path.parts) == 1
    if plain_name and path.suffix not in _SUFFIXES and shipped.is_file():
        return shipped
    if path.is_file() and path.suffix not in DATA_SUFFIXES:
        return path
    if plain_name and shipped.is_file():
        return shipped
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder; give a file, such as {path / 'config.yaml'}")
    if "=" in path.name or str(path_or_name).startswith("dataset="):
        raise FileNotFoundError(
            f"{path_or_name} is a setting: CONFIG comes first, such as fast or pendulum-random"
        )
    if path.suffix in DATA_SUFFIXES:
        raise FileNotFoundError(f"{path_or_name} is a data set: give fast dataset={path_or_name}")
    names = [*config_names(), "base"]
    near = difflib.get_close_matches(shipped.stem, names, n=3, cutoff=0.5)
    hint = f"near names: {', '.join(near)}" if near else f"shipped are: {', '.join(names)}"
    raise FileNotFoundError(
        f"no configuration {str(path_or_name)!r}, neither a file nor a shipped name; {hint}"
    )


def read_config(path: Path, is_setting: Callable[[str, str], bool]) -> dict[str, Any]:
    """A file's settings by dotted key, those of the files that it ``extends`` included.

    :param path: the file.
    :param is_setting: called with a dotted key and the file's name; True for a setting, False for a
        section; raises ValueError for an unknown key.
    :raises FileNotFoundError: an extended file does not exist.
    :raises ValueError: not YAML, not a mapping, a key twice, a tag, a circle of ``extends``.
    """
    return _read(path, is_setting, ())


def _read(
    path: Path, is_setting: Callable[[str, str], bool], readers: tuple[Path, ...]
) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ValueError(f"{path}: extends itself, by way of {readers[-1].name}")
    content = _load_yaml(path)
    base = content.pop("extends", None)
    values: dict[str, Any] = {}
    if base is not None:
        if not isinstance(base, str):
            raise ValueError(
                f"{path}: extends = {reprlib.repr(base)}: expected the name of one file"
            )
        beside = path.parent / base
        base_path = beside if beside.is_file() else find_config(base)
        values = _read(base_path, is_setting, (*readers, path.resolve()))
    own: dict[str, Any] = {}
    for key, value in content.items():
        if is_setting(str(key), str(path)):
            _put(own, str(key), value, path)
            continue
        if value is not None and not isinstance(value, dict):
            raise ValueError(
                f"{path}: {key} = {reprlib.repr(value)}: expected a section, with keys below it"
            )
        for sub_key, sub_value in (value or {}).items():
            dotted = f"{key}.{sub_key}"
            is_setting(dotted, str(path))
            _put(own, dotted, sub_value, path)
    dataset = own.get("dataset")
    if isinstance(dataset, str) and (path.parent / dataset).is_file():
        own["dataset"] = str(path.parent / dataset)  # as what it extends
    return values | own


def _put(values: dict[str, Any], key: str, value: Any, path: Path) -> None:
    """Add a setting of the file `path`; ValueError if it has it already, written another way."""
    if key in values:
        section, _, sub_key = key.rpartition(".")
        raise ValueError(
            f"{path}: the key {key!r} stands twice, once as {sub_key} below {section}: leave one "
            "out"
        )
    values[key] = value


def _load_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {_one_line(error)}") from None
    except Exception as error:  # PyYAML's constructors raise whatever they meet: !!int ""
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise ValueError(f"{path}: cannot be read as a text file of YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected lines of 'key: value', found {type(content).__name__}")
    return content


def split_override(override: str) -> tuple[str, str]:
    """Key and value's text of ``key.sub=value``; ValueError where there is no ``=``."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r}: expected key=value")
    return key.strip(), text


def parse_value(text: str, where: str, *, text_only: bool) -> Any:
    """An override's value, read as YAML.

    :param text: what stands behind the ``=``.
    :param where: beginning of the error message.
    :param text_only: the setting is a text: anything but null and a quoted text is taken as it
        stands, so that ``out=2024`` is a folder's name.
    :raises ValueError: not YAML.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except Exception as error:  # as in a file
        if text_only:
            return text
        raise ValueError(f"{where}: {_one_line(error)}") from None
    if text_only and value is not None and not text.strip().startswith(("'", '"')):
        return text
    return value


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of nested settings, in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _shipped_folder() -> Path:
    """The shipped files: inside the package `agents` when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _one_line(error: Exception) -> str:
    """What a YAML error says and where, without its excerpt of the file."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{where}{error.problem or error.context}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
