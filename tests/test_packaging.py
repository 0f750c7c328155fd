"""pyproject.toml names each folder and each kind of file that has to be in the wheel."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_package_folder_is_listed() -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("adv_worldmodel", "agents")
        for path in (ROOT / package).rglob("*.py")
    }
    listed = set(SETUPTOOLS["packages"])
    assert folders <= listed
    assert listed - folders == {"agents.configs"}  # configs/, where there is no Python


def test_every_data_file_matches_a_listed_pattern() -> None:
    places = {
        "adv_worldmodel": ROOT / "adv_worldmodel",
        "adv_worldmodel.data.builtin": ROOT / "adv_worldmodel" / "data" / "builtin",
        "agents": ROOT / "agents",
        "agents.configs": ROOT / "configs",
    }
    for package, folder in places.items():
        patterns = SETUPTOOLS["package-data"][package]
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".py":
                assert any(path.match(pattern) for pattern in patterns), path
        assert any(folder.glob(patterns[0])), package


def test_the_oldest_versions_tested_are_the_oldest_admitted() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    stated = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if node.targets[0].id == "OLDEST"
    }
    admitted = [re.sub(r"\[.*\]", "", line) for line in PROJECT["project"]["dependencies"]]
    for pin in stated["OLDEST"]:
        assert pin.replace("==", ">=") in admitted
