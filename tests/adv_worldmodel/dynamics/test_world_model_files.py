"""Saved world models: all comes back but code; what is damaged is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from safetensors.torch import load, save
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel
from adv_worldmodel.dynamics import Ensemble, make_termination
from adv_worldmodel.envs.vector import AdvWorldModelVectorEnv
from adv_worldmodel.saved_folder import checksum
from tests.adv_worldmodel.dynamics.small_models import generator, random_model

JSON, WEIGHTS = "model.json", "model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """S = 2, A = 1, two members with one hidden layer of four units."""
    ensemble = Ensemble(2, 3, 3, (4,), generator())
    spaces = Box(-9.0, 9.0, (2,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    model = WorldModel(ensemble, make_termination("never", None), *spaces)
    model.fit_info = {"steps": 3, "holdout_nll": float("nan")}
    model.save(tmp_path / "model")
    return tmp_path / "model"


# --- what comes back ----------------------------------------------------------------------------


def same_steps(first: WorldModel, second: WorldModel) -> bool:
    obs, action = torch.randn(9, 2, generator=generator(5)), torch.zeros(9, 1)
    pairs = zip(
        first.step(obs, action, generator=generator(6)),
        second.step(obs, action, generator=generator(6)),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


def test_saved_model_comes_back_equal(tmp_path: Path) -> None:
    model = random_model()
    model.fit_info = {"steps": 3, "holdout_mse": [0.1, 0.2]}
    model.holdout_rows = torch.tensor([4, 2])
    model.save(tmp_path / "new" / "folder")
    loaded = WorldModel.load(tmp_path / "new" / "folder", device="cpu")
    assert same_steps(model, loaded)
    assert loaded.fit_info == model.fit_info
    assert loaded.holdout_rows.tolist() == [4, 2]
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    assert dict(loaded.termination.spec) == dict(model.termination.spec)


def test_folder_holds_weights_and_json_alone(tmp_path: Path) -> None:
    random_model().save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [JSON, WEIGHTS]
    assert json.loads((tmp_path / JSON).read_text())["format"] == "adv-worldmodel"


def test_rule_read_from_a_table_comes_back(tmp_path: Path) -> None:
    ensemble = Ensemble(1, 11 + 3, 12, (), generator())
    spaces = Box(-np.inf, np.inf, (11,), np.float32), Box(-1.0, 1.0, (3,), np.float32)
    WorldModel(ensemble, make_termination("hopper", None), *spaces).save(tmp_path)
    rule = WorldModel.load(tmp_path, device="cpu").termination
    obs = torch.zeros(2, 11)
    obs[:, 0] = torch.tensor([1.2, 0.6])  # healthy above 0.7
    assert rule(obs, obs[:, :3], obs).tolist() == [False, True]


def test_functions_must_be_handed_in_again(tmp_path: Path) -> None:
    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[:, 0] > 0

    def reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[:, 1]

    model = random_model(termination=rule, reward_function=reward)
    model.save(tmp_path)
    with pytest.raises(ValueError, match="pass reward_function="):
        WorldModel.load(tmp_path, device="cpu", termination=rule)
    with pytest.raises(ValueError, match="pass it again as termination=f"):
        WorldModel.load(tmp_path, device="cpu", reward_function=reward)
    loaded = WorldModel.load(tmp_path, device="cpu", termination=rule, reward_function=reward)
    assert same_steps(model, loaded)
    random_model().save(tmp_path / "own")  # has its own
    for name, function in (("termination", rule), ("reward_function", reward)):
        with pytest.raises(ValueError, match=f"{name} would change nothing: the world model in"):
            WorldModel.load(tmp_path / "own", **{name: function})  # type: ignore[arg-type]


# --- what is refused ----------------------------------------------------------------------------


def refused(folder: Path) -> str:
    """The one line with which `folder` is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        WorldModel.load(folder, device="cpu")
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def rewrite(folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> None:
    """Change keys of model.json (None: remove) and tensors, with a SHA-256 that fits them."""
    found = json.loads((folder / JSON).read_text()) | changes
    found = {key: value for key, value in found.items() if value is not None}
    if "sha256" not in changes:
        del found["sha256"]
        weights = load((folder / WEIGHTS).read_bytes()) | (tensors or {})
        (folder / WEIGHTS).write_bytes(save(weights))
        found["sha256"] = checksum(found, (folder / WEIGHTS).read_bytes())
    (folder / JSON).write_text(json.dumps(found))


def test_an_unchanged_rewrite_is_read(saved: Path) -> None:
    rewrite(saved)  # so that what the cases below are refused for is their change
    assert WorldModel.load(saved, device="cpu").fit_info["steps"] == 3


@pytest.mark.parametrize("name", [JSON, WEIGHTS])
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        WorldModel.load(saved)


def test_truncated_weights_are_damaged(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:100])
    assert re.search("is damaged .* fit the model again", refused(saved))


