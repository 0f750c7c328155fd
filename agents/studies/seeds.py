"""Several seeds of one experiment at the same time, each a run in a process of its own.

The processes share the GPU, or the cores (see `shared_out`). Each writes an ordinary run folder
`<out>/seed-<s>`, whose `config.yaml` reruns that seed alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.studies.planned_runs import add_planned
from agents.studies.processes import RunProcesses, shared_out
from agents.studies.run_groups import compared_settings
from agents.training.config import TrainConfig
from agents.training.preparation import prepare
from agents.training.results import seeds_table
from agents.training.run_folder import new_run_folder

__all__ = ["SeedRuns", "SeedsPlan", "prepare_seeds", "run_seeds"]


@dataclass(frozen=True)
class SeedsPlan:
    """What `run_seeds` does; all user input in it has been checked."""

    config: TrainConfig  #: as the user gave it
    seeds: range
    n_threads: int  #: torch's CPU threads of each process
    at_once: int  #: processes that run at the same time
    on_cuda: bool = False  #: whether they share an NVIDIA GPU

    def of_seed(self, seed: int, folder: Path) -> TrainConfig:
        """The configuration of one run inside `folder`."""
        out, n_threads = str(folder / f"seed-{seed}"), self.n_threads
        return dataclasses.replace(self.config, seed=seed, seeds=None, out=out, n_threads=n_threads)


@dataclass(frozen=True)
class SeedRuns:
    """What came of it."""

    results: dict[int, dict[str, Any]]  #: `result.json`; empty for a run that wrote none
    errors: dict[int, str]  #: why a run did not finish


def prepare_seeds(config: TrainConfig) -> SeedsPlan:
    """Read and check, once, all that `config` names; see `agents.training.preparation.prepare`."""
    n = config.seeds or 1
    prepared = prepare(dataclasses.replace(config, seeds=None))
    at_once, n_threads = shared_out(
        n, on_gpu=prepared.device.type != "cpu", n_threads=config.n_threads
    )
    seeds, on_cuda = range(config.seed, config.seed + n), prepared.device.type == "cuda"
    return SeedsPlan(config, seeds, n_threads, at_once, on_cuda)


def run_seeds(plan: SeedsPlan, *, progress: bool = True) -> SeedRuns:
    """Train the seeds of a checked plan at the same time.

    Prints, unless `progress` is False, what the runs do, a table at the end, and the folder. A
    script that calls this needs the guard `if __name__ == "__main__":`, as always where Python
    starts processes: each imports the script anew.

    :raises KeyboardInterrupt: passed on when all runs have ended and their files are written.
    """
    folder = new_run_folder(plan.config.out, plan.config.name, "seeds").path
    names = {seed: f"seed-{seed}" for seed in plan.seeds}
    configs = {name: plan.of_seed(seed, folder) for seed, name in names.items()}
    runs = RunProcesses(configs, plan.at_once, progress, on_cuda=plan.on_cuda)
    add_planned(folder, {name: compared_settings(c)["dataset"] for name, c in configs.items()})
    threads = f"{plan.n_threads} thread" + ("s" if plan.n_threads > 1 else "")
    runs.say(f"seeds        {plan.seeds[0]} to {plan.seeds[-1]}, {plan.at_once} at once,")
    runs.say(f"             each in a process of its own on {threads}")
    try:
        runs.run()
    finally:
        results, errors = runs.results(), runs.errors()
        found = SeedRuns(
            {seed: results[name] for seed, name in names.items()},
            {seed: errors[name] for seed, name in names.items() if name in errors},
        )
        for line in [*seeds_table(found.results, found.errors), str(folder)]:
            runs.say(line)
    return found
