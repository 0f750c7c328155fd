"""The policy of a run in the run's own world model: `check_in_model` of a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.training.config import load_config
from agents.training.preparation import load_termination, load_world_model, read_dataset
from agents.training.run_folder import RunFolder, check_trusted

if TYPE_CHECKING:
    from agents.model_check import ModelCheck

__all__ = ["Which", "check_run", "model_of"]

#: The model after the fit, or what the adversary had made of it when the run ended.
Which = Literal["fit", "adversarial"]


def model_of(folder: RunFolder, which: Which) -> Path:
    """Where a run keeps that model."""
    return folder.world_model if which == "fit" else folder.adversarial_model


def check_run(
    folder: RunFolder,
    which: Which,
    *,
    episodes: int,
    seed: int = 0,
    greedy_step: float | None = None,
    look_ahead: float | None = None,
    dataset: str | None = None,
    trust: bool = False,
) -> ModelCheck:
    """Whole episodes of a run's policy in one of its world models.

    :param episodes: number.
    :param seed: of starts, members, actions and noise.
    :param greedy_step: another one than the run's.
    :param look_ahead: see :func:`agents.model_check.check_in_model`.
    :param dataset: where the run's data are by now.
    :param trust: import the modules that the folder names.
    :raises FileNotFoundError: the folder holds no run, or lacks its policy, model or data.
    :raises ValueError: a file is damaged, the data are others, or a module is not to be trusted.
    """
    from agents import model_check

    trained_on = folder.read_result().get("content_hash")
    agent = folder.load_policy()
    if greedy_step is not None:
        agent.policy.greedy_step = greedy_step
    config = load_config(folder.config)
    if dataset is not None:
        config = dataclasses.replace(config, dataset=dataset)
    check_trusted(folder.config, config.model.termination, trust, "give --trust")
    rule = load_termination(config.model.termination)
    model = load_world_model(model_of(folder, which), rule, agent.device)
    data = read_dataset(config, modules=trust)  # of a stranger's file, no module is imported
    if trained_on not in (None, data.content_hash):
        named = (config.data.env_id, config.evaluation.env_id)
        for env_id in filter(None, named):  # whose spaces are the data's
            check_trusted(folder.config, env_id, trust, "give --trust")
        remedy = "bring the data back, or give --dataset FILE where they have moved"
        if dataset is not None:
            remedy = "these are other data (or read with another data.env_id)"
        raise ValueError(
            f"{config.dataset} is not read as when {folder.path} was trained: {remedy}"
        )
    return model_check.check_in_model(
        agent, model, data, episodes=episodes, gamma=config.agent.gamma,
        alpha=folder.alpha_in_values(config.agent), seed=seed, clone=folder.load_clone(),
        look_ahead=look_ahead,
    )  # fmt: skip
