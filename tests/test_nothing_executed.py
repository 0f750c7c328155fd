"""Files of strangers: a pickle in each place where one could hide, and none of them is opened."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adv_worldmodel import FitSettings, OfflineDataset, WorldModel, cached_world_model, load_dataset
from adv_worldmodel.data.minari_io import to_minari
from agents import RAMBO
from agents.cli import main
from agents.studies.run_groups import find_runs
from agents.training.config import load_config
from agents.training.evaluation import read_evaluations
from agents.training.experiment import train
from agents.training.run_folder import RunFolder
from tests.agents.tiny import TINY


class Bomb:
    """Opening its pickle creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    config = load_config("pendulum-random", [*TINY, f"out={out}"])
    return train(config, progress=False)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    """A run of one's own, to plant something in."""
    return RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))


# --- forms of the bomb --------------------------------------------------------------------------

Form = Callable[[Path], bytes]


def raw(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def of_torch(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "bomb": Bomb(marker)}, file)
    return file.getvalue()


def of_torch_before_its_zip(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Bomb(marker), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def npy(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb(marker)] * 3, dtype=object), allow_pickle=True)
    return file.getvalue()


def npz(marker: Path, *keys: str) -> bytes:
    arrays: dict[str, Any] = {
        "observations": np.zeros((3, 3)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3),
        "terminals": np.zeros(3, bool), "env_id": np.array("Pendulum-v1"),
    }  # fmt: skip
    for key in keys:
        arrays[key] = np.array([Bomb(marker)] * 3, dtype=object)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def yaml(marker: Path) -> bytes:
    return f"seed: !!python/object/apply:builtins.open [{marker}, w]\n".encode()


def yaml_object(marker: Path) -> bytes:
    return f"name: !!python/object/new:builtins.open {{args: [{marker}, w]}}\n".encode()


def zip_of_sb3(marker: Path) -> bytes:
    content = base64.b64encode(raw(marker)).decode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps({"bomb": {":type:": "x", ":serialized:": content}}))
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return file.getvalue()


ANY: tuple[Form, ...] = (raw, of_torch, of_torch_before_its_zip, npy, npz, zip_of_sb3)


def test_the_bombs_are_live(marker: Path) -> None:
    """Else the other tests could not fail."""
    openers: list[Callable[[], object]] = [
        lambda: pickle.loads(raw(marker)),
        lambda: torch.load(io.BytesIO(of_torch(marker)), weights_only=False),
        lambda: torch.load(io.BytesIO(of_torch_before_its_zip(marker)), weights_only=False),
        lambda: np.load(io.BytesIO(npy(marker)), allow_pickle=True),
        lambda: np.load(io.BytesIO(npz(marker, "rewards")), allow_pickle=True)["rewards"],
    ]
    for opener in openers:
        opener()
        assert marker.exists()
        marker.unlink()


# --- places -------------------------------------------------------------------------------------


def refuses(load: Callable[[], object], marker: Path, place: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load()
    assert not marker.exists()
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ANY)
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_in_a_world_model(form: Form, name: str, run: RunFolder, marker: Path) -> None:
    folder = run.adversarial_model
    (folder / name).write_bytes(form(marker))
    refuses(lambda: WorldModel.load(folder, device="cpu"), marker, str(folder))


@pytest.mark.parametrize("form", ANY)
@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
def test_in_a_policy(form: Form, name: str, run: RunFolder, marker: Path) -> None:
    (run.policy / name).write_bytes(form(marker))
    refuses(lambda: RAMBO.load_weights(run.policy, "cpu"), marker, str(run.policy))
    refuses(lambda: run.load_policy("cpu"), marker, str(run.policy))


@pytest.mark.parametrize("form", ANY)
def test_in_a_policy_whose_sum_is_right(form: Form, run: RunFolder, marker: Path) -> None:
    bomb = form(marker)
    (run.policy / "policy.safetensors").write_bytes(bomb)
    path = run.policy / "policy.json"
    found = json.loads(path.read_text())
    del found["sha256"]
    whole = json.dumps(found, sort_keys=True).encode() + b"\n" + bomb
    path.write_text(json.dumps(found | {"sha256": hashlib.sha256(whole).hexdigest()}))
    refuses(lambda: run.load_policy("cpu"), marker, "no safetensors file")


