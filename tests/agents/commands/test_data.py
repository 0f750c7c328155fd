"""`adv-worldmodel data`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from stable_baselines3 import SAC

from adv_worldmodel.data import load_dataset
from agents.cli import main
from agents.commands import collection
from agents.commands.collection import collect, load_policy, replayed, train_sac
from agents.commands.data import add_data_parser


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_data_parser(parser.add_subparsers())
    arguments = parser.parse_args(["data", *words])
    code = arguments.func(arguments)
    assert isinstance(code, int)
    return code


def save(path: Path) -> str:
    states = np.array([[0.0, 10.0], [1.0, 20.0], [2.5, 60.0]])  # the second's successor is 2.0
    np.savez(
        path,
        observations=states,
        next_observations=np.array([[1.0, 20.0], [2.0, 60.0], [3.0, 70.0]]),
        actions=np.array([[0.5], [-0.25], [0.0]]),
        rewards=np.array([1.0, 2.0, 4.0]),
        terminals=np.array([False, True, False]),
    )
    return str(path)


def test_info_prints_sizes_ranges_returns_and_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", save(tmp_path / "set.npz"), "--reward-offset", "-1") == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["transitions", "3", "in", "2", "episodes", "(1", "terminated,", "1", "truncated)"] in (
        printed
    )
    text = [" ".join(words) for words in printed]
    assert "episode return mean 3.5, std 0.5, min 3, max 4" in text
    assert "episode length mean 1.5, std 0.5, min 1, max 2" in text
    assert "reward offset -1 (in rewards, not in returns)" in text
    assert any(line.startswith("1 10 30 60 ") for line in text)  # second observation dimension
    assert any(line.startswith("0 -0.25 0.08333 0.5 ") for line in text)  # action


def test_info_says_where_action_bounds_are_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("info", save(tmp_path / "set.npz"))
    headings = [line for line in capsys.readouterr().out.splitlines() if "bounds" in line]
    assert [line.split()[0] for line in headings if line.endswith("(guessed)")] == ["action"]
    run("info", "pendulum-random")
    assert "guessed" not in capsys.readouterr().out


def test_list_names_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d4rl").mkdir()
    (tmp_path / "d4rl" / "hopper_medium-v2.hdf5").write_bytes(b"")
    run("to-minari", save(tmp_path / "set.npz"), "mine/three-v0")
    capsys.readouterr()
    assert run("list") == 0
    words = capsys.readouterr().out.split()
    for name in ("pendulum-random", "halfcheetah-medium-replay"):
        assert name in words
    assert "d4rl:hopper-medium-v2" in words
    assert "minari:mine/three-v0" in words


def test_a_reader_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`adv-worldmodel data list | true`."""
    source = save(tmp_path / "set.npz")
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert run("list") == 0
        assert run("info", source) == 0
        assert run("to-minari", source, "mine/three-v0") == 0
        with pytest.raises(BrokenPipeError):
            print("a line", flush=True)


def test_to_minari_writes_what_load_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "set.npz")
    with pytest.warns(UserWarning, match="the set states the guessed bounds of its actions"):
        assert run("to-minari", source, "mine/three-v0") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "minari" / "mine" / "three-v0")
    assert load_dataset("mine/three-v0").content_hash == load_dataset(source).content_hash


def test_errors_go_to_the_caller() -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run("info", "nowhere.npz")


def made(name: str, *options: str) -> int:
    return run("make", "Pendulum-v1", "--rows", "30", *options, "--id", name)


def test_make_writes_a_minari_set_that_says_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("make", "Pendulum", "--policy", "random", "--rows", "250", "--seed", "3") == 0
    summary, folder = capsys.readouterr().out.splitlines()
    assert folder == str(tmp_path / "minari" / "pendulum" / "random-v0")
    dataset = load_dataset("pendulum/random-v0")
    assert dataset.env_id == "Pendulum-v1"
    assert dataset.episode_lengths().tolist() == [200, 50]
    assert dataset.content_hash == collect("Pendulum-v1", [None], 250, seed=3).content_hash
    assert summary.startswith(
        "Pendulum-v1: 250 transitions in 2 episodes (0 terminated, 1 cut), return -"
    )


