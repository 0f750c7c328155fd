"""The cache of fits serves an equal model or none."""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adv_worldmodel
from adv_worldmodel import OfflineDataset, load_dataset, make_termination
from adv_worldmodel.dynamics import fit_cache, fitting
from adv_worldmodel.dynamics.fit_cache import cached_world_model, default_cache_dir
from adv_worldmodel.dynamics.fitting import FitSettings, fit_world_model
from adv_worldmodel.dynamics.world_model import WorldModel

SMALL = FitSettings(n_networks=3, n_elites=2, hidden_sizes=(8,), batch_size=64, max_steps=20)


def equal(first: WorldModel, second: WorldModel) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cached(data: OfflineDataset, folder: Path, settings: FitSettings = SMALL) -> WorldModel:
    return cached_world_model(data, settings, termination="never", device="cpu", cache_dir=folder)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry with each real fit."""
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> WorldModel:
        calls.append(len(calls))
        return fit_world_model(*args, **kwargs)

    monkeypatch.setattr(fit_cache, "fit_world_model", counted)
    return calls


def test_second_fit_comes_from_the_cache(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset
) -> None:
    first, second = cached(pendulum, tmp_path), cached(replace(pendulum, name="renamed"), tmp_path)
    assert len(fits) == 1
    assert equal(first, second)
    of_second = {"settings": first.fit_info["settings"], "dataset": pendulum.name}
    assert second.fit_info["dataset"] == "renamed"
    assert first.fit_info == second.fit_info | of_second
    assert second.split(pendulum)[1].tolist() == first.holdout_rows.tolist()


def test_a_rule_that_was_made_is_cached_like_its_name(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset
) -> None:
    cached(pendulum, tmp_path)
    rule = make_termination("never", None)
    model = cached_world_model(pendulum, SMALL, termination=rule, device="cpu", cache_dir=tmp_path)
    assert len(fits) == 1
    model.save(tmp_path / "saved")
    assert WorldModel.load(tmp_path / "saved").termination.spec == rule.spec


def test_data_may_be_named(tmp_path: Path, fits: list[int]) -> None:
    first, second = (
        cached_world_model(data, SMALL, device="cpu", cache_dir=tmp_path)
        for data in ("pendulum-random", load_dataset("pendulum-random"))
    )
    assert len(fits) == 1
    assert equal(first, second)
    with pytest.raises(TypeError, match=r"settings are dict: expected FitSettings\(...\)"):
        fit_world_model("pendulum-random", {"max_steps": 3})  # type: ignore[arg-type]


def test_without_a_home_there_is_a_folder_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "ADV_WORLDMODEL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no user has one
    assert default_cache_dir() == Path("~/.cache/adv-worldmodel")


def test_flags_that_the_rule_contradicts_are_warned_of_with_and_without_a_fit(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset
) -> None:
    limits = replace(pendulum, terminations=pendulum.truncations, truncations=pendulum.terminations)
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"5 of 1,000 rows .* \(Pendulum-v1\) says none"
        ) as caught:
            cached_world_model(limits, SMALL, device="cpu", cache_dir=tmp_path)
        assert len(caught) == 1
    assert len(fits) == 1


def test_what_a_fit_warns_of_is_said_without_one_too(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "DIVERGED_ERROR", math.inf)
    rewards = pendulum.rewards.copy()
    rewards[5] = 1e5
    spiked = replace(pendulum, rewards=rewards)
    poor = replace(SMALL, learning_rate=0.3, hidden_sizes=(32, 32, 32, 32), max_steps=60)
    for data, settings, message in (
        (spiked, SMALL, "row 5 alone makes the scale of 'rewards'"),
        (pendulum, poor, "predicts held-out data worse than their mean"),
    ):
        for _ in range(2):
            with pytest.warns(UserWarning, match=message):
                cached(data, tmp_path, settings)
    assert len(fits) == 2


def test_a_quicker_process_s_entry_stays(
    tmp_path: Path, pendulum: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Path] = []

    def raced(*args: Any, **kwargs: Any) -> WorldModel:
        model = fit_world_model(*args, **kwargs)
        monkeypatch.setattr(fit_cache, "fit_world_model", fit_world_model)
        cached(pendulum, tmp_path)  # another, which is done before this one saves
        first.extend(tmp_path.glob("fit-*/model.safetensors"))
        first.append(first[0].stat().st_ino)  # type: ignore[arg-type]
        return model

    monkeypatch.setattr(fit_cache, "fit_world_model", raced)
    cached(pendulum, tmp_path)
    assert first[0].stat().st_ino == first[1]  # type: ignore[comparison-overlap]


def test_a_file_in_an_entry_s_place_is_replaced(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset
) -> None:
    cached(pendulum, tmp_path)
    (entry,) = tmp_path.iterdir()
    shutil.rmtree(entry)
    entry.write_text("no fit")
    cached(pendulum, tmp_path)
    cached(pendulum, tmp_path)
    assert len(fits) == 2


def test_other_data_settings_and_rules_are_fitted_anew(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset, line: OfflineDataset
) -> None:
    cached(pendulum, tmp_path)
    cached(line, tmp_path)
    cached(pendulum, tmp_path, replace(SMALL, seed=1))
    cached_world_model(pendulum, SMALL, termination="halfcheetah", device="cpu", cache_dir=tmp_path)
    assert len(fits) == 4
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_damaged_cache_is_fitted_again(
    tmp_path: Path, fits: list[int], name: str, damage: str, pendulum: OfflineDataset
) -> None:
    first = cached(pendulum, tmp_path)
    file = next(tmp_path.glob(f"*/{name}"))
    content = b"" if damage == "empty" else file.read_bytes()[:200]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content)
    assert equal(first, cached(pendulum, tmp_path))
    assert equal(first, cached(pendulum, tmp_path))
    assert len(fits) == 2  # the third came from the mended cache


def test_entry_lost_from_the_cached_description_is_fitted_again(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset
) -> None:
    cached(pendulum, tmp_path)
    file = next(tmp_path.glob("*/model.json"))
    description = json.loads(file.read_text())
    del description["fit_info"]
    file.write_text(json.dumps(description))
    cached(pendulum, tmp_path)
    assert len(fits) == 2


def test_functions_are_not_cached(tmp_path: Path, pendulum: OfflineDataset) -> None:
    cached_world_model(
        pendulum,
        SMALL,
        termination="never",
        reward_function=lambda obs, action, next_obs: obs[:, 0],
        device="cpu",
        cache_dir=tmp_path,
    )
    cached_world_model(
        pendulum,
        SMALL,
        termination=lambda obs, action, next_obs: obs[:, 0] > 0,
        device="cpu",
        cache_dir=tmp_path,
    )
    assert list(tmp_path.iterdir()) == []


def test_concurrent_fits_leave_one_good_entry(tmp_path: Path, pendulum: OfflineDataset) -> None:
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: cached(pendulum, tmp_path), range(3)))
    assert equal(models[0], models[1])
    assert equal(models[0], models[2])
    assert equal(models[0], cached(pendulum, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1


def test_loser_of_a_race_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pendulum: OfflineDataset
) -> None:
    # Another process puts its model there just after this one has cleared the place.
    first = cached(pendulum, tmp_path)
    entry = next(tmp_path.iterdir())
    (entry / "model.json").unlink()

    def undo_clearing(folder: Path, **_: Any) -> None:
        if Path(folder) == entry:
            first.save(entry)
        else:
            remove(folder, ignore_errors=True)

    remove = fit_cache.shutil.rmtree
    monkeypatch.setattr(fit_cache.shutil, "rmtree", undo_clearing)
    assert equal(cached(pendulum, tmp_path), first)
    assert list(tmp_path.iterdir()) == [entry]


def test_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, pendulum: OfflineDataset
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="the fit is not kept for later runs: .*file"):
        assert cached(pendulum, tmp_path / "file").n_members == 2


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADV_WORLDMODEL_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("ADV_WORLDMODEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "adv-worldmodel"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path, pendulum: OfflineDataset) -> None:
    mask = os.umask(0o022)
    try:
        cached(pendulum, tmp_path)
    finally:
        os.umask(mask)
    (folder,) = tmp_path.iterdir()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {folder.name: 0o755, "model.json": 0o644, "model.safetensors": 0o644}


def test_a_fit_that_may_not_be_read_is_made_anew(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> WorldModel:
        raise PermissionError("another user's")

    cached(pendulum, tmp_path)
    monkeypatch.setattr(WorldModel, "load", refuse)
    cached(pendulum, tmp_path)
    assert len(fits) == 2


def test_numbers_of_numpy_are_settings_too(tmp_path: Path, pendulum: OfflineDataset) -> None:
    settings = replace(
        SMALL, seed=np.int64(3), max_steps=np.int64(2), hidden_sizes=[np.int32(8)],
        learning_rate=np.float32(1e-3), improvement=np.float32(0.01),
    )  # fmt: skip
    cached(pendulum, tmp_path, settings)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_fit_by_another_version_or_on_another_kind_of_device_is_not_this_one(
    tmp_path: Path, fits: list[int], pendulum: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(pendulum, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(adv_worldmodel, "__version__", "0.0.1")
        cached(pendulum, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fit_cache, "resolve_device", lambda device: torch.device("cuda", 1))
        cached(pendulum, tmp_path)
    assert len(fits) == 3
    cached(pendulum, tmp_path)
    assert len(fits) == 3
