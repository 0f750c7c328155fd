"""The one configuration system: frozen dataclasses, onto which the YAML files map one to one.

``load_config("hopper-medium", ["seed=1", "rollout.horizon=2"])`` gives a checked
:class:`TrainConfig`; the defaults of the dataclasses are the paper's (P Table 4), and
``configs/base.yaml`` spells them out. What a setting means stands beside its field here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from agents.training.config_files import (
    config_names,
    dump_yaml,
    expanded,
    find_config,
    parse_value,
    read_config,
    split_override,
)
from agents.training.settings import Pattern, Section, Setting, sections, settings, takes_text_only

__all__ = [
    "AdversaryConfig",
    "AgentConfig",
    "CloningConfig",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "RolloutConfig",
    "TrainConfig",
    "config_names",
    "dump_config",
    "flat_settings",
    "load_config",
    "meanings",
]

#: Runs that one command may ask for; a date is a slip.
MOST_SEEDS = 10_000

_NAME = Pattern(r"\s*[^\s\0][^\0\n]*", "a name, not an empty text or one with a zero byte")
_FOLDER_NAME = Pattern(r"\w[\w.-]*", "letters, digits, '.', '-' and '_', for the run folder's name")
_DEVICE = Pattern(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", "auto, cpu, cuda, cuda:N, mps or xpu")
_TERMINATION = Pattern(
    r"[\w-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*",
    "auto, never, an environment's name such as hopper, or module:function",
)
_ENT_COEF = Pattern(
    r"auto(_(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)?",
    "auto, auto_X with a start value X such as auto_0.1, or a number >= 0",
)
_WEIGHT = Pattern("auto", "auto or a number >= 0")
_TARGET_ENTROPY = Pattern("auto", "auto (minus the action's size) or a number")


@dataclass(frozen=True)
class DataConfig(Section):
    """The data set's reading."""

    section: ClassVar[str] = "data"
    reward_offset: Annotated[float, Setting("added to each reward (AntMaze: -1)")] = 0.0
    env_id: Annotated[
        str | None, Setting("Gymnasium id behind the data; null: what the data say", pattern=_NAME)
    ] = None


@dataclass(frozen=True)
class ModelConfig(Section):
    """The ensemble and its maximum-likelihood fit (P 5.2, Table 4)."""

    section: ClassVar[str] = "model"
    n_networks: Annotated[int, Setting("networks fitted (P Table 4)", at_least=1)] = 7
    n_elites: Annotated[int, Setting("networks kept, best on holdout (P Table 4)", at_least=1)] = 5
    hidden_sizes: Annotated[
        tuple[int, ...], Setting("units per hidden layer (P Table 4)", at_least=1)
    ] = (200, 200, 200, 200)
    termination: Annotated[
        str,
        Setting(
            "auto: from the real environment; never; a name; module:function", pattern=_TERMINATION
        ),
    ] = "auto"
    fit_learning_rate: Annotated[float, Setting("Adam's (P Table 4)", above=0)] = 3e-4
    fit_beta: Annotated[
        float,
        Setting(
            "of the fit's beta-NLL: 0 the likelihood (P); 0.5 learns jumps better",
            at_least=0,
            at_most=1,
        ),
    ] = 0.0
    fit_batch_size: Annotated[int, Setting("rows per network and step (P Table 4)", at_least=1)] = (
        256
    )
    holdout: Annotated[
        int, Setting("transitions held out of the fit, a tenth at most", at_least=1)
    ] = 1000
    patience: Annotated[int, Setting("epochs without improvement to stop", at_least=1)] = 10
    max_steps: Annotated[
        int | None, Setting("gradient steps of the fit at most; null: no limit", at_least=1)
    ] = None
    cache: Annotated[bool, Setting("keep the fit and use it again for equal data, settings")] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_elites > self.n_networks:
            raise ValueError(
                f"model.n_elites = {self.n_elites}: must be at most model.n_networks "
                f"= {self.n_networks}"
            )