def test_an_only_episode_below_the_time_limit_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "short.npz")
    assert run("make", "Pendulum", "--policy", "random", "--rows", "30", "--npz", file) == 0
    assert "30 transitions in 1 episodes (0 terminated, 1 cut), return -" in capsys.readouterr().out
    assert np.isnan(load_dataset(file).behaviour_return)


def test_make_writes_the_same_rows_to_a_file(tmp_path: Path) -> None:
    words = ("make", "InvertedDoublePendulum-v5", "--policy", "random", "--rows", "60")
    assert run(*words, "--id", "mine/double-v0") == 0
    assert run(*words, "--npz", str(tmp_path / "new" / "double.npz")) == 0
    dataset = load_dataset(tmp_path / "new" / "double.npz")
    assert dataset.env_id == "InvertedDoublePendulum-v5"
    assert dataset.terminations.any()
    assert dataset.content_hash == load_dataset("mine/double-v0").content_hash


def test_made_files_state_their_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strong_pendulums.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Strong-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("make", "strong_pendulums:Strong-v0", "--policy", "random", "--rows", "9")
    assert run(*words, "--npz", str(tmp_path / "strong.npz")) == 0
    dataset = load_dataset(tmp_path / "strong.npz")
    assert dataset.env_id is None  # a file imports no module
    assert dataset.action_space == Box(-2.0, 2.0, (1,), np.float32)


def test_make_steps_an_environment_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pendulums_of_a_user.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('OfAUser-v3', 'gymnasium.envs.classic_control:PendulumEnv')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        collect("pendulums_of_a_user:OfAUser", [None], 3).env_id == "pendulums_of_a_user:OfAUser-v3"
    )
    assert run("make", "pendulums_of_a_user:OfAUser", "--policy", "random", "--rows", "3") == 0
    assert load_dataset("ofauser/random-v0").env_id == "OfAUser-v3"


@pytest.mark.parametrize("policy", ["random", "sac:110"])
def test_a_bug_of_the_users_environment_keeps_its_traceback(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_pendulums.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "class Broken(PendulumEnv):\n"
        "    def step(self, action):\n"
        "        raise ValueError('a bug')\n"
        "gymnasium.register('Broken-v0', Broken)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("data", "make", "broken_pendulums:Broken-v0", "--policy", policy, "--rows", "3")
    with pytest.raises(RuntimeError, match="broken_pendulums:Broken-v0 failed") as caught:
        main(words)
    assert str(caught.value.__cause__) == "a bug"


def test_make_trains_keeps_and_loads_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "medium.zip")
    assert made("mine/medium-v0", "--policy", "sac:110", "--save-policy", file) == 0
    assert made("mine/loaded-v0", "--policy", file) == 0
    medium, loaded = load_dataset("mine/medium-v0"), load_dataset("mine/loaded-v0")
    assert len(medium) == 30
    assert medium.content_hash == loaded.content_hash

    capsys.readouterr()
    words = ("make", "Pendulum-v1", "--policy", file, "--policy", "random", "--rows", "30")
    assert run(*words) == 0
    assert capsys.readouterr().out.strip().endswith("pendulum/medium-random-v0")
    both = load_dataset("pendulum/medium-random-v0")
    assert (both.actions[:15] == medium.actions[:15]).all()
    assert both.episode_lengths().tolist() == [15, 15]


def test_make_hands_its_options_on(tmp_path: Path) -> None:
    agent = train_sac("Pendulum-v1", 20, seed=1)
    agent.save(tmp_path / "agent.zip")
    file, settings = str(tmp_path / "agent.zip"), {"seed": 3, "deterministic": True, "noise": 0.05}
    options: list[tuple[list[str], dict[str, Any]]] = [
        (["--seed", "3"], {"seed": 3}),
        (["--deterministic"], {"deterministic": True}),
        (["--noise", "0.05"], {"noise": 0.05}),
        (["--seed", "3", "--deterministic", "--noise", "0.05"], settings),
    ]
    hashes = set()
    for number, (words, same) in enumerate(options):
        name = f"mine/options-v{number}"
        common = ("--policy", file, "--rows", "30", "--id", name)
        assert run("make", "Pendulum-v1", *common, *words) == 0
        found = load_dataset(name).content_hash
        assert found == collect("Pendulum-v1", [load_policy(file)], 30, **same).content_hash
        hashes.add(found)
    assert len(hashes) == len(options)
    words = ["--policy", "sac:20", "--replay", "--seed", "1", "--id", "mine/replay-v0"]
    assert run("make", "Pendulum-v1", *words) == 0
    expected = replayed(agent, "Pendulum-v1").content_hash
    assert load_dataset("mine/replay-v0").content_hash == expected


