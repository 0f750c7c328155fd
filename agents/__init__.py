"""RAMBO, COMBO, and the callback that makes any SB3 algorithm adversarial in a world model.

The modules, from the algorithm outwards (in docstrings P is the paper, as in `adv_worldmodel`):

* algorithm: `rambo`, `combo`, `agent_step`, `updates`, `explicit_updates`, `policies`, `actions`,
  `buffers`, `cloning`, `values`, `callbacks`, `weights`;
* one run: `config`, `config_files`, `settings`, `preparation`, `assembly`, `experiment`,
  `checkpoints`, `resumption`, `run_folder`, `atomic_files`, `signals`, `progress`, `divergence`,
  `evaluation`, `real_env`, `results`, `model_check`, `rendering`;
* many runs: `seeds`, `sweep`, `planned_runs`, `processes`, `run_groups`, `aggregate`,
  `intervals`, `selection`, `plots`, `provenance`;
* command line: `cli`, `experiment_commands`, `data_commands`, `collection`, `terminal`.
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
