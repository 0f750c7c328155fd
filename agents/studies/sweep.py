"""Every combination of some settings, on several seeds: what is finished is not done again."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from agents.studies.aggregate import aggregate, markdown
from agents.studies.earlier_runs import find_earlier
from agents.studies.planned_runs import add_planned
from agents.studies.processes import RunProcesses, folder_of, shared_out
from agents.studies.run_groups import (
    BESIDE,
    compared_settings,
    find_readable_runs,
    group_runs,
    setting_text,
)
from agents.training.config import MOST_SEEDS, AdversaryConfig, TrainConfig, load_config
from agents.training.config_files import split_override
from agents.training.run_folder import check_new_folder, holds_run, lock_folder

__all__ = ["PRESETS", "SweepPlan", "parse_seeds", "plan_sweep", "run_sweep", "split_values"]

#: Bytes of the name of a variant's folder; file systems take 255.
LONGEST_NAME = 200
#: Settings that go together. ``paper``: the three that the paper tries everywhere (P B.5, table 5);
#: the others change one thing each in the configuration as it is.
PRESETS: dict[str, list[tuple[str, ...]]] = {
    "paper": [
        ("rollout.horizon=2", "adversary.weight=3e-4"),
        ("rollout.horizon=5", "adversary.weight=3e-4"),
        ("rollout.horizon=5", "adversary.weight=0"),
    ],
    "ablations": [
        (),
        ("adversary.weight=0", "adversary.continue_fit=false"),
        ("adversary.weight=0", "adversary.continue_fit=true"),
        ("adversary.weight=3e-3",),
        ("adversary.weight=3e-2",),
        ("adversary.weight=auto",),
        ("adversary.score=mixture",),
        ("adversary.score=member",),
        ("adversary.score=pathwise",),
        ("cloning.epochs=0",),
    ],
    "warm-start": [
        (),
        ("agent.critic_warmup=10",),
        ("agent.ent_coef=auto_0.05",),
        ("agent.layer_norm=true",),
        ("agent.n_critics=4",),
        ("agent.entropy_in_target=false",),
        ("agent.fresh_outcomes=true",),
        ("agent.cloning_weight=0.02",),
    ],
}


@dataclass(frozen=True)
class SweepPlan:
    """What `run_sweep` does; nothing in it depends on the user's input being right any more.

    No other plan of the same folder can be made until this one has run or is gone.
    """

    folder: Path
    configs: dict[str, TrainConfig]  #: of all runs, by the run folder below `folder`
    finished: frozenset[str]  #: those of them that are done
    begun: frozenset[str]  #: those that go on from a checkpoint
    #: of the preset, what trains as another one does, without an adversary to set: by its name
    left_out: dict[str, str]
    at_once: int
    on_cuda: bool  #: whether they share an NVIDIA GPU
    lock: IO[str] = field(repr=False, compare=False)


def plan_sweep(
    config: str | Path,
    overrides: Iterable[str] = (),
    *,
    grid: Iterable[str] = (),
    preset: str | None = None,
    seeds: str | None = None,
    jobs: int | None = None,
) -> SweepPlan:
    """Read and check all settings, and find the runs that are finished.

    :param config: path or shipped name, as for `load_config`.
    :param overrides: `key=value` for all runs; `out` is the sweep's folder, by default
        `runs/sweep-<name>`, always the same so that a second call finds the first one's runs.
    :param grid: `key=v1,v2`, all of which are combined.
    :param preset: a key of `PRESETS`, combined with the grid.
    :param seeds: "A:B" for A to B - 1, or numbers and such ranges with commas; default: the
        configuration's.
    :param jobs: runs at the same time; default: as many as there are cores, on a GPU at most 5.
    :raises FileNotFoundError, ValueError: a wrong setting in any combination, an occupied folder,
        runs of other data in it, or another sweep at work in it. Data sets are read by the runs:
        one that is missing fails its own runs only.
    """
    overrides = list(overrides)
    named = [key for word in overrides if (key := split_override(word)[0]) in ("seed", "seeds")]
    if seeds is not None and named:
        raise ValueError(f"{named[0]}= and --seeds both say which seeds: give one of them")
    variants, left_out = _variants(config, overrides, list(grid), PRESETS[preset] if preset else [])
    base = load_config(config, overrides, dataset="in the grid")  # each variant names its own
    folder = Path(base.out or f"runs/sweep-{base.name}")
    given = list(range(base.seed, base.seed + (base.seeds or 1)))
    numbers = given if seeds is None else parse_seeds(seeds)
    on_cuda = base.device != "cpu" and torch.cuda.is_available()
    at_once, n_threads = shared_out(
        len(variants) * len(numbers),
        on_gpu=on_cuda,
        jobs=jobs,
        n_threads=base.n_threads,
    )
    # Seeds inside: the next variant then finds the fits of these seeds in the cache.
    configs = {
        name: dataclasses.replace(variant, seed=seed, out=str(folder / name), n_threads=n_threads)
        for of_seeds, variant in variants.items()
        for seed in numbers
        for name in (f"{of_seeds}/seed-{seed}",)
    }
    lock = _lock(folder)
    try:
        finished, begun = find_earlier(folder, configs)
    except BaseException:
        lock.close()  # a traceback that is kept would keep the lock
        raise
    return SweepPlan(folder, configs, finished, begun, left_out, at_once, on_cuda, lock)


def _variants(
    config: str | Path,
    overrides: Sequence[str],
    grid: Sequence[str],
    together: Sequence[tuple[str, ...]],
) -> tuple[dict[str, TrainConfig], dict[str, str]]:
    """The configurations of a grid and a preset by the name of their folder.

    :param together: the preset's settings that go together; none for no preset.
    :return: the configurations, and `SweepPlan.left_out`.
    :raises ValueError: a key that cannot vary, or a value that stands twice.
    """
    axes, together = [_axis(word) for word in grid], together or [()]
    keys = [key for axis in [*axes, together] for key in _keys(axis)]
    _check_keys(keys)
    variants: dict[str, TrainConfig] = {}
    left_out: dict[str, str] = {}
    for of_grid in itertools.product(*axes):
        own: dict[str, TrainConfig] = {}
        for settings in together:
            words = [*overrides, "seeds=null", *itertools.chain(*of_grid), *settings]
            variant = load_config(config, words)
            name = _folder_name(variant, keys)
            # one name: the configuration has a value of the preset already
            twin = next((n for n, v in own.items() if _as_trained(v) == _as_trained(variant)), name)
            if twin == name:
                own.setdefault(name, variant)
            else:
                left_out[name] = twin
        if twice := own.keys() & variants.keys():
            raise ValueError(
                f"two runs would share the folder {min(twice)}: a value stands twice, or names of "
                "data sets differ only in signs that no folder has (then sweep them one by one)"
            )
        variants |= own
    return variants, left_out


def _as_trained(config: TrainConfig) -> TrainConfig:
    """The configuration without the estimator of the adversary's gradient where it has none."""
    if config.adversary.weight != 0:
        return config
    adversary = dataclasses.replace(config.adversary, score=AdversaryConfig.score)
    return dataclasses.replace(config, adversary=adversary)


