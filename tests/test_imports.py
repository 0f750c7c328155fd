"""The packages' order: who may import whom, read off the source files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room imports from itself and from rooms before it.
ROOMS = [
    "building", "checks", "paths", "errors", "device", "graphs", "products", "adam", "seeding",
    "protocols", "saved_folder", "data", "dynamics", "envs",
]  # fmt: skip
# In agents, after the algorithm, which lies in no room.
AGENT_ROOMS = ["training", "studies", "commands", "cli"]
SB3 = ("stable_baselines3", "sb3_contrib")
SB3_FILE = "adv_worldmodel.envs.sb3"


@dataclass(frozen=True)
class Import:
    line: int
    target: str  # dotted, absolute
    for_types_only: bool


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """All imports in a file, those inside functions included."""

    def visit(node: ast.AST, for_types_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, for_types_only)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}", for_types_only)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, for_types_only)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, for_types_only)

    yield from visit(ast.parse(source), False)


def rank(module: str) -> int | None:
    """Place of an adv_worldmodel module in the order; None outside; the package itself is last."""
    package, _, inside = module.partition(".")
    if package != "adv_worldmodel":
        return None
    if inside == "__version__":  # a constant, which needs no room
        return 0
    room = inside.split(".")[0]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def agent_rank(module: str) -> int | None:
    """Place of an agents module; the algorithm and the package itself are first; None outside."""
    package, _, inside = module.partition(".")
    if package != "agents":
        return None
    room = {"__main__": "cli"}.get(inside.split(".")[0], inside.split(".")[0])
    return AGENT_ROOMS.index(room) + 1 if room in AGENT_ROOMS else 0


def arrows_against_the_order(source: str, module: str, is_package: bool = False) -> list[str]:
    wrong = []
    for found in imports_of(source, module, is_package):
        target_package = found.target.split(".")[0]
        own, other = rank(module), rank(found.target)
        where = f"{module}:{found.line} imports {found.target}"
        if own is not None and target_package == "agents":
            wrong.append(f"{where}: the world model knows no agents")
        if own is not None and other is not None and other > own:
            wrong.append(f"{where}: the order is {' <- '.join(ROOMS)}")
        user, used = agent_rank(module), agent_rank(found.target)
        if user is not None and used is not None and used > user:
            wrong.append(f"{where}: the order is algorithm <- {' <- '.join(AGENT_ROOMS)}")
        may_use_sb3 = module == SB3_FILE or found.for_types_only
        if own is not None and target_package in SB3 and not may_use_sb3:
            wrong.append(f"{where}: only {SB3_FILE} uses SB3")
        if target_package in ("tests", "examples"):
            wrong.append(f"{where}: not part of what is installed")
    return wrong


def source_files() -> Iterator[tuple[Path, str, bool]]:
    for package in ("adv_worldmodel", "agents"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield path, ".".join(parts[:-1] if is_package else parts), is_package


def test_no_import_goes_against_the_order() -> None:
    wrong: list[str] = []
    for path, module, is_package in source_files():
        wrong += arrows_against_the_order(path.read_text(encoding="utf-8"), module, is_package)
    assert wrong == []


def test_every_room_of_the_order_is_there() -> None:
    """A renamed room would otherwise go unchecked."""
    modules = {module for _, module, _ in source_files()}
    assert {f"adv_worldmodel.{room}" for room in ROOMS} <= modules
    assert {f"agents.{room}" for room in AGENT_ROOMS} <= modules
    assert SB3_FILE in modules


# That the checker catches what it is for.

VIOLATIONS = [
    ("adv_worldmodel.data.sources", "from adv_worldmodel.dynamics import fitting"),
    ("adv_worldmodel.data.sources", "from ..dynamics.fitting import fit_world_model"),
    ("adv_worldmodel.data.sources", "def f():\n    import adv_worldmodel.envs.vector"),
    ("adv_worldmodel.data.sources", "from adv_worldmodel import dynamics"),
    ("adv_worldmodel.data.sources", "from adv_worldmodel import make_sb3_env"),
    ("adv_worldmodel.dynamics.fitting", "from ..envs import vector"),
    ("adv_worldmodel.protocols", "from .dynamics import ensemble"),
    ("adv_worldmodel.envs.vector", "import agents"),
    ("adv_worldmodel.envs.vector", "from agents.rambo import RAMBO"),
    ("adv_worldmodel.envs.vector", "import stable_baselines3"),
    ("adv_worldmodel.data.sources", "def f():\n    from sb3_contrib import TQC"),
    (
        "adv_worldmodel.data.sources",
        "if TYPE_CHECKING:\n    import numpy\nelse:\n    import stable_baselines3.common",
    ),
    ("agents.cli", "from tests.helpers import x"),
    ("agents.rambo", "def f():\n    from agents.training.config import AgentConfig"),
    ("agents.training.plots", "from agents.studies import intervals"),
    ("agents.studies.sweep", "import agents.commands.terminal"),
    ("agents.commands.data", "from agents.cli import main"),
]
ALLOWED = [
    ("adv_worldmodel.envs.vector", "from ..dynamics.world_model import WorldModel"),
    ("adv_worldmodel.envs.single", "from .vector import AdvWorldModelVectorEnv"),
    ("adv_worldmodel.dynamics.fitting", "from adv_worldmodel.data.dataset import OfflineDataset"),
    ("adv_worldmodel.dynamics.fit_cache", "def f():\n    from adv_worldmodel import __version__"),
    ("adv_worldmodel.envs.sb3", "from stable_baselines3.common.vec_env import VecEnv"),
    (
        "adv_worldmodel.data.sources",
        "if TYPE_CHECKING:\n    from stable_baselines3.common.buffers import ReplayBuffer",
    ),
    ("agents.rambo", "import adv_worldmodel\nfrom stable_baselines3 import SAC"),
    ("agents.studies.sweep", "from agents.training.experiment import run"),
    ("agents.__main__", "from agents.cli import main"),
]


@pytest.mark.parametrize(("module", "source"), VIOLATIONS)
def test_the_checker_catches(module: str, source: str) -> None:
    assert len(arrows_against_the_order(source, module)) == 1


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_the_checker_allows(module: str, source: str) -> None:
    assert arrows_against_the_order(source, module) == []


def test_relative_imports_of_a_package_start_at_itself() -> None:
    found = list(imports_of("from .ensemble import Ensemble", "adv_worldmodel.dynamics", True))
    assert found == [Import(1, "adv_worldmodel.dynamics.ensemble.Ensemble", False)]
