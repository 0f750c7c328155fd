"""`adv-worldmodel data`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from adv_worldmodel.data import load_dataset
from agents.data_commands import add_data_parser


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
    states = np.array([[0.0, 10.0], [1.0, 20.0], [2.0, 60.0]])
    np.savez(
        path,
        observations=states,
        next_observations=np.vstack([states[1:], [[3.0, 70.0]]]),
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


def test_to_minari_writes_what_load_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "set.npz")
    assert run("to-minari", source, "mine/three-v0") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "minari" / "mine" / "three-v0")
    assert load_dataset("mine/three-v0").content_hash == load_dataset(source).content_hash


def test_errors_go_to_the_caller() -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run("info", "nowhere.npz")
