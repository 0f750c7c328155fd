"""RAMBO's zip: what comes back and goes on training, and what is not in it."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

from adv_worldmodel import OfflineDataset, WorldModel, make_sb3_env
from agents import RAMBO
from tests.agents.small_agents import MakeAgent, run


def test_a_loaded_policy_predicts_the_same(
    make_agent: MakeAgent, pendulum: OfflineDataset, tmp_path: Path
) -> None:
    model = run(make_agent(policy_kwargs={"net_arch": [16], "layer_norm": True}), 1)
    model.save(tmp_path / "policy")
    loaded = RAMBO.load(tmp_path / "policy", device="cpu")  # no environment, no data, no model
    assert loaded.policy.critic.layer_norm
    assert (loaded.iteration, loaded.num_timesteps) == (1, 60)
    # real environments give float64 now and then, and one observation at a time
    for obs in (pendulum.observations, pendulum.observations.astype(np.float64)):
        expected, _ = model.predict(obs, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    action, _ = loaded.predict(pendulum.observations[0].astype(np.float64), deterministic=True)
    assert action.shape == (1,)
    assert np.abs(expected).max() <= 2.0


def test_a_greedy_step_set_later_is_saved(make_agent: MakeAgent, tmp_path: Path) -> None:
    model = make_agent()
    model.save(tmp_path / "without")
    assert "greedy_step" not in model.policy_kwargs
    model.policy.greedy_step = 0.2
    model.save(tmp_path / "policy")
    assert RAMBO.load(tmp_path / "policy", device="cpu").policy.greedy_step == 0.2


def test_a_loaded_agent_goes_on_training(
    make_agent: MakeAgent, pendulum: OfflineDataset, pendulum_model: WorldModel, tmp_path: Path
) -> None:
    model = run(make_agent(), 2)
    model.save(tmp_path / "policy")
    env = make_sb3_env(pendulum, 30, 2, world_model=pendulum_model, device="cpu")
    loaded = RAMBO.load(tmp_path / "policy", env=env, device="cpu")
    assert loaded.timesteps_per_iteration == 60
    for a, b in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    run(loaded, 1, reset_num_timesteps=False)
    assert (loaded.iteration, loaded.num_timesteps, loaded._n_updates) == (3, 180, 12)
    assert loaded.actor.optimizer.state_dict()["state"][0]["step"] == 12  # Adam goes on too
    assert loaded.replay_buffer.size() == 60


def test_an_agent_is_loaded_to_where_its_world_model_is(
    make_agent: MakeAgent,
    pendulum: OfflineDataset,
    pendulum_model: WorldModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also on a machine whose automatic choice is another device."""

    def elsewhere(device: torch.device | str = "auto") -> torch.device:
        return torch.device("meta" if device == "auto" else device)

    make_agent().save(tmp_path / "policy")
    monkeypatch.setattr("stable_baselines3.common.base_class.get_device", elsewhere)
    env = make_sb3_env(pendulum, 30, 2, world_model=pendulum_model, device="cpu")
    assert RAMBO.load(tmp_path / "policy", env=env).device == torch.device("cpu")


def test_weights_alone_can_be_taken_over(make_agent: MakeAgent, pendulum: OfflineDataset) -> None:
    model, other = run(make_agent(), 1), make_agent(seed=1)
    other.set_parameters(model.get_parameters())
    expected, _ = model.predict(pendulum.observations, deterministic=True)
    np.testing.assert_array_equal(
        other.predict(pendulum.observations, deterministic=True)[0], expected
    )


def contents(path: Path) -> dict[str, bytes]:
    """Members of SB3's zip, and what its JSON holds as base64."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for key, value in json.loads(members["data"]).items():
        if isinstance(value, dict) and ":serialized:" in value:
            members[f"data/{key}"] = base64.b64decode(value[":serialized:"])
    return members


def test_the_zip_holds_neither_data_nor_world_model(
    make_agent: MakeAgent, pendulum: OfflineDataset, tmp_path: Path
) -> None:
    run(make_agent(), 2).save(tmp_path / "policy")
    rows = [row.tobytes() for row in (*pendulum.observations, *pendulum.next_observations)]
    for name, content in contents(tmp_path / "policy.zip").items():
        for word in (b"OfflineDataset", b"WorldModel", b"Ensemble", b"ReplayBuffer("):
            assert word not in content, name
        assert not any(row in content for row in rows), name


def test_the_zip_s_size_does_not_depend_on_the_data_s(
    make_agent: MakeAgent, pendulum: OfflineDataset, tmp_path: Path
) -> None:
    tenth = OfflineDataset.from_arrays(
        pendulum.observations[:100], pendulum.actions[:100], pendulum.rewards[:100],
        pendulum.next_observations[:100], pendulum.terminations[:100],
        observation_space=pendulum.observation_space, action_space=pendulum.action_space,
    )  # fmt: skip
    run(make_agent(dataset=tenth, n_envs=2), 1).save(tmp_path / "small")
    run(make_agent(n_envs=2000), 1).save(tmp_path / "large")
    small, large = ((tmp_path / f"{name}.zip").stat().st_size for name in ("small", "large"))
    assert abs(large - small) < 300
    assert large < 60_000


def test_a_loaded_buffer_s_rollouts_come_without_its_data(
    make_agent: MakeAgent, pendulum: OfflineDataset, tmp_path: Path
) -> None:
    """The agent goes on with data and ratio of its own."""
    run(first := make_agent(real_ratio=0.75), 2).save_replay_buffer(tmp_path / "rows")
    fewer = OfflineDataset.from_arrays(
        pendulum.observations[:100], pendulum.actions[:100], pendulum.rewards[:100],
        pendulum.next_observations[:100], pendulum.terminations[:100],
        observation_space=pendulum.observation_space, action_space=pendulum.action_space,
    )  # fmt: skip
    second = make_agent(dataset=fewer, real_ratio=0.25)
    second.load_replay_buffer(tmp_path / "rows.pkl")
    file = load_from_pkl(tmp_path / "rows.pkl")
    assert file.real is None  # a copy of the whole data set would go with it
    assert first.replay_buffer.real is not None
    buffer = second.replay_buffer
    assert buffer.real_ratio == 0.25
    assert buffer.real is not None
    np.testing.assert_array_equal(buffer.unpack(buffer.real).obs, fewer.observations)
    assert (buffer.pos, buffer.full) == (first.replay_buffer.pos, first.replay_buffer.full)
    assert buffer.synthetic is not None
    assert first.replay_buffer.synthetic is not None
    assert torch.equal(buffer.synthetic, first.replay_buffer.synthetic)
    run(second, 1, reset_num_timesteps=False)
    assert buffer.size() == 3 * second.timesteps_per_iteration


def test_what_is_no_buffer_of_the_agent_s_is_refused(
    make_agent: MakeAgent, line: OfflineDataset, line_model: Callable[..., WorldModel],
    tmp_path: Path,
) -> None:  # fmt: skip
    agent = run(make_agent(), 1)
    save_to_pkl(tmp_path / "other.pkl", [1, 2])
    with pytest.raises(ValueError, match=r"holds a list: give what RAMBO\.save_replay_buffer"):
        agent.load_replay_buffer(tmp_path / "other.pkl")
    make_agent(dataset=line, world_model=line_model()).save_replay_buffer(tmp_path / "line.pkl")
    with pytest.raises(ValueError, match="1 numbers per state and 1 per action, the agent takes 3"):
        agent.load_replay_buffer(tmp_path / "line.pkl")
    assert agent.replay_buffer.size() == agent.timesteps_per_iteration  # as it was
