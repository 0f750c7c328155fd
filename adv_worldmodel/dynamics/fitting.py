"""Maximum-likelihood fit of the ensemble, and choice of the elites."""

from __future__ import annotations

import operator
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor
from tqdm import tqdm

from adv_worldmodel.checks import check_finite, check_shares, check_whole
from adv_worldmodel.data import OfflineDataset, load_dataset
from adv_worldmodel.data.environments import buildable, check_fit
from adv_worldmodel.device import resolve_device
from adv_worldmodel.dynamics.ensemble import Ensemble
from adv_worldmodel.dynamics.hard_columns import warn_of_columns
from adv_worldmodel.dynamics.likelihood import likelihood_step, make_optimizer
from adv_worldmodel.dynamics.rewards import compare_with_rewards
from adv_worldmodel.dynamics.termination import (
    TerminationFunction,
    compare_with_flags,
    make_termination,
)
from adv_worldmodel.dynamics.world_model import (
    RewardFunction,
    WorldModel,
    data_tensors,
)
from adv_worldmodel.graphs import GraphedStep, make_capturable
from adv_worldmodel.seeding import make_generator

#: Times the squared error of predicting the mean at which a fit counts as diverged, and as poor.
DIVERGED_ERROR, POOR_ERROR = 10.0, 2.0
#: That error, where the mean of targets that hardly vary has less.
LEAST_ERROR_OF_MEAN = 0.1