@pytest.mark.parametrize("name", [JSON, WEIGHTS])
def test_any_flipped_byte_is_found(name: str, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    for place in {*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (saved / name).write_bytes(bytes(flipped))
        refused(saved)


def bounds(**changes: Any) -> dict[str, Any]:
    bound = {"start": 0, "stop": 1, "low": 0.0, "high": 1.0, "closed": True} | changes
    return {"termination": {"kind": "inside", "bounds": [bound]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pickle"}, "format is 'pickle'"),
        ({"format_version": 2}, "format version 2, this library reads up to 1: install a newer"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"format_version": True}, "format_version is True"),
        ({"code": "os.system"}, "unknown key 'code'"),
        ({"n_members": None}, "no key 'n_members'"),
        ({"hidden_sizes": None}, "no key 'hidden_sizes'"),
        ({"termination": None}, "no key 'termination'"),
        ({"fit_info": None}, "no key 'fit_info'"),
        ({"n_members": 3}, "does not fit its model.json: the weights of layer 0"),
        ({"n_members": 10**30}, "does not fit"),
        ({"n_members": -1}, "n_members is -1, expected a whole number from 1"),
        ({"hidden_sizes": [10**6, 10**6]}, "does not fit"),
        ({"hidden_sizes": []}, "does not fit"),
        ({"hidden_sizes": [4] * 10**5}, "does not fit"),
        ({"hidden_sizes": [9]}, "does not fit its model.json"),
        ({"hidden_sizes": "44"}, "hidden_sizes is '44'"),
        ({"observation_dim": 10**12}, "does not fit"),
        ({"observation_dim": "2"}, "observation_dim is '2'"),
        ({"observation_dim": 3}, "obs_low and obs_high are not the bounds of 3 dimensions"),
        ({"action_dim": 2}, "action_low and action_high are not the bounds of 2 dimensions"),
        ({"known_reward": 1}, "known_reward is 1, expected true or false"),
        ({"known_reward": True}, "pass reward_function="),
        ({"fit_info": []}, "fit_info is [], expected an object"),
        ({"termination": []}, "termination is []"),
        ({"termination": {"kind": "os.system"}}, "Unknown termination kind 'os.system'"),
        ({"termination": {"kind": "inside", "bounds": 5}}, "Damaged termination spec"),
        ({"termination": {"kind": "tip_height", "links": [1, 1], "height": 1}}, "Damaged"),
        (bounds(stop=10**12), "reads component 999999999999 of the observation, which has only 2"),
        (bounds(start=5, stop=None), "reads component 5"),
        (bounds(low="a"), "could not convert"),
        (bounds(high=10**400), "Damaged termination spec"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"sha256": 5}, "sha256 is 5"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_description_that_is_not_the_models(
    changes: dict[str, Any], message: str, saved: Path
) -> None:
    rewrite(saved, **changes)
    assert message in refused(saved)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"obs_low": torch.tensor([torch.nan, 0.0])}, "obs_low and obs_high are not the bounds"),
        ({"obs_low": torch.tensor(0.0)}, "obs_low and obs_high are not the bounds"),
        ({"action_high": torch.tensor([-2.0])}, "action_low and action_high are not the bounds"),
        ({"holdout_rows": torch.zeros(2)}, "holdout_rows are no row numbers"),
        ({"input_std": torch.ones(7)}, "size mismatch for input_std"),
        ({"more": torch.ones(1)}, "Unexpected key"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_tensors_that_are_not_the_models(
    tensors: dict[str, Tensor], message: str, saved: Path
) -> None:
    rewrite(saved, tensors)
    assert message in refused(saved)


@pytest.mark.parametrize("name", ["obs_low", "ensemble.weights.1", "holdout_rows", "target_std"])
def test_a_lost_tensor_is_named(name: str, saved: Path) -> None:
    found = load((saved / WEIGHTS).read_bytes())
    del found[name]
    (saved / WEIGHTS).write_bytes(save(found))
    rewrite(saved)
    assert name in refused(saved)


@pytest.mark.parametrize("text", ["", "[]", '{"format": ', "[" * 100_000, "NaN"], ids=repr)
def test_what_is_no_description(text: str, saved: Path) -> None:
    (saved / JSON).write_text(text)
    assert "fit the model again" in refused(saved)


def test_two_folders_are_not_mixed(saved: Path, line_model: Callable[..., WorldModel]) -> None:
    line_model().save(saved.parent / "other")
    (saved / WEIGHTS).write_bytes((saved.parent / "other" / WEIGHTS).read_bytes())
    assert "SHA-256" in refused(saved)


def test_a_model_of_another_environment_is_refused(saved: Path, line: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="observations of length 2, line has length 1: give the"):
        AdvWorldModelVectorEnv(line, world_model=saved, device="cpu")
