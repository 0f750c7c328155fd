"""RAMBO, COMBO, and the callback that makes any SB3 algorithm adversarial in a world model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.callbacks import RamboCallback
    from agents.combo import COMBO
    from agents.rambo import RAMBO

__all__ = ["COMBO", "RAMBO", "RamboCallback"]


def __getattr__(name: str) -> Any:
    # torch and SB3 take seconds to import: the command line's --help does without them
    if name == "COMBO":
        from agents.combo import COMBO

        return COMBO
    if name == "RAMBO":
        from agents.rambo import RAMBO

        return RAMBO
    if name == "RamboCallback":
        from agents.callbacks import RamboCallback

        return RamboCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