@pytest.mark.parametrize("form", ANY)
@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_in_a_data_set(form: Form, suffix: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / f"set{suffix}"
    path.write_bytes(form(marker) if form is not npz else npz(marker, "rewards"))
    refuses(lambda: load_dataset(path), marker, str(path))


@pytest.mark.parametrize("key", ["observations", "terminals", "env_id"])
def test_in_one_array_of_a_data_set(key: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(npz(marker, key))
    refuses(lambda: load_dataset(path), marker, str(path))


@pytest.mark.parametrize("form", ANY)
def test_in_what_a_run_found(form: Form, run: RunFolder, marker: Path) -> None:
    run.evaluations.write_bytes(form(marker))
    refuses(lambda: read_evaluations(run.path), marker, str(run.evaluations))
    run.result.write_bytes(form(marker))
    refuses(run.read_result, marker, str(run.result))
    refuses(lambda: find_runs([run.path]), marker, str(run.result))


@pytest.mark.parametrize("form", [*ANY, yaml, yaml_object])
def test_in_a_configuration(form: Form, run: RunFolder, marker: Path) -> None:
    run.config.write_bytes(form(marker))
    refuses(lambda: load_config(run.config), marker, str(run.config))
    refuses(lambda: find_runs([run.path]), marker, str(run.config))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("form", [raw, of_torch])
def test_in_the_cache_of_fits(
    form: Form, name: str, pendulum: OfflineDataset, tmp_path: Path, marker: Path
) -> None:
    """Nothing to refuse there: the model is fitted again, and takes the damaged one's place."""
    settings = FitSettings(n_networks=2, n_elites=2, hidden_sizes=(8,), max_steps=5)
    kwargs: dict[str, Any] = {"termination": "never", "device": "cpu"}
    cache = tmp_path / "cache"
    first = cached_world_model(pendulum, settings, **kwargs, cache_dir=cache)
    (folder,) = cache.iterdir()
    (folder / name).write_bytes(form(marker))
    second = cached_world_model(pendulum, settings, **kwargs, cache_dir=cache)
    assert not marker.exists()
    states = second.state_dict()
    assert all(torch.equal(states[key], value) for key, value in first.state_dict().items())
    WorldModel.load(folder, device="cpu")


def test_what_an_archive_calls_its_members_is_no_path(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    whole = io.BytesIO(npz(marker))
    with zipfile.ZipFile(whole, "a") as archive:
        for name in ("../escaped.npy", str(tmp_path / "absolute.npy")):
            archive.writestr(name, b"x")
    (folder / "set.npz").write_bytes(whole.getvalue())
    assert len(load_dataset(folder / "set.npz")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["sets"]
    assert [path.name for path in folder.iterdir()] == ["set.npz"]


# --- `evaluate`, and what only `--trust` opens --------------------------------------------------


def evaluate(run: RunFolder, *options: str) -> int:
    return main(["evaluate", str(run.path), "--episodes", "1", *options])


def test_evaluate_does_not_look_at_the_pickles(run: RunFolder, marker: Path) -> None:
    run.policy_zip.write_bytes(zip_of_sb3(marker))
    assert evaluate(run) == 0
    assert evaluate(run, "--trust") == 0
    assert not marker.exists()


@pytest.fixture
def module(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that Python finds and whose import creates the marker."""
    (tmp_path / "planted_module.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "planted_module"


def test_a_result_does_not_choose_what_is_imported(
    run: RunFolder, module: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run.read_result() | {"env_id": f"{module}:Pendulum-v1"}
    run.result.write_text(json.dumps(result))
    assert evaluate(run) == 2
    assert f"give --env {module}:Pendulum-v1, or --trust" in capsys.readouterr().err
    assert not marker.exists()
    assert evaluate(run, "--trust") == 0
    assert marker.exists()


# --- Minari's metadata --------------------------------------------------------------------------


@pytest.fixture
def metadata(line: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`metadata.json` of the Minari set mine/line-v0."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    to_minari(line, "mine/line-v0")
    return tmp_path / "minari" / "mine" / "line-v0" / "data" / "metadata.json"


def planted(env_id: str, marker: Path) -> str:
    """What Gymnasium takes as an environment: a function to call and its arguments."""
    fields: dict[str, Any] = dict.fromkeys(
        ("reward_threshold", "max_episode_steps", "vector_entry_point")
    )
    call = {"entry_point": "builtins:open", "kwargs": {"file": str(marker), "mode": "w"}}
    fixed = {"nondeterministic": False, "disable_env_checker": True, "additional_wrappers": []}
    return json.dumps({"id": env_id, **call, **fixed, **fields})


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_minari_does_not_build_the_environment_that_a_set_describes(
    missing: str, metadata: Path, marker: Path
) -> None:
    found = json.loads(metadata.read_text()) | {"env_spec": planted("Line-v0", marker)}
    metadata.write_text(json.dumps(found))
    load_dataset("mine/line-v0")  # states both spaces: nothing to build
    assert not marker.exists()
    del found[missing]
    metadata.write_text(json.dumps(found))
    refuses(lambda: load_dataset("mine/line-v0"), marker, f"does not state the {missing}")
    import minari

    with pytest.raises(Exception, match=r"gymnasium\.Env"):
        minari.load_dataset("mine/line-v0")
    assert marker.exists()  # Minari itself does


def test_a_minari_set_does_not_choose_what_is_imported(
    metadata: Path, module: str, marker: Path
) -> None:
    spec = planted(f"{module}:Line-v0", marker)
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"env_spec": spec}))
    with pytest.warns(UserWarning, match=f"names the environment '{module}:Line-v0'"):
        assert load_dataset("mine/line-v0").env_id is None
    assert not marker.exists()


def test_a_file_does_not_choose_what_is_imported(tmp_path: Path, module: str, marker: Path) -> None:
    with np.load(io.BytesIO(npz(marker))) as arrays:
        np.savez(tmp_path / "log.npz", **{**arrays, "env_id": np.array(f"{module}:Pendulum-v1")})
    with pytest.warns(UserWarning, match=f"names the environment '{module}:Pendulum-v1'"):
        assert load_dataset(str(tmp_path / "log.npz")).env_id is None
    assert not marker.exists()


@pytest.mark.parametrize("form", ANY)
@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
def test_in_a_minari_set(form: Form, name: str, metadata: Path, marker: Path) -> None:
    (metadata.parent / name).write_bytes(form(marker))
    refuses(lambda: load_dataset("mine/line-v0"), marker, "minari:mine/line-v0")