def run_sweep(plan: SweepPlan, *, progress: bool = True) -> dict[str, str]:
    """Do the runs of a plan that are not finished; return why runs did not finish, by name.

    Prints, unless `progress` is False, what the runs do, the table of `adv-worldmodel results` for
    them all, and the folder. A script that calls this needs the guard
    `if __name__ == "__main__":`: each process imports the script anew.
    """
    waiting = {name: c for name, c in plan.configs.items() if name not in plan.finished}
    runs = RunProcesses(waiting, plan.at_once, progress, on_cuda=plan.on_cuda)
    threads = next(iter(plan.configs.values())).n_threads
    runs.say(
        f"sweep        {len(plan.configs)} runs, {len(plan.finished)} of them finished before;"
    )
    runs.say(f"             {plan.at_once} at once, n_threads={threads}")
    for name, twin in plan.left_out.items():
        runs.say(f"left out     {name}: trains as {twin}, the adversary's weight being 0")
    add_planned(plan.folder, {n: compared_settings(c)["dataset"] for n, c in plan.configs.items()})
    for name, config in waiting.items():  # what an earlier call left before a checkpoint
        if name not in plan.begun:
            shutil.rmtree(folder_of(config).path, ignore_errors=True)
    try:
        runs.run()
    finally:
        plan.lock.close()
        folders = [folder_of(config) for config in plan.configs.values()]
        written = [folder.path for folder in folders if folder.result.is_file()]
        if written and progress:
            found, damaged = find_readable_runs(written)
            groups = group_runs(found)
            runs.say(markdown(aggregate(groups), groups, damaged=damaged).rstrip())
        runs.say(str(plan.folder))
    return runs.errors()