@dataclass(frozen=True)
class RolloutConfig(Section):
    """The synthetic data of one iteration (P Algorithm 1)."""

    section: ClassVar[str] = "rollout"
    starts: Annotated[int, Setting("data-set states to roll out from", at_least=1)] = 50_000
    horizon: Annotated[int, Setting("k, steps of a rollout (P Table 5)", at_least=1)] = 5
    policy: Annotated[
        Literal["current", "random"],
        Setting("current: the agent acts; random: uniform (P Table 5)"),
    ] = "current"
    retain_iterations: Annotated[int, Setting("iterations the buffer holds", at_least=1)] = 5
    member_per: Annotated[
        Literal["step", "rollout"],
        Setting("when the elite is drawn anew (step: authors' code; rollout: P)"),
    ] = "step"


@dataclass(frozen=True)
class AgentConfig(Section):
    """Soft actor-critic (P Table 4)."""

    section: ClassVar[str] = "agent"
    updates: Annotated[int, Setting("gradient updates per iteration (P Table 4)", at_least=1)] = (
        1000
    )
    batch_size: Annotated[int, Setting("rows per update, real and synthetic", at_least=1)] = 256
    gamma: Annotated[float, Setting("discount per step", at_least=0, at_most=1)] = 0.99
    tau: Annotated[float, Setting("target critics' step", above=0, at_most=1)] = 0.005
    critic_learning_rate: Annotated[float, Setting("Adam's (P Table 4)", above=0)] = 3e-4
    actor_learning_rate: Annotated[float, Setting("Adam's (P Table 4)", above=0)] = 1e-4
    entropy_learning_rate: Annotated[float, Setting("of the coefficient alpha", above=0)] = 1e-4
    real_ratio: Annotated[
        float, Setting("f, share of real rows in a batch (P Table 4)", at_least=0, at_most=1)
    ] = 0.5
    hidden_sizes: Annotated[
        tuple[int, ...], Setting("units per hidden layer, actor and critics", at_least=1)
    ] = (256, 256)
    n_critics: Annotated[int, Setting("Q networks; the minimum is used", at_least=1)] = 2
    layer_norm: Annotated[bool, Setting("layer normalisation in the critics")] = False
    ent_coef: Annotated[
        str | float,
        Setting(
            "alpha: learned (auto), learned from X (auto_X), fixed", at_least=0, pattern=_ENT_COEF
        ),
    ] = "auto"
    critic_warmup: Annotated[
        int,
        Setting(
            "first iterations, in which only the critics learn (tau 0.05 at least)", at_least=0
        ),
    ] = 0
    entropy_in_target: Annotated[
        bool, Setting("the critics learn the soft value; false: the plain one")
    ] = True
    fresh_outcomes: Annotated[
        bool, Setting("drawn model rows get r, s' and termination of the present model")
    ] = False
    cloning_weight: Annotated[
        float,
        Setting(
            "of the data actions' NLL in the actor's loss, in units of mean |Q|; above 0 a learned "
            "alpha rises no further than its start",
            at_least=0,
        ),
    ] = 0.0
    greedy_step: Annotated[
        float,
        Setting(
            "longest step of the deployed action from the mean along Q's gradient, root mean "
            "square in half action ranges; training does not know of it",
            at_least=0,
        ),
    ] = 0.0
    target_entropy: Annotated[
        str | float, Setting("nats; auto: minus the action's size", pattern=_TARGET_ENTROPY)
    ] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cloning_weight > 0.0 and round(self.real_ratio * self.batch_size) < 1:
            raise ValueError(
                f"agent.cloning_weight = {self.cloning_weight}: needs rows of data, of which "
                f"agent.real_ratio = {self.real_ratio} puts none into a batch of {self.batch_size}"
            )
        if isinstance(self.ent_coef, str) and not 0.0 < self.first_alpha < math.inf:
            raise ValueError(
                f"agent.ent_coef = {self.ent_coef!r}: expected a start value above 0; without "
                "entropy, agent.ent_coef=0"
            )

    @property
    def first_alpha(self) -> float:
        """The entropy coefficient before the first update: SB3's reading of `ent_coef`."""
        if isinstance(self.ent_coef, str):
            return float(self.ent_coef.removeprefix("auto").removeprefix("_") or 1.0)
        return float(self.ent_coef)


