"""World models and policies as folders of safetensors and JSON; loading one runs no code.

The JSON says how to rebuild the object and holds a SHA-256 of all that both files say.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from adv_worldmodel.paths import expanded

#: Check of one JSON value, and what it expects, for messages.
Kind = tuple[Callable[[Any], bool], str]


def is_size(value: Any) -> bool:
    """Whether a JSON value is a whole number from 1."""
    return type(value) is int and value >= 1


def are_sizes(value: Any) -> bool:
    """Whether a JSON value is a list of them."""
    return isinstance(value, list) and all(map(is_size, value))


SIZE: Kind = (is_size, "a whole number from 1")
SIZES: Kind = (are_sizes, "a list of whole numbers from 1")
FLAG: Kind = (lambda value: isinstance(value, bool), "true or false")
OBJECT: Kind = (lambda value: isinstance(value, dict), "an object")


@dataclass(frozen=True)
class SavedFormat:
    """One kind of folder: its files, the keys of its JSON, and what messages say of it.

    :param what: "world model" or "policy".
    :param name: the JSON's `format`.
    :param version: its `format_version`.
    :param weights_file: with `description_file`, names of the two files.
    :param description_file: see `weights_file`.
    :param keys: of the JSON beside `format`, `format_version` and `sha256`.
    :param writer: the method that writes the folder.
    :param remedy: what helps where one is damaged.
    :param absent: values of keys that folders written before these keys were do not have.
    """

    what: str
    name: str
    version: int
    weights_file: str
    description_file: str
    keys: Mapping[str, Kind]
    writer: str
    remedy: str
    absent: Mapping[str, Any] = field(default_factory=dict)

    def write(
        self, folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        """Write both files into `folder` (made if absent); `description` has just `keys`."""
        header = {"format": self.name, "format_version": self.version}
        # As it will be read: tuples are lists, keys are texts.
        content = json.loads(json.dumps({**header, **description}))
        weights = save_tensors(
            {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in tensors.items()
            }
        )
        content["sha256"] = checksum(content, weights)
        folder = expanded(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.weights_file).write_bytes(weights)
        text = json.dumps(content, indent=2) + "\n"
        (folder / self.description_file).write_text(text, encoding="utf-8")

    def read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The JSON, with just `keys` and values of their kinds, and the tensors.

        :raises FileNotFoundError: a file is missing.
        :raises ValueError: a file is damaged, or of a newer version.
        """
        folder = expanded(folder)
        for name in (self.weights_file, self.description_file):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no {self.what}: {name} is missing; give the folder that "
                    f"{self.writer} wrote"
                )
        description = self._description(folder)
        weights = (folder / self.weights_file).read_bytes()
        stated = description.pop("sha256")
        if checksum(description, weights) != stated:
            raise self.damaged(
                folder,
                f"its {self.weights_file} and {self.description_file} do not have the SHA-256 that "
                "was written with them",
                "copy the folder again, or ",
            )
        try:
            return {**self.absent, **description}, load_tensors(weights)
        except (SafetensorError, ValueError) as error:
            raise self.damaged(
                folder, f"{self.weights_file} is no safetensors file: {error}"
            ) from error

    def damaged(self, folder: Path, why: str, remedy: str = "") -> ValueError:
        """The error that says that `folder` is damaged."""
        why = " ".join(why.split())
        return ValueError(f"{folder} is damaged ({why}): {remedy}{self.remedy}")

    def _description(self, folder: Path) -> dict[str, Any]:
        file = self.description_file
        try:
            found = json.loads((folder / file).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self.damaged(folder, f"{file} is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise self.damaged(folder, f"{file} holds a {kind}, expected an object")
        version = found.get("format_version")
        if isinstance(version, int) and version > self.version:
            raise ValueError(
                f"{folder / file} has format version {reprlib.repr(version)}, this library reads "
                f"up to {self.version}: install a newer adv-worldmodel"
            )
        kinds: dict[str, Kind] = {
            "format": (lambda value: value == self.name, repr(self.name)),
            "format_version": SIZE,
            **self.keys,
            "sha256": (lambda value: isinstance(value, str), "a text"),
        }
        for key in found:
            if key not in kinds:
                shown = f"{file} has the unknown key {reprlib.repr(key)}"
                raise self.damaged(folder, f"{shown}, expected {', '.join(kinds)}")
        for key, (fits, expected) in kinds.items():
            if key not in found:
                if key in self.absent:
                    continue
                raise self.damaged(folder, f"{file} has no key {key!r}")
            if not fits(found[key]):
                shown = f"{file}: {key} is {reprlib.repr(found[key])}"
                raise self.damaged(folder, f"{shown}, expected {expected}")
        return found


def checksum(description: Mapping[str, Any], weights: bytes) -> str:
    """SHA-256 (hex) of all that the two files say."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\n" + weights).hexdigest()
