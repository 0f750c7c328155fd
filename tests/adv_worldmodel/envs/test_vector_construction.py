"""What the batched environment is made of: its settings, its model, its spaces."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from adv_worldmodel import (
    AdvWorldModelVectorEnv,
    FitSettings,
    OfflineDataset,
    WorldModel,
    fit_world_model,
    make_termination,
)
from tests.adv_worldmodel.envs.small_envs import envs_on, rollout

Build = Callable[..., WorldModel]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_envs": 0}, "num_envs = 0 must be at least 1"),
        ({"horizon": 0}, "horizon = 0 must be at least 1"),
        ({"horizon": 2.5}, "horizon = 2.5: expected a whole number"),
        ({"num_envs": 2.5}, "num_envs = 2.5: expected a whole number"),
        ({"member_per": "episode"}, "'episode' is neither 'step' nor 'rollout'"),
    ],
)
def test_wrong_settings_are_explained(
    line: OfflineDataset, line_model: Build, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        envs_on(line, line_model(), **wrong)


def test_a_dictionary_is_no_fit_settings(pendulum: OfflineDataset) -> None:
    with pytest.raises(TypeError, match=r"fit is dict: expected FitSettings\(...\)"):
        AdvWorldModelVectorEnv(pendulum, fit={"max_steps": 3})  # type: ignore[arg-type]


def test_another_data_set_s_model_is_refused(pendulum: OfflineDataset, line_model: Build) -> None:
    with pytest.raises(ValueError, match=r"observations of length 1, pendulum-1000 has length 3"):
        envs_on(pendulum, line_model())


def test_a_model_of_another_task_is_warned_of(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env_id in ("Pendulum-v1", "Pendulum-v0", "some.module:Pendulum-v2", None):
            pendulum_model.fit_info["env_id"] = env_id
            envs = envs_on(pendulum, pendulum_model)
    pendulum_model.fit_info["env_id"] = "Swing-v1"
    with pytest.warns(UserWarning, match="fitted to data of Swing-v1, pendulum-1000 is of Pendul"):
        envs_on(pendulum, pendulum_model)
    with pytest.warns(UserWarning, match="fitted to data of Swing-v1"):
        envs.world_model = pendulum_model


def test_the_rule_of_a_model_may_be_named_beside_it(
    pendulum: OfflineDataset, ending_model: WorldModel
) -> None:
    for own in (ending_model.termination, ending_model.termination.rule):
        assert envs_on(pendulum, ending_model, termination=own).world_model is ending_model
    with pytest.raises(ValueError, match="termination would change nothing"):
        envs_on(pendulum, ending_model, termination=make_termination("never", None))


def test_the_model_may_be_the_folder_of_a_saved_one(
    pendulum: OfflineDataset, pendulum_model: WorldModel, tmp_path: Path
) -> None:
    pendulum_model.save(tmp_path)
    loaded = AdvWorldModelVectorEnv(pendulum, 4, world_model=tmp_path, device="cpu")
    given = envs_on(pendulum, pendulum_model, num_envs=4)
    for a, b in zip(rollout(loaded, 0), rollout(given, 0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_model_one_is_fitted_once(
    pendulum: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADV_WORLDMODEL_CACHE", str(tmp_path))
    fit = FitSettings(n_networks=2, n_elites=1, hidden_sizes=(8,), max_steps=3)
    made = [
        AdvWorldModelVectorEnv(pendulum, fit=fit, device="cpu", progress=False) for _ in range(2)
    ]
    assert len(list(tmp_path.iterdir())) == 1
    fitted, cached = (envs.world_model for envs in made)
    assert cached is not fitted
    assert cached.fit_info["seconds"] == fitted.fit_info["seconds"]
    for a, b in zip(fitted.parameters(), cached.parameters(), strict=True):
        assert torch.equal(a, b)


def always(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(obs), dtype=torch.bool)


def seventy_seven(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return torch.full((len(obs),), 77.0)


def test_known_ends_and_rewards_are_those_of_the_model_fitted_here(
    pendulum: OfflineDataset, tmp_path: Path
) -> None:
    known: dict[str, Any] = {"termination": always, "reward_function": seventy_seven}
    small = FitSettings(2, 1, (4,), max_steps=2)
    fitted = AdvWorldModelVectorEnv(pendulum, 3, fit=small, device="cpu", progress=False, **known)
    fitted.world_model.save(tmp_path / "saved")
    again = AdvWorldModelVectorEnv(
        pendulum, 3, world_model=tmp_path / "saved", device="cpu", **known
    )
    for envs in (fitted, again):
        _, rewards, terminated, _, _ = envs.step(np.zeros((3, 1), np.float32))
        assert rewards.tolist() == [77.0] * 3
        assert terminated.all()
    envs_on(pendulum, fitted.world_model, **known)  # the same ones


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"termination": always},
        {"termination": "mountaincarcontinuous"},
        {"reward_function": seventy_seven},
        {"fit": FitSettings(1, 1)},
    ],
)
def test_ends_and_rewards_beside_a_model_that_has_its_own_are_refused(
    pendulum: OfflineDataset,
    pendulum_model: WorldModel,
    tmp_path: Path,
    saved: bool,
    more: dict[str, Any],
) -> None:
    pendulum_model.save(tmp_path / "saved")
    model = tmp_path / "saved" if saved else pendulum_model
    with pytest.raises(ValueError, match=f"{next(iter(more))} would change nothing"):
        AdvWorldModelVectorEnv(pendulum, 3, world_model=model, device="cpu", **more)


def test_no_pictures_are_drawn(pendulum: OfflineDataset, pendulum_model: WorldModel) -> None:
    with pytest.raises(TypeError, match="draws no pictures"):
        envs_on(pendulum, pendulum_model, render_mode="human")


def test_observations_lie_in_the_declared_space(pendulum: OfflineDataset, tmp_path: Path) -> None:
    """Also where the data leave theirs: freshly fitted, saved, with another data set's model."""
    narrow = Box(-0.5, 0.5, (3,), np.float32)
    data = replace(pendulum, observation_space=narrow)
    fit = FitSettings(n_networks=2, n_elites=2, hidden_sizes=(8,), max_steps=5)
    fresh = fit_world_model(data, fit, termination="never", device="cpu")
    assert narrow == Box(-0.5, 0.5, (3,), np.float32)  # the fit leaves the data as they are
    assert data.content_hash == replace(data).content_hash
    assert len(fresh.split(replace(data))[1]) == len(fresh.holdout_rows)
    fresh.save(tmp_path)
    saved = WorldModel.load(tmp_path, device="cpu")
    states = np.concatenate([data.observations, data.next_observations])
    assert fresh.observation_space == saved.observation_space
    np.testing.assert_array_equal(fresh.observation_space.low, states.min(0))
    for model, dataset in ((fresh, data), (saved, data), (saved, moved(data))):
        envs = envs_on(dataset, model, num_envs=50, seed=0)
        assert envs.observation_space.contains(envs.reset()[0])
        for _ in range(5):
            assert envs.observation_space.contains(envs.step(envs.action_space.sample())[0])


def moved(dataset: OfflineDataset) -> OfflineDataset:
    """Start states ten further on."""
    further = dataset.observations + np.float32(10.0)
    return replace(dataset, observations=further)


def test_a_model_that_would_clip_the_data_s_actions_is_refused(
    pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    wide = replace(pendulum, action_space=Box(-3.0, 3.0, (1,), np.float32))
    with pytest.warns(UserWarning, match="they act as on these bounds"):
        assert envs_on(wide, pendulum_model).single_action_space == wide.action_space
    with pytest.raises(ValueError, match="would clip those of pendulum-1000"):
        envs_on(replace(wide, actions=wide.actions * 1.5), pendulum_model)
    half = replace(
        pendulum, actions=pendulum.actions / 2, action_space=Box(-1, 1, (1,), np.float32)
    )
    assert envs_on(half, pendulum_model).single_action_space == half.action_space
