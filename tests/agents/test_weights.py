"""A policy as weights and JSON: what comes back, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from adv_worldmodel import OfflineDataset
from adv_worldmodel.saved_folder import checksum
from agents import RAMBO
from agents.combo import COMBO
from agents.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from tests.agents.small_agents import MakeAgent


@pytest.fixture
def saved(make_agent: MakeAgent, tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    make_agent().save_weights(folder)
    return folder


@pytest.mark.parametrize(
    "networks",
    [
        {},
        {"net_arch": {"pi": [8], "qf": [24, 12]}},
        {"n_critics": 5, "layer_norm": True, "greedy_step": 0.1},
        {"activation_fn": nn.Tanh},
        {"activation_fn": nn.ELU, "share_features_extractor": True},
        {"features_extractor_class": FlattenExtractor},
    ],
    ids=str,
)
def test_a_policy_comes_back_whatever_its_options(
    networks: dict[str, Any], make_agent: MakeAgent, pendulum: OfflineDataset, tmp_path: Path
) -> None:
    agent = make_agent(networks=networks)
    agent.learn(agent.timesteps_per_iteration)
    agent.save_weights(tmp_path / "policy")
    loaded = RAMBO.load_weights(tmp_path / "policy", device="cpu")
    assert (loaded.observation_space, loaded.action_space) == (
        pendulum.observation_space,
        pendulum.action_space,
    )
    states = loaded.policy.state_dict()
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(states[name], value), name
    for obs in (pendulum.observations, pendulum.observations[0].astype(np.float64)):
        expected, _ = agent.predict(obs, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)


def test_an_agent_for_prediction_is_not_trained(saved: Path, make_agent: MakeAgent) -> None:
    agent = RAMBO.load_weights(saved, "cpu")
    with pytest.raises(ValueError, match=r"RAMBO\.load what save wrote"):
        agent.set_env(make_agent().get_env())
    with pytest.raises(ValueError, match=r"RAMBO\.load what save wrote"):
        agent.learn(10)


def test_a_subclass_comes_back_as_itself(make_agent: MakeAgent, tmp_path: Path) -> None:
    make_agent(COMBO).save_weights(tmp_path)
    assert type(COMBO.load_weights(tmp_path, "cpu")) is COMBO


def test_bounds_that_are_infinite_on_one_side_come_back(
    pendulum: OfflineDataset, make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = make_agent()
    low, high = np.array([-np.inf, 0.1, -1e30]), np.array([0.3, np.inf, 7])
    agent.policy.observation_space = Box(low.astype(np.float32), high.astype(np.float32))
    agent.save_weights(tmp_path)
    assert "Infinity" not in (tmp_path / DESCRIPTION_FILE).read_text()
    loaded = RAMBO.load_weights(tmp_path, "cpu")
    assert loaded.observation_space == agent.policy.observation_space


def test_a_loaded_policy_is_saved_again_as_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    RAMBO.load_weights(saved, "cpu").save_weights(tmp_path / "again")
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def test_what_json_cannot_name_is_not_saved(make_agent: MakeAgent, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"activation_fn = .*Square.*RAMBO\.save"):
        make_agent(networks={"activation_fn": Square}).save_weights(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


# --- what is refused ----------------------------------------------------------------------------


def refused(folder: Path) -> str:
    """The one line with which `folder` is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        RAMBO.load_weights(folder, "cpu")
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def rewrite(folder: Path, *, weights: bytes | None = None, **changes: Any) -> None:
    """Change keys of policy.json (None: remove) and the weights, with a SHA-256 that fits them."""
    path = folder / DESCRIPTION_FILE
    found = json.loads(path.read_text()) | changes
    found = {key: value for key, value in found.items() if value is not None}
    if "sha256" not in changes:
        del found["sha256"]
        if weights is not None:
            (folder / WEIGHTS_FILE).write_bytes(weights)
        found["sha256"] = checksum(found, (folder / WEIGHTS_FILE).read_bytes())
    path.write_text(json.dumps(found))


def test_an_unchanged_rewrite_is_read(saved: Path) -> None:
    rewrite(saved)  # so that what the cases below are refused for is their change
    assert RAMBO.load_weights(saved, "cpu").policy.critic.n_critics == 2


