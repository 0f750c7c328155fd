"""Minari sets: there and back, ids that are not there, spaces that do not fit."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import minari  # type: ignore[import-untyped]
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Space
from minari.data_collector import EpisodeBuffer  # type: ignore[import-untyped]
from minari.dataset.minari_storage import MinariStorage  # type: ignore[import-untyped]

from adv_worldmodel.data import OfflineDataset, from_minari, load_dataset, to_minari
from adv_worldmodel.data.minari_io import local_ids


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def no_network(dataset_id: str) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(minari, "download_dataset", no_network)
    return tmp_path / "minari"


def line(**changes: Any) -> OfflineDataset:
    """Two episodes, 0 -> 1 -> 2 (terminated), 5 -> 6 (cut); actions in [-2, 2]."""
    columns: dict[str, Any] = {
        "observations": [[0.0], [1.0], [5.0]],
        "actions": [[0.5], [-1.5], [1.0]],
        "rewards": [1.0, 2.0, 4.0],
        "next_observations": [[1.0], [2.0], [6.0]],
        "terminations": [False, True, False],
        "truncations": [False, False, True],
        "action_space": Box(-2.0, 2.0, (1,), np.float32),
        "name": "line",
    }
    return OfflineDataset.from_arrays(**(columns | changes))


def make(
    observations: Any,
    actions: Any,
    observation_space: Space[Any],
    action_space: Space[Any],
    flags: tuple[list[bool], list[bool]] = ([False, False], [False, True]),
) -> Any:
    episode = EpisodeBuffer(
        observations=observations,
        actions=actions,
        rewards=[0.0, 1.0],
        terminations=flags[0],
        truncations=flags[1],
    )
    return minari.create_dataset_from_buffers(
        "made/here-v0", [episode], observation_space=observation_space, action_space=action_space
    )


def test_there_and_back(folder: Path) -> None:
    dataset = line()
    to_minari(dataset, "mine/line-v0")
    assert local_ids() == ["mine/line-v0"]
    for source in ("mine/line-v0", "minari:mine/line-v0", minari.load_dataset("mine/line-v0")):
        back = load_dataset(source)
        assert back.content_hash == dataset.content_hash
        assert back.name == "minari:mine/line-v0"
    assert (folder / "mine" / "line-v0").is_dir()


def test_the_environment_goes_with_it() -> None:
    states = np.zeros((2, 3))
    pendulum = line(
        observations=states,
        next_observations=states,
        actions=[[0.0], [1.0]],
        rewards=[0.0, 0.0],
        terminations=[0, 0],
        truncations=[0, 1],
        env_id="Pendulum-v1",
    )
    to_minari(pendulum, "mine/pendulum-v0")
    assert load_dataset("mine/pendulum-v0").env_id == "Pendulum-v1"


def test_gaps_become_time_outs() -> None:
    dataset = line(terminations=[False, False, False], truncations=[False, False, False])
    to_minari(dataset, "mine/gap-v0")
    back = load_dataset("mine/gap-v0")
    np.testing.assert_array_equal(back.truncations, [False, True, True])
    np.testing.assert_array_equal(back.next_observations, dataset.next_observations)


def test_rounding_makes_no_gap() -> None:
    """Successors one unit of rounding off the next row, as a recorder may write them."""
    pendulum = load_dataset("pendulum-random")
    near = np.nextafter(pendulum.next_observations, np.float32(9))
    to_minari(replace(pendulum, next_observations=near), "mine/near-v0")
    back = load_dataset("mine/near-v0")
    np.testing.assert_array_equal(back.truncations, pendulum.truncations)
    assert back.behaviour_return == pytest.approx(pendulum.behaviour_return)


def test_goals_that_end_no_episode_come_back_as_such() -> None:
    """0 -> 1 -> 2 -> 3 with the goal at 2 and 3, then 5 -> 6."""
    dataset = line(
        observations=[[0.0], [1.0], [2.0], [5.0]],
        next_observations=[[1.0], [2.0], [3.0], [6.0]],
        actions=[[0.0]] * 4,
        rewards=[0.0, 1.0, 1.0, 0.0],
        terminations=[False, True, True, False],
        truncations=[False, False, False, True],
        goal_terminals=True,
    )
    to_minari(dataset, "mine/goals-v0")
    back = load_dataset("mine/goals-v0")
    assert back.goal_terminals
    assert not load_dataset(to_minari(line(), "mine/line-v0")).goal_terminals
    for data in (dataset, back):
        np.testing.assert_array_equal(data.episode_lengths(), [3, 1])
        np.testing.assert_array_equal(data.episode_returns(), [2.0, 0.0])


def test_a_set_that_fails_half_way_leaves_its_id_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MinariStorage, "update_metadata", full)
        with pytest.raises(OSError, match="no space"):
            to_minari(line(), "mine/line-v0")
    assert local_ids() == []
    to_minari(line(), "mine/line-v0")


def test_an_existing_or_malformed_id_is_not_written() -> None:
    to_minari(line(), "mine/line-v0")
    with pytest.raises(ValueError, match="exists already"):
        to_minari(line(), "mine/line-v0")
    for wrong in ("mine/line", "../line-v0", "/line-v0", "a b-v0"):
        with pytest.raises(ValueError, match="is no Minari id"):
            to_minari(line(), wrong)


@pytest.mark.filterwarnings("ignore")
def test_float64_and_unclosed_episodes() -> None:
    box = Box(-10.0, 10.0, (1,), np.float64)
    made = make(
        np.array([[0.0], [1.0], [2.0]]),
        np.array([[0.0], [3.0]]),
        box,
        box,
        flags=([False, False], [False, False]),
    )
    dataset = from_minari(made)
    assert dataset.observations.dtype == np.float32
    np.testing.assert_array_equal(dataset.next_observations, [[1.0], [2.0]])
    np.testing.assert_array_equal(dataset.truncations, [False, True])


def test_a_filtered_set_gives_its_episodes_only() -> None:
    made = to_minari(line(), "mine/line-v0")
    assert len(from_minari(made.filter_episodes(lambda episode: episode.id == 1))) == 1
    with pytest.raises(ValueError, match=r"empty \(no episodes\)"):
        from_minari(made.filter_episodes(lambda episode: False))


@pytest.mark.parametrize(
    ("observations", "actions", "observation_space", "action_space", "message"),
    [
        (np.zeros((3, 1)), np.array([0, 1]), Box(-1, 1, (1,)), Discrete(2), "action space is Disc"),
        (
            {"a": np.zeros((3, 1), np.float32)},
            np.zeros((2, 1), np.float32),
            Dict({"a": Box(-1, 1, (1,))}),
            Box(-1, 1, (1,)),
            "observation space is Dict",
        ),
        (
            np.zeros((3, 1), np.float32),
            np.array([[0.0], [np.nan]], np.float32),
            Box(-1, 1, (1,)),
            Box(-1, 1, (1,)),
            "'actions' row 1 dimension 0 is nan",
        ),
        (
            np.zeros((3, 1), np.float32),
            np.array([[0.0], [1.5]], np.float32),
            Box(-1, 1, (1,)),
            Box(-1, 1, (1,)),
            "'actions' row 1 dimension 0 is 1.5, outside",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refusals(
    observations: Any,
    actions: Any,
    observation_space: Space[Any],
    action_space: Space[Any],
    message: str,
) -> None:
    made = make(observations, actions, observation_space, action_space)
    with pytest.raises(ValueError, match=f"minari:made/here-v0: .*{message}"):
        load_dataset(made)


def test_ids_that_are_not_there_list_near_ones(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No Minari data set is in"):
        load_dataset("minari:mine/line-v0")
    assert not folder.exists()  # looking leaves nothing behind
    to_minari(line(), "mine/line-v0")
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("mine/lime-v0")
    assert "(no network)" in str(error.value)
    assert "Near local ids: mine/line-v0" in str(error.value)
    assert "\n" not in str(error.value)


def test_misspelt_names_meet_the_built_in_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"Did you mean pendulum-random\?"):
        load_dataset("pendulum-randon")


def test_a_d4rl_name_without_its_prefix_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(minari, "download_dataset", asked.append)
    with pytest.raises(FileNotFoundError, match=r"'hopper-medium-v2' .* name it d4rl:hopper-med"):
        load_dataset("hopper-medium-v2")
    assert asked == []
    to_minari(line(), "hopper-medium-v2")  # a set of one's own may have that id
    assert load_dataset("hopper-medium-v2").name == "minari:hopper-medium-v2"


def test_a_download_that_fails_says_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(hub, "propagate", True)
    monkeypatch.setattr(hub, "level", logging.WARNING)

    def no_network(dataset_id: str) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no network")

    monkeypatch.setattr(minari, "download_dataset", no_network)
    with pytest.raises(FileNotFoundError, match="no network"):
        load_dataset("mine/line-v0")
    assert caplog.records == []
    assert hub.level == logging.WARNING


def test_a_truncated_set_is_told(folder: Path) -> None:
    to_minari(line(), "mine/line-v0")
    path = folder / "mine" / "line-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"mine/line-v0: .*cannot be read.*again"):
        load_dataset("mine/line-v0")


def test_files_alone_need_no_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    assert len(load_dataset("pendulum-random")) == 20_000


def test_flags_may_be_numbers() -> None:
    episode = EpisodeBuffer(
        observations=np.zeros((3, 1)),
        actions=np.zeros((2, 1)),
        rewards=np.zeros(2),
        terminations=np.array([0.0, 1.0]),
        truncations=np.array([0, 0]),
    )
    box = Box(-1.0, 1.0, (1,), np.float32)
    written = minari.create_dataset_from_buffers(
        "made/numbers-v0", [episode], observation_space=box, action_space=box
    )
    assert load_dataset(written).terminations.tolist() == [False, True]


def test_lost_terminations_stay_known() -> None:
    """Without successors in the file the failures are lost; the returns of their episodes not."""
    lost = replace(line(terminations=[False] * 3), terminations_lost=True)
    back = load_dataset(to_minari(lost, "mine/lost-v0"))
    assert back.terminations_lost
    assert back.behaviour_return == lost.behaviour_return
    assert load_dataset("mine/lost-v0").terminations_lost
    assert not load_dataset(to_minari(line(), "mine/line-v0")).terminations_lost


def test_rows_in_no_order_are_told_to_be_slow() -> None:
    shuffled = line(next_observations=[[3.0], [2.0], [6.0]], terminations=[False] * 3)
    with pytest.warns(UserWarning, match="rows do not follow one another, so that each becomes"):
        to_minari(shuffled, "mine/shuffled-v0")
