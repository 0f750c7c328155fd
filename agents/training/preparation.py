"""Everything of an experiment that can fail on the user's input, before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gymnasium.spaces import Box, Space

from adv_worldmodel.data import OfflineDataset, load_dataset
from adv_worldmodel.data.row_order import why_not_in_order
from adv_worldmodel.data.scores import evaluation_env
from adv_worldmodel.device import resolve_device
from adv_worldmodel.dynamics import FitSettings, WorldModel, make_termination
from adv_worldmodel.dynamics.termination import TerminationFunction
from agents.training.config_files import absolute_source
from agents.training.real_env import check_spaces, full_id, make_real_env, warn_of_endless
from agents.training.run_folder import check_new_folder

if TYPE_CHECKING:
    from agents.training.config import TrainConfig


@dataclass(frozen=True, eq=False)
class Preparation:
    """An experiment of which all user input has been checked.

    :param config: as the user gave it.
    :param dataset: read, with the reward offset added.
    :param termination: what `fit_world_model` takes.
    :param fit: settings of the maximum-likelihood fit, with the run's seed.
    :param device: where the networks live.
    :param env_id: the real environment in which the policy is evaluated; None: it is not.
    :param env_note: why it is that one, where it is not simply the one behind the data.
    :param seconds: that all of this took.
    :param overwrite: replace a run that the run folder holds.
    """

    config: TrainConfig
    dataset: OfflineDataset
    termination: str | TerminationFunction
    fit: FitSettings
    device: torch.device
    env_id: str | None
    env_note: str | None
    seconds: float
    overwrite: bool = False

    @property
    def resolved_config(self) -> TrainConfig:
        """The configuration that reruns this experiment from any folder, into a new run folder."""
        dataset = absolute_source(self.config.dataset)
        return dataclasses.replace(self.config, dataset=dataset, out=None)


def prepare(config: TrainConfig, *, overwrite: bool = False, resumed: bool = False) -> Preparation:
    """Read and check all that `config` names.

    :param config: of one run.
    :param overwrite: its folder may hold a run, which is replaced.
    :param resumed: its folder is there already, and is not looked at.
    :raises ValueError, FileNotFoundError: the data set cannot be read, no termination rule is
        known, the real environment cannot be built or has other spaces, the device is not there,
        the run folder cannot be made, or several seeds are asked for. The message says what to do.
    """
    started = time.perf_counter()
    if config.seeds is not None:
        raise ValueError(
            f"seeds = {config.seeds} asks for several runs: give it to 'adv-worldmodel train', "
            "or seeds=null for one"
        )
    if not resumed:
        check_new_folder(config.out, overwrite=overwrite)
    device = resolve_device(config.device)
    dataset = read_dataset(config)
    env_id, env_note = _real_env(config, dataset)
    if env_id is not None:
        _check_env(config, dataset, env_id)
        env_id = full_id(env_id)
    termination = load_termination(config.model.termination)
    _check_termination(config, termination, dataset, device)
    model = config.model
    fit = FitSettings(
        n_networks=model.n_networks,
        n_elites=model.n_elites,
        hidden_sizes=model.hidden_sizes,
        learning_rate=model.fit_learning_rate,
        beta=model.fit_beta,
        batch_size=model.fit_batch_size,
        holdout=model.holdout,
        patience=model.patience,
        max_steps=model.max_steps,
        seed=config.seed,
    )
    if not resumed:  # a run that goes on was warned at its start
        _warn(config, dataset, env_id)  # last, since of bad input nothing else is said
    seconds = time.perf_counter() - started
    return Preparation(
        config=config,
        dataset=dataset,
        termination=termination,
        fit=fit,
        device=device,
        env_id=env_id,
        env_note=env_note,
        seconds=seconds,
        overwrite=overwrite,
    )


def _warn(config: TrainConfig, dataset: OfflineDataset, env_id: str | None) -> None:
    """Of what is allowed, and seldom meant."""
    if config.agent.critic_warmup >= config.iterations:
        warnings.warn(
            f"agent.critic_warmup = {config.agent.critic_warmup}: in iterations = "
            f"{config.iterations} only the critics learn, and the policy stays "
            f"{'the clone' if config.cloning.epochs else 'as it was drawn'}",
            stacklevel=3,
        )
    if env_id is not None:
        warn_of_endless(env_id)
    if not dataset.in_order:
        warnings.warn(
            f"{config.dataset}: rows do not follow one another, {why_not_in_order(dataset)}",
            stacklevel=3,
        )
    adversary = config.adversary
    if config.iterations == 1 and adversary.weight != 0 and adversary.updates > 0:
        warnings.warn(
            "iterations = 1: the adversary's updates come before the second rollout, so the model "
            "stays as it was fitted; give iterations=2 or more, or adversary.weight=0",
            stacklevel=3,
        )


def load_world_model(
    folder: Path, termination: str | TerminationFunction, device: str | torch.device
) -> WorldModel:
    """A saved model with its own rule, but where the run's is a user's function.

    :raises FileNotFoundError, ValueError: as `WorldModel.load`.
    """
    function = termination if callable(termination) else None
    return WorldModel.load(folder, device=device, termination=function)


def read_dataset(config: TrainConfig, *, modules: bool = True) -> OfflineDataset:
    """Return the data that `config` names.

    :param modules: False leaves environments out that are named as `module:ID`, and imports
        nothing.
    :raises ValueError, FileNotFoundError: they cannot be read, or are a single transition.
    """
    offset = config.data.reward_offset
    env_id, instead = (
        name if modules or name is None or ":" not in name else None
        for name in (config.data.env_id, config.evaluation.env_id)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_dataset(config.dataset, reward_offset=offset, env_id=env_id)
    if dataset.env_id is None and instead is not None:
        # Data that do not say where they come from: bounds and termination are that one's.
        env_id, caught = instead, []
        dataset = load_dataset(config.dataset, reward_offset=offset, env_id=env_id)
    for w in caught:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    if len(dataset) < 2:
        raise ValueError(
            f"{config.dataset} has {len(dataset)} transition: at least 2 are needed, one to fit "
            "the world model and one to hold out"
        )
    return dataset


def _check_env(config: TrainConfig, dataset: OfflineDataset, env_id: str) -> None:
    """Build the real environment once, and compare its spaces with those of the data."""
    env = make_real_env(env_id)
    try:
        check_spaces(dataset, env, env_id)
    except ValueError as error:
        raise ValueError(
            f"{config.dataset} cannot be evaluated in {env_id}: its observations are "
            f"{_in_words(dataset.observation_space)}, its actions "
            f"{_in_words(dataset.action_space)}; the environment's are "
            f"{_in_words(env.observation_space)} and {_in_words(env.action_space)}. "
            "Set data.env_id or evaluation.env_id to the environment that the data come from"
        ) from error
    finally:
        env.close()


def _in_words(space: Space[Any]) -> str:
    if isinstance(space, Box):
        bounds = f"{space.low.min():g} to {space.high.max():g}"
        return f"{space.shape[0] if space.shape else 1}-dimensional within {bounds}"
    return f"a {type(space).__name__}"


def _check_termination(
    config: TrainConfig,
    termination: str | TerminationFunction,
    dataset: OfflineDataset,
    device: torch.device,
) -> None:
    """Find the rule, and ask it of two rows: a function of the user's may be wrong."""
    columns = (dataset.observations, dataset.actions, dataset.next_observations)
    rows = [torch.tensor(column[:2], device=device) for column in columns]
    try:
        make_termination(termination, dataset.env_id)(*rows)
    except Exception as error:
        if not (isinstance(error, ValueError) or callable(termination)):
            raise
        raise ValueError(
            f"model.termination={config.model.termination}: {str(error).rstrip('.')}. In a "
            "configuration: "
            "model.termination=never, or module:function"
        ) from error


