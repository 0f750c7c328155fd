"""Fits kept on disk, by the data's content and the fit's settings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adv_worldmodel.data import load_dataset
from adv_worldmodel.device import resolve_device
from adv_worldmodel.dynamics.fitting import (
    FitSettings,
    fit_world_model,
    provenance,
    warn_as_fitted,
)
from adv_worldmodel.dynamics.termination import TerminationFunction, make_termination
from adv_worldmodel.dynamics.world_model import FORMAT_VERSION, RewardFunction, WorldModel
from adv_worldmodel.errors import one_line
from adv_worldmodel.paths import expanded


def default_cache_dir() -> Path:
    """``$ADV_WORLDMODEL_CACHE``, else ``adv-worldmodel`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("ADV_WORLDMODEL_CACHE"):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "adv-worldmodel"


def cached_world_model(
    dataset: Any,
    settings: FitSettings = FitSettings(),
    *,
    termination: str | TerminationFunction | None = None,
    reward_function: RewardFunction | None = None,
    device: str | torch.device = "auto",
    progress: bool = False,
    cache_dir: str | Path | None = None,
) -> WorldModel:
    """:func:`fit_world_model`, kept on disk by the data's content hash and the fit's settings.

    A fit by another version of this package, or on another kind of device, is not taken. Fits with
    a user's reward or termination function are not kept: nothing tells two functions apart.

    :param cache_dir: by default that of :func:`default_cache_dir`. The others, and what is raised:
        see :func:`fit_world_model`.
    """
    dataset = load_dataset(dataset)
    rule = make_termination(termination, dataset.env_id)
    if reward_function is not None or rule.spec["kind"] == "function":
        return fit_world_model(
            dataset, settings, termination=termination, reward_function=reward_function,
            device=device, progress=progress,
        )  # fmt: skip
    from adv_worldmodel import __version__  # the package is whole only now

    key = {
        "content_hash": dataset.content_hash,
        "settings": asdict(settings),
        "termination": dict(rule.spec),
        "format_version": FORMAT_VERSION,
        # other code, or another kind of device, fits another model
        "version": __version__,
        "device": resolve_device(device).type,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    cache = expanded(cache_dir) if cache_dir is not None else default_cache_dir()
    folder = cache / f"fit-{digest}"
    found = _load(folder, device)
    if found is not None:
        found.fit_info |= provenance(dataset)
        warn_as_fitted(found, dataset)
        return found
    model = fit_world_model(
        dataset, settings, termination=termination, device=device, progress=progress
    )
    # Written aside and renamed: another process never sees half a model. A read-only or full
    # cache costs the next run a fit, not this one its result.
    try:
        cache.mkdir(parents=True, exist_ok=True)
        aside = cache / f"new-{uuid.uuid4().hex}"  # a tempfile could be read by its maker alone
        try:
            model.save(aside)
            if _load(folder, "cpu") is None:  # else another process was quicker: its is as good
                if folder.is_file():
                    folder.unlink()
                shutil.rmtree(folder, ignore_errors=True)
                aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        warnings.warn(f"the fit is not kept for later runs: {one_line(error)}", stacklevel=2)
    return model


def _load(folder: Path, device: str | torch.device) -> WorldModel | None:
    """None where none was ever fitted, or it is damaged or another user's."""
    try:
        return WorldModel.load(folder, device=device)
    except (OSError, ValueError):
        return None
