"""RAMBO, COMBO, and the callback that makes any SB3 algorithm adversarial in a world model.

From the inside out; each room may import from those before it (P is the paper, as in
`adv_worldmodel`):

* the algorithm, in this folder: `rambo`, `combo`, `agent_settings`, `agent_step`, `updates`,
  `explicit_updates`, `explicit_networks`, `policies`, `actions`, `rollouts`, `buffers`, `cloning`,
  `values`, `callbacks`, `weights`, `model_check`, `printed`;
* `training`: one run, from its settings to what its folder holds;
* `studies`: many runs, trained, gathered, compared and chosen from;
* `commands` and `cli`: the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.callbacks import RamboCallback
    from agents.combo import COMBO
    from agents.rambo import RAMBO

__all__ = ["COMBO", "RAMBO", "RamboCallback"]


#: Where they are: torch and SB3 take seconds to import, and `adv-worldmodel --help` needs neither.
_MODULES = {
    "COMBO": "agents.combo",
    "RAMBO": "agents.rambo",
    "RamboCallback": "agents.callbacks",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