@dataclass(frozen=True)
class CloningConfig(Section):
    """Behaviour cloning before the first iteration (P C.4)."""

    section: ClassVar[str] = "cloning"
    epochs: Annotated[int, Setting("passes over the data; 0: no cloning", at_least=0)] = 50
    learning_rate: Annotated[float, Setting("Adam's, an optimiser of its own", above=0)] = 1e-4


@dataclass(frozen=True)
class AdversaryConfig(Section):
    """The adversarial model updates (P eq. 9)."""

    section: ClassVar[str] = "adversary"
    weight: Annotated[
        str | float,
        Setting(
            "lambda (P eq. 9, Table 5); auto: by the constraint xi", at_least=0, pattern=_WEIGHT
        ),
    ] = 3e-4
    xi: Annotated[
        float, Setting("nats per transition that the data may lose (weight auto)", above=0)
    ] = 0.1
    max_weight: Annotated[float, Setting("what weight auto may rise to", above=0)] = 0.1
    updates: Annotated[int, Setting("model updates per iteration (P Table 4)", at_least=0)] = 1000
    score: Annotated[
        Literal["mixture", "member", "pathwise"],
        Setting("gradient estimator: the ensemble's score (P), the drawn member's, pathwise"),
    ] = "mixture"
    batch_size: Annotated[int, Setting("real rows, and as many model rows", at_least=2)] = 256
    learning_rate: Annotated[float, Setting("Adam's (P Table 4)", above=0)] = 3e-4
    continue_fit: Annotated[
        bool, Setting("with weight 0: go on fitting the data; false leaves the model as it is")
    ] = False


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Evaluation in the real environment, deterministic policy (P B.6)."""

    section: ClassVar[str] = "evaluation"
    every: Annotated[int, Setting("iterations from one evaluation to the next", at_least=1)] = 10
    each_of_last: Annotated[
        int, Setting("of so many last iterations each is evaluated, beside `every`", at_least=1)
    ] = 10
    episodes: Annotated[
        int, Setting("episodes per evaluation; 0: none, and no simulator", at_least=0)
    ] = 10
    last: Annotated[int, Setting("evaluations averaged for the result", at_least=1)] = 10
    env_id: Annotated[
        str | None, Setting("Gymnasium id, module:ID works; null: the data set's", pattern=_NAME)
    ] = None


@dataclass(frozen=True)
class TrainConfig(Section):
    """All that a training run depends on; ``dataset`` has no default.

    :raises ValueError: a value of the wrong type or out of range; the message names its key.
    """

    dataset: Annotated[
        str, Setting("built-in name, d4rl:NAME, Minari id, or file (.hdf5, .npz)", pattern=_NAME)
    ]
    name: Annotated[str, Setting("first part of the run folder's name", pattern=_FOLDER_NAME)] = (
        "train"
    )
    seed: Annotated[int, Setting("of every random draw", at_least=0, at_most=2**32 - 1)] = 0
    seeds: Annotated[
        int | None,
        Setting(
            "runs at once, seeds SEED, SEED + 1, ...; null: one run",
            at_least=1,
            at_most=MOST_SEEDS,
        ),
    ] = None
    iterations: Annotated[int, Setting("rollouts + updates (P Table 4)", at_least=1)] = 2000
    checkpoint_every: Annotated[
        int, Setting("iterations from one checkpoint to the next", at_least=1)
    ] = 10
    on_divergence: Annotated[
        Literal["stop", "continue"], Setting("what a run does whose values ran away")
    ] = "stop"
    out: Annotated[
        str | None, Setting("run folder; null: runs/NAME-SEED-DATE-TIME", pattern=_NAME)
    ] = None
    device: Annotated[str, Setting("torch device; auto: CUDA if there is one", pattern=_DEVICE)] = (
        "auto"
    )
    n_threads: Annotated[
        int | None,
        Setting("torch's CPU threads; null: torch's choice", at_least=1, at_most=1024),
    ] = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    cloning: CloningConfig = field(default_factory=CloningConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if isinstance(self.seeds, str) and ":" in self.seeds:
            raise ValueError(
                f"seeds = {self.seeds!r}: expected a whole number or null; a range is for the "
                "option of 'adv-worldmodel sweep', --seeds A:B"
            )
        super().__post_init__()
        if self.out is not None and self.out.startswith("~"):
            object.__setattr__(self, "out", str(expanded(self.out)))
        if self.seed + (self.seeds or 1) > 2**32:
            raise ValueError(
                f"seeds = {self.seeds}: from seed = {self.seed} on, seeds would pass {2**32 - 1}"
            )


def load_config(
    path_or_name: str | Path, overrides: Iterable[str] = (), *, dataset: str | None = None
) -> TrainConfig:
    """Read a configuration by path or shipped name, and apply ``key.sub=value`` overrides.

    :param path_or_name: a YAML file, or one of :func:`config_names`. A file may name another one
        that it ``extends``; settings in neither keep their defaults.
    :param overrides: applied in order, later ones win; values are read as YAML.
    :param dataset: taken where none is named.
    :raises FileNotFoundError: no such file or name (the message lists near names).
    :raises ValueError: broken YAML, an unknown key (the message names the nearest known one), a
        value of the wrong type or out of range.
    """
    path = find_config(path_or_name)
    known = {key: takes_text_only(hint) for key, hint, _ in _leaves()}
    values = read_config(path, lambda key, where: _is_setting(key, where, known))
    values.setdefault("name", re.sub(r"[^\w.-]+", "-", path.stem).lstrip("-.") or "train")
    for override in overrides:
        key, text = split_override(override)
        if not _is_setting(key, f"override {override!r}", known):
            raise ValueError(f"override {override!r}: {key} is a section; set one of its keys")
        values[key] = parse_value(text, f"override {override!r}", text_only=known[key])
    if dataset is not None:
        values.setdefault("dataset", dataset)
    if "dataset" not in values:
        raise ValueError(f"{path}: no dataset; give one: dataset=NAME_OR_FILE")
    return _build(values)


def dump_config(config: TrainConfig) -> str:
    """YAML text that :func:`load_config` reads back as an equal configuration."""
    return dump_yaml(dataclasses.asdict(config))


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def meanings() -> dict[str, str]:
    """What each setting means, by dotted key, in the order of :func:`flat_settings`."""
    return {key: setting.doc for key, _, setting in _leaves()}


def _build(values: Mapping[str, Any]) -> TrainConfig:
    """TrainConfig of dotted keys, all of them known."""
    top = {key: value for key, value in values.items() if "." not in key}
    for name, kind in _section_types().items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        top[name] = kind(**own)
    return TrainConfig(**top)


def _is_setting(key: str, where: str, known: Iterable[str]) -> bool:
    """True for a setting, False for a section; ValueError naming the nearest key for neither."""
    if key in known or key in _section_types():
        return key not in _section_types()
    leaf = key.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [max(known, key=lambda k: _likeness(leaf, k.rpartition(".")[2]))]
    raise ValueError(f"{where}: unknown key {key!r}; the nearest known: {', '.join(near)}")


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


@functools.cache
def _section_types() -> dict[str, type[Section]]:
    return sections(get_type_hints(TrainConfig, include_extras=True))


def _leaves() -> Iterator[tuple[str, Any, Setting]]:
    """Dotted key, type and setting of each, in the order of the fields."""
    for name, found in settings(TrainConfig).items():
        yield name, *found
    for section, kind in _section_types().items():
        for name, found in settings(kind).items():
            yield f"{section}.{name}", *found