def test_make_writes_the_replay_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("make", "Pendulum-v1", "--policy", "sac:110", "--replay") == 0
    assert capsys.readouterr().out.strip().endswith("pendulum/sac-110-replay-v0")
    assert len(load_dataset("pendulum/sac-110-replay-v0")) == 110


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--policy random", "--rows N is missing"),
        ("--policy sac:many --rows 5", "whole number of at least 1"),
        ("--policy sac:0 --rows 5", "whole number of at least 1"),
        ("--policy expert --rows 5", "expert does not exist"),
        ("--policy random --replay", "--replay writes what SAC saw"),
        ("--policy sac:1000000 --policy random --replay", "--replay writes what SAC saw"),
        ("--policy sac:1000000 --replay --rows 5", "leave out --rows"),
        ("--policy random --rows 5 --noise 0.1", "random actions have none"),
        ("--policy sac:1000000 --rows 5 --noise -1", "at least 0"),
        ("--policy random --rows 5 --save-policy a.zip", "keeps one SAC"),
        ("--policy sac:1000000 --rows 5 --save-policy a.pt", "ends in .zip"),
        ("--policy sac:1000000 --rows 5 --npz a.csv", "ends in .npz"),
        ("--policy sac:1000000 --rows 5 --npz there.npz", "exists already"),
        ("--policy sac:1000000 --rows 5 --id pendulum", "is no Minari id"),
        ("--policy sac:1000000 --rows 5 --id mine/there-v0", "exists already"),
    ],
)
def test_make_refuses_before_it_trains(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "there.npz")
    (tmp_path / "minari" / "mine" / "there-v0").mkdir(parents=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("make", "Pendulum-v1", *options.split())


@pytest.mark.parametrize("blocked", ["file", "folder"])
def test_make_refuses_a_minari_folder_that_cannot_be_written_before_it_trains(
    blocked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "train_sac", lambda *_, **__: pytest.fail("it trained"))
    if blocked == "file":
        (tmp_path / "minari").write_text("")
    else:  # as root, every folder is writable
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}.* set MINARI_DATASETS_PATH"):
        made("mine/new-v0", "--policy", "sac:1000000")


def test_make_refuses_discrete_actions_and_policies_of_other_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="action space is Discrete"):
        run("make", "CartPole-v1", "--policy", "sac:1000000", "--rows", "5")
    file = tmp_path / "small.zip"
    SAC("MlpPolicy", "Pendulum-v1", device="cpu").save(file)
    words = ("--policy", str(file), "--policy", "sac:1000000", "--rows", "5")
    with pytest.raises(ValueError, match=r"policy .*small.zip's observation space"):
        run("make", "InvertedDoublePendulum-v5", *words)


def test_fewer_rows_than_policies_are_refused_before_sac_trains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each policy needs at least one"):
        run(
            "make", "Pendulum-v1", "--policy", "sac:100000000", "--policy", "random",
            "--rows", "1", "--npz", str(tmp_path / "x.npz"),
        )  # fmt: skip


def test_a_disk_that_is_full_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is repeated when there is room does not find a file there already."""

    def write_half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ("make", "Pendulum", "--policy", "sac:110", "--rows", "5")
    policy, file = tmp_path / "sac.zip", tmp_path / "set.npz"
    words += ("--save-policy", str(policy), "--npz", str(file))
    for owner, name in ((SAC, "save"), (np, "savez_compressed")):
        with monkeypatch.context() as full:
            full.setattr(owner, name, lambda *args, **_: write_half(args[-1]))
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                run(*words)
        assert not file.exists()
        assert policy.exists() == (owner is np)
        assert not list(tmp_path.glob(".*"))
        policy.unlink(missing_ok=True)
    assert run(*words) == 0
    assert len(load_dataset(file)) == 5