def load_termination(name: str) -> str | TerminationFunction:
    """Return the function of `module:function`, any other name as it is.

    :raises ValueError: there is no such module, or no function of that name in it.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        return name
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # a module that is broken raises anything
        raise ValueError(
            f"model.termination = {name!r} cannot be imported ({error}): give module:function of "
            "a module that Python finds, for example by PYTHONPATH=."
        ) from error
    if not callable(function):
        raise ValueError(
            f"model.termination = {name!r} is a {type(function).__name__}, expected a function "
            "f(obs, action, next_obs) -> bool"
        )
    return function  # type: ignore[no-any-return]


def _with_version(env_id: str) -> str:
    """The `full_id` of an environment that is known here; no module is imported for it."""
    if ":" not in env_id:
        with contextlib.suppress(ValueError):
            return full_id(env_id)
    return env_id


def _real_env(config: TrainConfig, dataset: OfflineDataset) -> tuple[str | None, str | None]:
    """Where the policy is evaluated, and why there if that needs a word."""
    if config.evaluation.episodes == 0:
        return None, None
    named, of_data = config.evaluation.env_id, dataset.env_id
    if named is not None:
        differs = of_data is not None and _with_version(named) != _with_version(of_data)
        return named, f"the data come from {of_data}" if differs else None
    of_d4rl, note = None, None
    if config.dataset.startswith("d4rl:"):
        of_d4rl, note = evaluation_env(config.dataset)
    if of_data is None:
        reason = f" ({note})" if note else ""
        raise ValueError(
            f"{config.dataset} does not say which environment to evaluate the policy in{reason}: "
            "set data.env_id=ID (a Gymnasium id, or module:ID); to train without a simulator, "
            "evaluation.episodes=0 and model.termination=never, or module:function"
        )
    return of_data, note if of_data == of_d4rl else None
