"""What a configuration makes of its data and of the fit's settings."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from adv_worldmodel import FitSettings, load_dataset
from agents.studies.run_groups import compared_settings
from agents.training.config import load_config
from agents.training.preparation import prepare


def test_the_fit_has_the_model_s_settings_and_the_run_s_seed() -> None:
    config = load_config(
        "pendulum-random",
        [
            "seed=5", "model.n_networks=4", "model.n_elites=3", "model.hidden_sizes=[9, 7]",
            "model.fit_learning_rate=2e-3", "model.fit_beta=0.3", "model.fit_batch_size=17",
            "model.holdout=23", "model.patience=6", "model.max_steps=11",
        ],
    )  # fmt: skip
    assert prepare(config).fit == FitSettings(
        4, 3, (9, 7), learning_rate=2e-3, beta=0.3, batch_size=17, holdout=23, patience=6,
        max_steps=11, seed=5,
    )  # fmt: skip


def test_data_without_an_environment_get_the_evaluation_s_and_keep_their_offset(
    tmp_path: Path,
) -> None:
    states = np.zeros((20, 3), np.float32)
    np.savez(
        tmp_path / "log.npz",
        observations=states,
        next_observations=states,
        actions=np.zeros((20, 1)),
        rewards=np.arange(20.0),
        terminals=np.zeros(20),
    )
    words = ["evaluation.env_id=Pendulum-v1", "data.reward_offset=-1"]
    found = prepare(load_config("base", [f"dataset={tmp_path / 'log.npz'}", *words]))
    assert found.dataset.rewards.tolist() == [reward - 1.0 for reward in range(20)]
    assert found.dataset.action_space.high.tolist() == [2.0]
    assert found.env_id == "Pendulum-v1"


def test_bounds_are_guessed_only_where_no_environment_is_named(tmp_path: Path) -> None:
    states = np.zeros((20, 3), np.float32)
    file = tmp_path / "log.npz"
    columns = {"observations": states, "next_observations": states, "rewards": np.zeros(20)}
    np.savez(file, **columns, actions=np.full((20, 1), 0.2), terminals=np.zeros(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(load_config("base", [f"dataset={file}", "evaluation.env_id=Pendulum-v1"]))
    alone = ["evaluation.episodes=0", "model.termination=never"]
    with pytest.warns(UserWarning, match="no action bounds are known") as caught:
        prepare(load_config("base", [f"dataset={file}", *alone]))
    assert len(caught) == 1


@pytest.mark.parametrize("body", ["torch.zeros(len(obs))", "next_obs[:, :1] > 0", "obs.nothing"])
def test_a_wrong_rule_is_found_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    source = f"import torch\ndef rule(obs, action, next_obs):\n    return {body}\n"
    (tmp_path / "rules_tried.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rules_tried", raising=False)
    with pytest.raises(ValueError, match=r"model\.termination=rules_tried:rule"):
        prepare(load_config("pendulum-random", ["model.termination=rules_tried:rule"]))


def test_an_environment_without_a_version_is_the_latest() -> None:
    assert prepare(load_config("pendulum-random", ["evaluation.env_id=Pendulum"])).env_id == (
        "Pendulum-v1"
    )


@pytest.mark.parametrize(
    ("named", "note"),
    [
        ("Pendulum-v1", None),
        ("Pendulum", None),
        ("OtherPendulum", "the data come from Pendulum-v1"),
    ],
)
def test_a_note_says_so_only_where_the_data_come_from_another_environment(
    named: str, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = gym.envs.registration.EnvSpec(
        "OtherPendulum-v0", entry_point=gym.spec("Pendulum-v1").entry_point
    )
    monkeypatch.setitem(gym.registry, other.id, other)
    assert prepare(load_config("pendulum-random", [f"evaluation.env_id={named}"])).env_note == note


def test_a_device_that_is_not_there_is_a_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own message on a missing backend has thousands of characters in its first line."""

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("Could not run 'aten::empty'. This could be " + 999 * "because ")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(ValueError, match=r"'mps' cannot be used here \(Could .*::empty'\): set"):
        prepare(load_config("pendulum-random", ["device=mps"]))


@pytest.mark.parametrize("words", [["iterations=2"], ["adversary.weight=0"]])
def test_a_run_too_short_for_its_adversary_is_warned_of(words: list[str]) -> None:
    with pytest.warns(UserWarning, match="iterations = 1: the adversary's updates come before"):
        prepare(load_config("pendulum-random", ["iterations=1"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(load_config("pendulum-random", ["iterations=1", *words]))


def test_a_policy_that_stays_the_clone_is_warned_of() -> None:
    words = ["iterations=10", "agent.critic_warmup"]
    with pytest.warns(UserWarning, match="= 10 only the critics learn"):
        prepare(load_config("pendulum-random", [words[0], f"{words[1]}=10"]))
    with pytest.warns(UserWarning, match="the policy stays as it was drawn"):
        prepare(load_config("pendulum-random", [words[0], f"{words[1]}=10", "cloning.epochs=0"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(load_config("pendulum-random", [words[0], f"{words[1]}=9"]))
        prepare(load_config("pendulum-random", [words[0], f"{words[1]}=10"]), resumed=True)


def test_an_environment_without_a_time_limit_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    env = "gymnasium.envs.classic_control.pendulum:PendulumEnv"
    gym.register("Endless-v0", env)
    try:
        with pytest.warns(UserWarning, match=r"Endless-v0 has no time limit \(max_episode_steps\)"):
            prepare(load_config("pendulum-random", ["evaluation.env_id=Endless-v0"]))
    finally:
        del gym.registry["Endless-v0"]
    recwarn.clear()
    prepare(load_config("pendulum-random"))
    assert not recwarn.list


def test_a_data_set_with_a_tilde_in_front_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    columns = ("observations", "actions", "rewards", "next_observations", "terminals")
    shapes = [(20, 3), (20, 1), 20, (20, 3), 20]
    arrays = dict(zip(columns, map(np.zeros, shapes), strict=True))
    np.savez(tmp_path / "~nosuch.npz", allow_pickle=False, env_id="Pendulum-v1", **arrays)
    config = load_config("base", ["dataset=~nosuch.npz", "model.termination=never"])
    assert prepare(config).resolved_config.dataset == str(tmp_path / "~nosuch.npz")
    assert compared_settings(config)["dataset"] == str(tmp_path / "~nosuch.npz")


def test_a_shuffled_log_is_warned_of_once_at_the_start(tmp_path: Path) -> None:
    data = load_dataset("pendulum-random")
    order = np.random.default_rng(0).permutation(len(data))[:300]
    keys = ("observations", "actions", "rewards", "next_observations", "terminations")
    np.savez(tmp_path / "log.npz", **{key: getattr(data, key)[order] for key in keys})
    words = [f"dataset={tmp_path / 'log.npz'}", "data.env_id=Pendulum-v1"]
    config = load_config("pendulum-random", words)
    with pytest.warns(UserWarning, match="rows do not follow one another"):
        prepare(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(config, resumed=True)
