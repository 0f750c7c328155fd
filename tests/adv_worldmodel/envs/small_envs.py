"""Batched environments that tests of several files share."""

from __future__ import annotations

from typing import Any

from adv_worldmodel import AdvWorldModelVectorEnv, OfflineDataset, WorldModel


def envs_on(dataset: OfflineDataset, model: WorldModel, **kwargs: Any) -> AdvWorldModelVectorEnv:
    return AdvWorldModelVectorEnv(dataset, world_model=model, device="cpu", **kwargs)


def rollout(envs: AdvWorldModelVectorEnv, seed: int, n_steps: int = 12) -> list[Any]:
    obs, _ = envs.reset(seed=seed)
    envs.action_space.seed(seed)
    steps: list[Any] = [obs]
    for _ in range(n_steps):
        steps.extend(envs.step(envs.action_space.sample())[:4])
    return steps