def test_a_folder_from_before_there_was_a_greedy_step_has_none(saved: Path) -> None:
    rewrite(saved, greedy_step=None)
    assert RAMBO.load_weights(saved, "cpu").policy.greedy_step == 0.0


PENDULUM_BOUNDS = {"low": [-1.0, -1.0, -8.0], "high": [1.0, 1.0, 8.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pickle"}, "format is 'pickle'"),
        ({"format_version": 2}, "format version 2, this library reads up to 1: install a newer"),
        ({"format_version": 0}, "format_version is 0"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"optimizer": "os.system"}, "unknown key 'optimizer'"),
        ({"layer_norm": None}, "no key 'layer_norm'"),
        ({"layer_norm": 1}, "layer_norm is 1, expected true or false"),
        ({"greedy_step": -1.0}, "greedy_step is -1.0, expected a number of at least 0"),
        ({"activation": "os.system"}, "activation is 'os.system', expected one of relu, tanh"),
        ({"activation": ["relu"]}, "activation is"),
        ({"n_critics": True}, "n_critics is True"),
        ({"n_critics": 3}, "does not fit"),
        ({"n_critics": 10**30}, "does not fit"),
        ({"actor_sizes": [16, 8]}, "does not fit"),
        ({"actor_sizes": [10**7, 10**7]}, "does not fit"),
        ({"critic_sizes": [16]}, "does not fit"),
        ({"critic_sizes": [1] * 10**4}, "does not fit"),
        ({"critic_sizes": [0]}, "critic_sizes is [0]"),
        ({"layer_norm": True}, "does not fit"),
        ({"standardise": False}, "does not fit"),
        ({"action_space": {"low": [None], "high": [2.0]}}, "action_space is"),
        ({"action_space": {"low": [2.0], "high": [-2.0]}}, "action_space is"),
        ({"action_space": {"low": [-2.0] * 2, "high": [2.0] * 2}}, "does not fit"),
        ({"observation_space": {**PENDULUM_BOUNDS, "low": [-1.0]}}, "observation_space is"),
        ({"observation_space": {**PENDULUM_BOUNDS, "dtype": "O"}}, "observation_space is"),
        ({"observation_space": {"low": [], "high": []}}, "observation_space is"),
        ({"observation_space": {"low": [0, 0], "high": [1, 1]}}, "does not fit"),
        ({"observation_space": {"low": [0, 0, -1e40], "high": [1, 1, 1]}}, "observation_space is"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"sha256": 5}, "sha256 is 5"),
    ],
    ids=str,
)
def test_a_description_that_is_not_the_policys(
    changes: dict[str, Any], message: str, saved: Path
) -> None:
    rewrite(saved, **changes)
    assert message in refused(saved)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": ', '"\\ud800', "[" * 100_000, "NaN"], ids=lambda text: text[:9]
)
def test_what_is_no_description(text: str, saved: Path) -> None:
    (saved / DESCRIPTION_FILE).write_text(text)
    assert "save the policy again" in refused(saved)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, DESCRIPTION_FILE])
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    assert f"{name} is missing; give the folder that" in refused(saved)


def test_no_folder_is_no_policy(tmp_path: Path) -> None:
    assert "holds no policy" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, DESCRIPTION_FILE])
def test_any_flipped_byte_is_found(name: str, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    for place in {*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (saved / name).write_bytes(bytes(flipped))
        refused(saved)
    (saved / name).write_bytes(whole[:-1])
    if name == WEIGHTS_FILE:  # the JSON's last byte is the end of its line
        refused(saved)


def test_two_folders_are_not_mixed(make_agent: MakeAgent, saved: Path, tmp_path: Path) -> None:
    make_agent(networks={"n_critics": 3}).save_weights(tmp_path / "other")
    (saved / WEIGHTS_FILE).write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    assert "SHA-256" in refused(saved)


def test_weights_that_are_no_safetensors(saved: Path) -> None:
    rewrite(saved, weights=b"PK\x03\x04 a zip")
    assert "no safetensors file" in refused(saved)