def parse_seeds(text: str) -> list[int]:
    """Seeds of "0:5" (0 to 4), "3" or "0,3,7:9", in their order, each once.

    :raises ValueError: anything else, or no seed.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"--seeds {text}: expected A:B such as 0:5, or numbers such as 0,3,7")
        first = int(match[1])
        found = range(first, first + 1 if match[2] is None else int(match[2]))
        if found.stop - found.start > MOST_SEEDS:  # of which len() need not know
            raise ValueError(f"--seeds {text}: expected at most {MOST_SEEDS} seeds")
        seeds |= dict.fromkeys(found)
    if not seeds:
        raise ValueError(f"--seeds {text}: holds no seed; A:B is A to B - 1")
    return list(seeds)


def split_values(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes: "[1,2],[3]" has two values."""
    # An escape-free subset of YAML's flow style, which is all that settings need.
    parts = re.findall(r"\[[^\]]*\]|'[^']*'|\"[^\"]*\"|,|[^,\['\"]+|.", text)
    values = [""]
    for part in parts:
        if part == ",":
            values.append("")
        else:
            values[-1] += part
    return values


def _axis(word: str) -> list[tuple[str, ...]]:
    """One tuple of overrides for each value of `key=v1,v2`."""
    key, text = split_override(word)
    values = split_values(text)
    if not all(value.strip() for value in values):
        raise ValueError(f"--grid {word}: a value is missing between commas")
    return [(f"{key}={value.strip()}",) for value in values]


def _keys(axis: Iterable[tuple[str, ...]]) -> list[str]:
    """The settings that an axis changes."""
    return sorted({split_override(word)[0] for settings in axis for word in settings})


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if key in BESIDE:
            what = "give --seeds" if key in ("seed", "seeds") else f"give {key}=VALUE before --grid"
            raise ValueError(f"--grid {key}: does not change what is trained; {what}")
        if keys.count(key) > 1:
            raise ValueError(f"--grid {key}: stands twice, in the grid or in the preset")


def _folder_name(config: TrainConfig, keys: Sequence[str]) -> str:
    """The settings at `keys`, in the configuration's order, as the name of a folder."""
    settings = compared_settings(config) | {"dataset": config.dataset}
    values = {key: value for key, value in settings.items() if key in keys}
    parts = [
        f"{key}={'x'.join(map(str, v)) if isinstance(v, tuple) else setting_text(v)}"
        for key, v in values.items()
    ]
    name = re.sub(r"[^\w.=,+-]+", "-", ",".join(parts)) or config.name
    if len(encoded := name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"


def _lock(folder: Path) -> IO[str]:
    """Let no other sweep write into `folder`, which is made, as long as the file is open."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give out=FOLDER")
    if not folder.exists():
        check_new_folder(str(folder))
        folder.mkdir(parents=True)
    if holds_run(folder):
        raise ValueError(f"{folder} holds a run of its own: give another out=FOLDER")
    return lock_folder(folder, "another sweep", "give another out=FOLDER")
