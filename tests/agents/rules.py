"""Termination rules in modules of their own, as a configuration names them."""

from __future__ import annotations

from pathlib import Path

import pytest


def rule_that(does: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting of a rule that ends no episode.

    :param does: a statement that the rule runs in training; before, it is tried on two rows.
    :param name: of its module, which no other test imports.
    :param folder: where that is written, from now on on Python's path, other processes' too.
    """
    (folder / f"{name}.py").write_text(
        "import multiprocessing, os, torch\n"
        "def rule(obs, action, next_obs):\n"
        f"    if len(obs) > 2: {does}\n"
        "    return torch.zeros(len(obs), dtype=torch.bool)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return f"model.termination={name}:rule"
