"""Mutated files and made-up texts: the parsers read them or say no, and raise nothing else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adv_worldmodel import OfflineDataset, WorldModel, load_dataset, make_sb3_env
from adv_worldmodel.dynamics import Ensemble, make_termination
from adv_worldmodel.saved_folder import checksum
from agents import RAMBO
from agents.training.config import load_config
from tests.bad_inputs import columns, hdf5_bytes, npz_bytes

FUZZ = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
REFUSED = (ValueError, OSError)  #: FileNotFoundError among the latter


def reads(load: Callable[[], object]) -> None:
    """Anything but these errors, which the command line shows as one line, is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load()
        except REFUSED:
            return


@st.composite
def mutations(draw: st.DrawFn, whole: bytes, first: int | None = None) -> bytes:
    """Up to eight bytes changed, among the `first` ones; now and then cut or with bytes put in."""
    content = bytearray(whole)
    last = min(first or len(whole), len(whole)) - 1
    for _ in range(draw(st.integers(0, 8))):
        content[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    how = draw(st.sampled_from(["whole", "whole", "cut", "more"]))
    place = draw(st.integers(0, last))
    if how == "cut":
        return bytes(content[:place])
    if how == "more":
        return bytes(content[:place]) + draw(st.binary(max_size=16)) + bytes(content[place:])
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


NPZ = npz_bytes(**columns(), env_id="Pendulum-v1")
HDF5 = hdf5_bytes(lambda file: file.attrs.update(env_id="Pendulum-v1"))
YAML = """
extends: base
dataset: pendulum-random
seed: 3  # a number
out: "runs/mine"
agent: {gamma: 0.99, hidden_sizes: [16, 16], ent_coef: auto_0.1}
model: &m
  max_steps: null
  cache: true
rollout: {horizon: 5, policy: !!str current}
"""


@FUZZ
@given(content=mutations(NPZ))
def test_npz(content: bytes, folder: Path) -> None:
    (folder / "set.npz").write_bytes(content)
    reads(lambda: load_dataset(folder / "set.npz"))


@FUZZ
@given(content=mutations(HDF5, first=2500))
def test_hdf5(content: bytes, folder: Path) -> None:
    (folder / "set.hdf5").write_bytes(content)
    reads(lambda: load_dataset(folder / "set.hdf5"))


@FUZZ
@given(content=mutations(YAML.encode()))
def test_yaml(content: bytes, folder: Path) -> None:
    (folder / "mine.yaml").write_bytes(content)
    reads(lambda: load_config(folder / "mine.yaml"))


SCALARS = st.sampled_from(
    [
        "1",
        "-1",
        "0x_",
        "1e400",
        ".nan",
        "''",
        "null",
        "~",
        "*a",
        "&a|[*a]",
        "!!int|''",
        "!!bool|x",
        "!!timestamp|x",
        "2024-13-45",
        "!!float|''",
        "!!binary|é",
        "!!set|{a}",
        "!!omap|[a]",
        "?|[a]",
        '"\\ud800"',
        '"\\0"',
        "<<",
        "=",
        "1:99",
        "!x|y",
        "[1,[2]]",
        "{a:|{b:|c}}",
    ]
)
KEYS = st.sampled_from(
    [
        "dataset",
        "out",
        "seed",
        "agent",
        "model.hidden_sizes",
        "agent.ent_coef",
        "name",
        "device",
        "extends",
        "rollout.policy",
        "model.termination",
        "data.env_id",
        "a:",
        "1",
        "=",
        "<<",
    ]
)


@FUZZ
@given(lines=st.lists(st.tuples(KEYS, SCALARS), max_size=4), override=st.tuples(KEYS, SCALARS))
def test_settings(lines: list[tuple[str, str]], override: tuple[str, str], folder: Path) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in lines).replace("|", " ")
    (folder / "made.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    reads(lambda: load_config(folder / "made.yaml"))
    reads(lambda: load_config("pendulum-random", ["=".join(override).replace("|", " ")]))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, 10**400, -1, 0, float("nan"), float("inf"), "never", "inside"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def model_folder(folder: Path) -> Path:
    ensemble = Ensemble(2, 3, 3, (4,), torch.Generator().manual_seed(0))
    spaces = Box(-9.0, 9.0, (2,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    model = WorldModel(ensemble, make_termination("hopper", None), *spaces)
    model.termination = make_termination("never", None)
    model.save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def policy_folder(folder: Path, pendulum: OfflineDataset, fitted_once: WorldModel) -> Path:
    env = make_sb3_env(pendulum, 20, 3, world_model=fitted_once, device="cpu")
    kwargs = {"net_arch": [8]}
    agent = RAMBO("MlpPolicy", env, policy_kwargs=kwargs, seed=0, device="cpu")
    agent.save_weights(folder / "policy")
    return folder / "policy"


def inner(value: Any, path: list[int], new: Any) -> Any:
    """`value` with one thing in it, at any depth, exchanged."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    place = list(value)[path[0] % len(value)] if isinstance(value, dict) else path[0] % len(value)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place] = inner(copy[place], path[1:], new)
    return copy


PATHS = st.lists(st.integers(0, 20), min_size=1, max_size=3)


@FUZZ
@given(path=PATHS, new=VALUES)
def test_model_json(path: list[int], new: Any, model_folder: Path) -> None:
    """Without a SHA-256, as a stranger would write it."""
    file = model_folder / "model.json"
    whole = file.read_bytes()
    found = {key: value for key, value in json.loads(whole).items() if key != "sha256"}
    found["termination"] = {
        "kind": "inside",
        "bounds": [{"start": 0, "stop": 1, "low": 0.0, "high": 1.0, "closed": True}],
    }
    file.write_text(json.dumps(inner(found, path, new)))
    try:
        reads(lambda: WorldModel.load(model_folder, device="cpu"))
    finally:
        file.write_bytes(whole)


@FUZZ
@given(path=PATHS, new=VALUES)
def test_policy_json(path: list[int], new: Any, policy_folder: Path) -> None:
    """With the SHA-256 that fits."""
    file = policy_folder / "policy.json"
    whole = file.read_bytes()
    found = {key: value for key, value in json.loads(whole).items() if key != "sha256"}
    found = inner(found, path, new)
    found["sha256"] = checksum(found, (policy_folder / "policy.safetensors").read_bytes())
    file.write_text(json.dumps(found))
    try:
        reads(lambda: RAMBO.load_weights(policy_folder, "cpu"))
    finally:
        file.write_bytes(whole)