@dataclass(frozen=True)
class FitSettings:
    """How the world model is fitted; defaults are the paper's and its authors' code's.

    :param n_networks: networks fitted.
    :param n_elites: networks kept, the best on the holdout.
    :param hidden_sizes: widths of the hidden layers.
    :param learning_rate: Adam's.
    :param beta: of the beta-NLL (Seitzer et al. 2022, see :func:`supervised_loss`), from 0, the
        likelihood, to 1; 0.5 predicts jumps, such as contacts, far better after as many steps.
    :param batch_size: transitions per network and step.
    :param holdout: transitions held out (at most a tenth of the data).
    :param patience: epochs without improvement before the fit stops.
    :param improvement: relative fall of a network's holdout error that counts as improvement.
    :param max_steps: gradient steps at most; ``None`` leaves the end to ``patience``.
    :param seed: of weights, bootstrap, shuffling and holdout.
    """

    n_networks: int = 7
    n_elites: int = 5
    hidden_sizes: tuple[int, ...] = (200, 200, 200, 200)
    learning_rate: float = 3e-4
    beta: float = 0.0
    batch_size: int = 256
    holdout: int = 1000
    patience: int = 10
    improvement: float = 0.01
    max_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ["n_networks", "n_elites", "batch_size", "holdout", "patience"]
        if self.max_steps is not None:
            counts.append("max_steps")
        check_whole(at_least=1, **{name: getattr(self, name) for name in counts})
        check_whole(at_least=0, seed=self.seed)
        check_finite(learning_rate=self.learning_rate, improvement=self.improvement)
        check_shares(beta=self.beta)
        if self.n_elites > self.n_networks:
            raise ValueError(f"n_elites = {self.n_elites} exceeds n_networks = {self.n_networks}")
        try:
            widths = tuple(map(operator.index, self.hidden_sizes))
        except TypeError:
            widths = (0,)
        if any(width < 1 for width in widths):
            raise ValueError(f"hidden_sizes = {self.hidden_sizes!r}: expected widths of at least 1")
        # Python's own types, which JSON knows, also of NumPy's
        object.__setattr__(self, "hidden_sizes", widths)
        for name in (*counts, "seed"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        for name in ("learning_rate", "beta", "improvement"):
            object.__setattr__(self, name, float(getattr(self, name)))


class FitDivergedError(FloatingPointError):
    """A fit to data, of a model or of a clone, ended in values that are not finite or far off.

    :param quantity: which number.
    :param history: it by epoch.
    """

    def __init__(self, message: str, quantity: str, history: Sequence[float]) -> None:
        super().__init__(message)
        self.quantity, self.history = quantity, list(history)

    def __reduce__(self) -> tuple[Any, ...]:  # else a copy from another process would fail
        return type(self), (str(self), self.quantity, self.history)


def fit_world_model(
    dataset: Any,
    settings: FitSettings = FitSettings(),
    *,
    termination: str | TerminationFunction | None = None,
    reward_function: RewardFunction | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> WorldModel:
    """Fit the ensemble to a data set by maximum likelihood and keep its elites.

    Warns where the data's terminations are not what the rule says (:func:`compare_with_flags`), and
    where known rewards are not the data's (:func:`compare_with_rewards`).

    :param dataset: an :class:`OfflineDataset`, or an id or a path (:func:`load_dataset`).
    :param settings: of the fit.
    :param termination: see :func:`make_termination`; ``None`` reads it from the environment.
    :param reward_function: known reward on raw ``(s, a, s')`` instead of a learned one.
    :param device: ``"auto"`` takes a GPU where there is one.
    :param progress: show a bar.
    :return: the world model, in which only the ``n_elites`` best networks exist.
    :raises ValueError: fewer than two transitions, or no known termination.
    :raises FitDivergedError: a :class:`FloatingPointError`.
    """
    if not isinstance(settings, FitSettings):
        raise TypeError(f"settings are {type(settings).__name__}: expected FitSettings(...)")
    dataset = load_dataset(dataset)
    if len(dataset) < 2:
        raise ValueError("one transition cannot be fitted and held out: at least 2 are needed")
    rule = make_termination(termination, dataset.env_id)
    obs_dim, action_dim = dataset.observations.shape[1], dataset.actions.shape[1]
    if termination in (None, "auto") and dataset.env_id and buildable(dataset.env_id):
        # the environment's rule reads its own observations
        check_fit(dataset.env_id, obs_dim, action_dim, dataset.name)
    start = time.perf_counter()
    device = resolve_device(device)
    compare_with_flags(rule, dataset, device)
    generator = make_generator(settings.seed, "fit")
    ensemble = Ensemble(
        settings.n_networks,
        obs_dim + action_dim,
        obs_dim + (reward_function is None),
        settings.hidden_sizes,
        generator,
    )
    spaces = (dataset.observation_space, dataset.action_space)
    model = WorldModel(ensemble, rule, *spaces, reward_function=reward_function).to(device)
    obs, action, reward, next_obs = data_tensors(dataset, device)
    for states in (obs, next_obs):  # widen the bounds where the data's own states exceed them
        torch.minimum(model.obs_low, states.amin(0), out=model.obs_low)
        torch.maximum(model.obs_high, states.amax(0), out=model.obs_high)
    raw_targets = model.raw_targets(obs, next_obs, reward)
    learned = reward if reward_function is None else None
    warn_of_columns(dataset.name, obs, action, raw_targets[:, -obs_dim:], learned)
    compare_with_rewards(model, dataset)
    model.set_scales(torch.cat([obs, action], -1), raw_targets)
    inputs, targets = model.inputs(obs, action), model.targets(obs, next_obs, reward)

    n_holdout = min(settings.holdout, max(1, len(dataset) // 10))
    rows = torch.randperm(len(dataset), generator=generator, device="cpu").to(device)
    holdout, train = rows[:n_holdout], rows[n_holdout:]
    best, best_mse, steps, epochs = _descend(
        model, inputs, targets, train, holdout, settings, generator, progress
    )

    elites = torch.argsort(best_mse)[: settings.n_elites].tolist()
    ensemble.load_state_dict(best)
    model.ensemble = ensemble.select(elites)
    low, high = model.obs_low.cpu().numpy(), model.obs_high.cpu().numpy()
    model.observation_space = Box(low, high, dtype=np.float32)
    model.holdout_rows = holdout.clone()
    model.fit_info = {
        **provenance(dataset),
        "settings": asdict(settings),
        "steps": steps,
        "epochs": epochs,
        "holdout_mse": best_mse.tolist(),
        "elites": elites,
        "holdout_nll": float(model.nll(inputs[holdout], targets[holdout])),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return model


def provenance(dataset: OfflineDataset) -> dict[str, Any]:
    """What ``fit_info`` says of the data."""
    names = ("content_hash", "env_id", "reward_offset")
    return {"dataset": dataset.name} | {name: getattr(dataset, name) for name in names}


def _descend(
    model: WorldModel,
    inputs: Tensor,
    targets: Tensor,
    train: Tensor,
    holdout: Tensor,
    settings: FitSettings,
    generator: torch.Generator,
    progress: bool,
) -> tuple[dict[str, Tensor], Tensor, int, int]:
    """Adam until no network improves; returns each network's best weights and holdout error."""
    ensemble, n = model.ensemble, len(train)
    optimizer = make_optimizer(ensemble, settings.learning_rate)
    make_capturable(optimizer, inputs.device)

    def step(rows: Tensor) -> tuple[Tensor]:
        batch = inputs[rows], targets[rows]
        return (likelihood_step(ensemble, optimizer, *batch, settings.beta),)

    graphed = GraphedStep(step, inputs.device)
    shape = (settings.n_networks, n)
    bootstrap = torch.randint(n, shape, generator=generator, device="cpu").to(inputs.device)
    best_mse = torch.full((settings.n_networks,), torch.inf, device=inputs.device)
    reference = best_mse.clone()
    best = {name: value.clone() for name, value in ensemble.state_dict().items()}
    steps, stale = 0, 0
    errors: list[float] = []  # by epoch
    bar = tqdm(
        total=settings.max_steps, desc="fit", unit="step", disable=None if progress else True
    )
    while stale < settings.patience and (settings.max_steps is None or steps < settings.max_steps):
        keys = torch.rand(shape, generator=generator, device="cpu")
        shuffled = train[bootstrap.gather(1, keys.to(inputs.device).argsort(dim=1))]
        for batch in shuffled.split(settings.batch_size, dim=1):
            if steps == settings.max_steps:
                break
            whole = batch.shape[1] == settings.batch_size
            (graphed if whole else step)(batch)
            steps += 1
            bar.update()
        with torch.no_grad():
            mean, _ = ensemble(inputs[holdout])
            mse = (targets[holdout] - mean).square().mean(dim=(1, 2))
        improved = mse < best_mse
        for name, value in ensemble.state_dict().items():
            if value.dim() == 3:  # per network
                best[name][improved] = value[improved]
            else:  # the log-variance limits: shared, so that the last are nobody's best
                best[name].copy_(value)
        errors.append(float(mse.mean()))
        best_mse = torch.minimum(best_mse, mse)
        enough = mse < reference * (1.0 - settings.improvement)
        reference = torch.where(enough, mse, reference)
        stale = 0 if bool(enough.any()) else stale + 1
        bar.set_postfix(holdout_mse=f"{float(best_mse.mean()):.4g}")
    bar.close()
    _check_error(best_mse, errors, targets, holdout, settings.n_elites)
    return best, best_mse, steps, len(errors)


def _check_error(
    best_mse: Tensor, errors: Sequence[float], targets: Tensor, holdout: Tensor, n_elites: int
) -> None:
    """Refuse a fit that diverged; warn of one that is worse than the data's mean.

    :param best_mse: least held-out squared error of each network.
    :param errors: the networks' mean by epoch.
    :param targets: of all rows, encoded.
    :param holdout: rows held out.
    :raises FitDivergedError: an elite's error is not finite, or far above that of the mean.
    """
    if not bool(torch.isfinite(best_mse).all()):
        raise FitDivergedError(
            "the fit of the world model diverged: look for outliers in the data, or lower "
            "learning_rate (model.fit_learning_rate)",
            "fit/holdout_mse",
            errors,
        )
    worst, of_mean = float(best_mse.sort().values[n_elites - 1]), _error_of_mean(targets, holdout)
    if worst > DIVERGED_ERROR * of_mean:
        raise FitDivergedError(
            f"the fit of the world model diverged: an elite's error on held-out data is {worst:.3g}"
            f", that of the data's mean {of_mean:.3g}: lower learning_rate "
            "(model.fit_learning_rate)",
            "fit/holdout_mse",
            errors,
        )
    _warn_of_poor_error(worst, of_mean)


def _error_of_mean(targets: Tensor, holdout: Tensor) -> float:
    """Mean squared error of predicting the mean: on all rows or on those held out, if larger."""
    errors = (
        float(torch.linalg.vector_norm(rows)) ** 2 / rows.numel()
        for rows in (targets, targets[holdout])
    )
    return max(LEAST_ERROR_OF_MEAN, *errors)


def _warn_of_poor_error(worst: float, of_mean: float) -> None:
    if worst > POOR_ERROR * of_mean:
        warnings.warn(
            f"the world model predicts held-out data worse than their mean does (squared error "
            f"{worst:.3g} of an elite, {of_mean:.3g} of the mean): lower learning_rate, or more "
            "max_steps",
            stacklevel=5,
        )


def warn_as_fitted(model: WorldModel, dataset: OfflineDataset) -> None:
    """The warnings of the fit that has made `model` of these data, for who gets it later.

    :param model: with a learned reward.
    """
    compare_with_flags(model.termination, dataset, model.device)
    obs, action, reward, next_obs = data_tensors(dataset, model.device)
    warn_of_columns(dataset.name, obs, action, next_obs - obs, reward)
    errors, targets = sorted(model.fit_info["holdout_mse"]), model.targets(obs, next_obs, reward)
    _warn_of_poor_error(errors[model.n_members - 1], _error_of_mean(targets, model.holdout_rows))
