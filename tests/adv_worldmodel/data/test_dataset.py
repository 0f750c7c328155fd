"""OfflineDataset: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Space

from adv_worldmodel.data import OfflineDataset, load_dataset
from adv_worldmodel.data.summary import describe
from tests.adv_worldmodel.data.two_episodes import arrays


def test_arrays_are_float32_copies_that_cannot_be_written() -> None:
    source = arrays()
    dataset = OfflineDataset.from_arrays(**source)
    assert dataset.observations.dtype == np.float32
    assert dataset.terminations.dtype == np.bool_
    source["observations"][0, 0] = 9.0
    assert dataset.observations[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        dataset.actions[0, 0] = 0.0


def test_float32_input_stays_writable_for_its_owner() -> None:
    source = arrays(observations=np.zeros((3, 1), np.float32))
    OfflineDataset.from_arrays(**source)
    source["observations"][0, 0] = 1.0


def test_returns_and_lengths_by_hand() -> None:
    dataset = OfflineDataset.from_arrays(**arrays())
    np.testing.assert_array_equal(dataset.episode_returns(), [3.0, 4.0])
    np.testing.assert_array_equal(dataset.episode_lengths(), [2, 1])
    assert dataset.behaviour_return == 3.5
    assert len(dataset) == 3


def episodes(*lengths: int, terminated: tuple[int, ...] = ()) -> OfflineDataset:
    """Episodes of these lengths with a reward of 1 for each step; cut, but for those terminated."""
    size, ends = sum(lengths), np.cumsum(lengths) - 1
    states = np.arange(size + 1.0)[:, None]
    terminations = np.isin(np.arange(size), ends[list(terminated)])
    truncations = np.isin(np.arange(size), ends) & ~terminations
    actions = np.linspace(-1, 1, size)[:, None]
    return OfflineDataset.from_arrays(
        states[:-1], actions, np.ones(size), states[1:], terminations, truncations
    )


def test_a_last_episode_that_the_recording_cut_is_not_in_the_behaviour_s_return() -> None:
    assert episodes(1000, 500).behaviour_return == 1000
    assert episodes(1000, 500).episode_returns().tolist() == [1000, 500]
    # shares of two policies: the time limit is 200
    assert episodes(200, 50, 200, 50).whole_episodes().tolist() == [True, False, True, False]
    assert episodes(200, 50, 200, 50).behaviour_return == 200
    assert episodes(200, 50, 200, terminated=(1,)).behaviour_return == 150  # it ended by itself
    assert episodes(90, 50, 70).behaviour_return == 70  # no limit is to be seen: the last alone
    assert episodes(1000, 300, 500, terminated=(1,)).behaviour_return == 650
    # whole ones: the only one, one that terminated, one as long as the time limit allows
    assert episodes(500).behaviour_return == 500
    assert episodes(1000, 500, terminated=(1,)).behaviour_return == 750
    assert episodes(1000, 1000).behaviour_return == 1000
    # nothing says how long the last one could have been
    assert episodes(300, 500, terminated=(0,)).behaviour_return == 400


def test_where_the_environment_would_have_gone_on_every_truncated_episode_is_cut() -> None:
    def known(*lengths: int, terminated: tuple[int, ...] = ()) -> OfflineDataset:
        return replace(episodes(*lengths, terminated=terminated), env_id="MountainCarContinuous-v0")

    assert np.isnan(known(50).behaviour_return)  # its limit is 999
    assert np.isnan(known(90, 50, 70).behaviour_return)
    assert known(90, 150, 30, terminated=(1,)).behaviour_return == 150
    assert np.isnan(known(90, 50, 70, terminated=(1,)).behaviour_return)  # of those that failed
    assert known(999).behaviour_return == 999
    assert known(999, 50, 30).behaviour_return == 999
    assert known(998, 998, 500).behaviour_return == 998  # without their last successors
    assert known(1200, 999, 999).behaviour_return == 1066
    # environments side by side, whose recording ended: nobody knows what a whole one returns
    assert np.isnan(known(300, 300).behaviour_return)


def test_a_description_is_of_whole_episodes() -> None:
    assert "episode return mean 200, std 0" in describe(episodes(200, 200, 50))
    assert "3 truncated, 1 of them cut by the recording" in describe(episodes(200, 200, 50))
    fallen = replace(episodes(300, 20, 300, terminated=(1,)), env_id="MountainCarContinuous-v0")
    assert "2 of them cut by the recording" in describe(fallen)
    assert "episode return mean 206.667" in describe(fallen)  # not of the one that fell
    one = replace(episodes(50), env_id="MountainCarContinuous-v0")
    assert "1 truncated, 1 of them cut by the recording" in describe(one)
    assert "episode return mean 50" in describe(one)  # of what there is
    row = OfflineDataset.from_arrays([[0.5]], [[0.5]], [1.0], [[0.5]], [False])
    assert "do not follow one another" not in describe(row)


def test_a_shuffled_log_has_no_episodes_to_speak_of() -> None:
    dataset = episodes(50, 50)
    assert dataset.in_order
    order = np.random.default_rng(0).permutation(100)
    keys = ("observations", "actions", "rewards", "next_observations", "terminations")
    shuffled = OfflineDataset.from_arrays(**{key: getattr(dataset, key)[order] for key in keys})
    assert not shuffled.in_order
    assert np.isnan(shuffled.behaviour_return)
    ends = range(60)  # a task of one step is in order
    assert episodes(*[1] * 60, terminated=tuple(ends)).behaviour_return == 1.0


def test_unclosed_last_episode_counts_only_if_it_is_the_only_one() -> None:
    closed, none = OfflineDataset.from_arrays(**arrays()), np.zeros(3, bool)
    np.testing.assert_array_equal(replace(closed, truncations=none).episode_returns(), [3.0])
    never = replace(closed, truncations=none, terminations=none)
    np.testing.assert_array_equal(never.episode_returns(), [7.0])


def test_time_outs_are_inferred_where_a_successor_is_not_the_next_row() -> None:
    columns = arrays(terminations=np.zeros(3, bool))
    del columns["truncations"]
    dataset = OfflineDataset.from_arrays(**columns)
    np.testing.assert_array_equal(dataset.truncations, [False, True, True])
    assert not dataset.terminations.any()


def chains(**changes: Any) -> dict[str, Any]:
    """Five chains of 20 rows on a line, of which no flag says where they end."""
    states = (100.0 * np.arange(5)[:, None] + np.arange(20)).reshape(-1, 1)
    columns = {
        "observations": states,
        "actions": np.linspace(-1, 1, 100)[:, None],
        "rewards": np.ones(100),
        "next_observations": states + 1,
        "terminations": np.zeros(100, bool),
        "truncations": np.zeros(100, bool),
    }
    return columns | changes


def test_flags_that_miss_the_gaps_do_not_run_episodes_together() -> None:
    dataset = OfflineDataset.from_arrays(**chains())
    assert dataset.episode_lengths().tolist() == [20] * 5
    # a flag between gaps, at a time limit that no reset follows, still counts
    halfway = OfflineDataset.from_arrays(**chains(truncations=np.arange(100) == 9))
    assert halfway.episode_lengths().tolist() == [10, 10, 20, 20, 20, 20]
    # a terminal row is not cut as well
    ended = OfflineDataset.from_arrays(**chains(terminations=np.arange(100) == 39))
    assert ended.episode_lengths().tolist() == [20] * 5
    assert np.flatnonzero(ended.truncations).tolist() == [19, 59, 79, 99]
    # in no order (here the first of each chain, the second of each, ...) a row is an episode
    mixed = {
        key: column[np.arange(100).reshape(5, 20).T.ravel()] for key, column in chains().items()
    }
    assert OfflineDataset.from_arrays(**mixed).episode_lengths().tolist() == [1] * 100


def test_reward_offset_moves_rewards_but_not_returns() -> None:
    dataset = OfflineDataset.from_arrays(**arrays()).with_reward_offset(-1.0)
    np.testing.assert_array_equal(dataset.rewards, [0.0, 1.0, 3.0])
    np.testing.assert_array_equal(dataset.episode_returns(), [3.0, 4.0])
    for wrong in (float("nan"), "1"):
        with pytest.raises(ValueError, match=f"reward_offset is {wrong!r}; expected a finite"):
            dataset.with_reward_offset(wrong)  # type: ignore[arg-type]
    assert type(dataset.with_reward_offset(np.float32(0.5)).reward_offset) is float  # as JSON knows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": [[0.0], [np.nan], [5.0]]}, "'observations' row 1 dimension 0 is nan"),
        ({"rewards": [1.0, 2.0, np.inf]}, "'rewards' row 2 is inf"),
        ({"rewards": [1.0, 1e300, 2.0]}, "'rewards' row 1 is 1e.300"),
        ({"rewards": [1.0, 2.0]}, "'rewards' has 2 rows but 'observations' has 3"),
        ({"truncations": [True]}, "'truncations' has 1 rows but 'observations' has 3"),
        ({"next_observations": [[1.0, 2.0]] * 3}, "has 2 dimensions per row but 'observations'"),
        ({"observations": [0.0, 1.0, 5.0]}, r"'observations' has shape \(3,\).*reshape\(-1, 1\)"),
        ({"actions": np.zeros((3, 2, 2))}, r"'actions' has shape \(3, 2, 2\).*Flatten"),
        ({"rewards": np.zeros((3, 2))}, r"'rewards' has shape \(3, 2\)"),
        ({"terminations": [0, 2, 0]}, "'terminations' row 1 is 2; expected true or false"),
        ({"actions": [["a"], ["b"], ["c"]]}, "'actions' has dtype <U1; expected numbers"),
        ({"rewards": [[1.0], [2.0, 3.0], [4.0]]}, "'rewards' is not a rectangular array"),
        (
            {"rewards": torch.zeros(3, requires_grad=True)},
            "'rewards' is not a rectangular array of numbers .*requires grad",
        ),
        ({"rewards": torch.zeros(3, dtype=torch.bfloat16)}, "'rewards' is not .*BFloat16"),
        (
            {"actions": [[0.0], [2.5], [0.0]], "action_space": Box(-2, 2, (1,))},
            r"'actions' row 1 dimension 0 is 2.5, outside the bounds \[-2, 2\]",
        ),
        (
            {"rewards": np.ma.masked_equal([1.0, -999.0, -999.0], -999.0)},
            r"'rewards' row 1 is masked \(2 masked numbers\). Drop",
        ),
        (
            {"observations": np.ma.masked_greater([[0.0], [1.0], [5.0]], 4.0)},
            "'observations' row 2 is masked",
        ),
        ({"terminations": np.ma.array([0, 1, 0], mask=[1, 0, 0])}, "'terminations' row 0 is mas"),
        ({"action_space": Box(-1, 1, (2,))}, "'actions' has 1 dimensions.*action space.* has 2"),
        ({"observation_space": Box(-1, 1, (3,))}, "the observation space' has 3"),
        ({"actions": np.array([[0], [1], [0]])}, "'actions' has dtype int64, .*cast them to float"),
        ({"actions": np.array([0, 1, 0])}, "'actions' has dtype int64, .*cast them to float"),
        ({"actions": np.eye(3, dtype=bool)}, "'actions' has dtype bool, .*cast them to float"),
        ({"actions": np.zeros((3, 1), np.uint8), "env_id": "Elsewhere-v0"}, "has dtype uint8"),
        ({"action_space": Box(-1, 1, (1,), np.int64)}, "is a Box of int64.*Box of float32"),
        ({"action_space": Discrete(3)}, "action space is Discrete; expected a flat Box"),
        ({"observation_space": Dict({"a": Box(0, 1)})}, "observation space is Dict.*Flatten"),
        ({"observation_space": Box(0, 1, (2, 2))}, r"observation space has shape \(2, 2\)"),
        ({"action_space": Box(-np.inf, np.inf, (1,))}, "infinite bounds"),
        ({"action_space": Box(1.0, 1.0, (1,))}, "without room"),
    ],
)
def test_refusals_name_key_row_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)my data: .*{message}"):
        OfflineDataset.from_arrays(**arrays(**changes), name="my data")


def test_a_masked_array_without_masked_numbers_is_an_array() -> None:
    plain = OfflineDataset.from_arrays(**arrays())
    masked = {key: np.ma.array(array) for key, array in arrays().items()}
    dataset = OfflineDataset.from_arrays(**masked)
    assert dataset.content_hash == plain.content_hash
    assert not isinstance(dataset.rewards, np.ma.MaskedArray)


def test_whole_numbers_are_continuous_actions_where_the_space_says_so() -> None:
    whole = arrays(actions=[[0], [1], [-1]])
    stated = OfflineDataset.from_arrays(**whole, action_space=Box(-1, 1, (1,)))
    assert stated.actions.tolist() == [[0.0], [1.0], [-1.0]]
    states = {key: np.zeros((3, 3)) for key in ("observations", "next_observations")}
    pendulum = OfflineDataset.from_arrays(**whole | states, env_id="Pendulum-v1")
    assert pendulum.actions.tolist() == [[0.0], [1.0], [-1.0]]


def test_an_environment_in_place_of_its_id_is_told() -> None:
    columns, env = arrays(), gym.make("Pendulum-v1")
    message = "^Expected a Gymnasium id .*, got TimeLimit; .*env.spec.id.*$"
    with pytest.raises(ValueError, match=message):
        OfflineDataset.from_arrays(**columns, env_id=env)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_dataset("pendulum-random", env_id=env)  # type: ignore[arg-type]


def test_an_empty_data_set_is_refused() -> None:
    empty = {key: array[:0] for key, array in arrays().items()}
    with pytest.raises(ValueError, match="the data set is empty"):
        OfflineDataset.from_arrays(**empty)


def test_the_class_itself_checks_as_well() -> None:
    box = Box(-1.0, 1.0, (1,), np.float32)
    spaces: dict[str, Space[Any]] = {"observation_space": box, "action_space": box}
    with pytest.raises(ValueError, match="'actions' row 0 dimension 0 is 7"):
        OfflineDataset(**arrays(actions=[[7.0], [0.0], [0.0]]), **spaces)  # type: ignore[arg-type]


def test_content_hash_knows_content_and_not_names() -> None:
    dataset = OfflineDataset.from_arrays(**arrays(), name="one")
    same = OfflineDataset.from_arrays(**arrays(), name="two", env_id="Elsewhere-v0")
    assert dataset.content_hash == same.content_hash
    assert len(dataset.content_hash) == 64
    others = [
        OfflineDataset.from_arrays(**arrays(**{key: array + 1}))
        for key, array in arrays().items()
        if key not in ("actions", "terminations", "truncations")
    ]
    others.append(OfflineDataset.from_arrays(**arrays(truncations=[True, False, True])))
    others.append(OfflineDataset.from_arrays(**arrays(), action_space=Box(-2, 2, (1,))))
    hashes = {other.content_hash for other in others} | {dataset.content_hash}
    assert len(hashes) == len(others) + 1


def test_deepcopy_is_the_data_set_itself_and_repr_is_short() -> None:
    dataset = OfflineDataset.from_arrays(**arrays(), name="line")
    assert copy.deepcopy({"dataset": dataset})["dataset"] is dataset
    assert repr(dataset) == "OfflineDataset('line', 3 transitions)"


def test_memory_that_somebody_can_still_write_to_is_copied_and_other_memory_is_not() -> None:
    own = np.zeros((3, 1), np.float32)
    view = own[:]
    view.flags.writeable = False
    assert not np.shares_memory(
        OfflineDataset.from_arrays(**arrays(observations=view)).observations, own
    )
    own.flags.writeable = False
    assert np.shares_memory(
        OfflineDataset.from_arrays(**arrays(observations=view)).observations, own
    )


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_view_that_runs_backwards_is_copied() -> None:
    keys = ("observations", "actions", "rewards", "next_observations", "terminations")
    forwards = OfflineDataset.from_arrays(**arrays())
    views = {key: getattr(forwards, key)[::-1] for key in keys}
    backwards = OfflineDataset.from_arrays(**views)
    for key in keys:
        taken = torch.from_numpy(getattr(backwards, key)).numpy()
        np.testing.assert_array_equal(taken[::-1], getattr(forwards, key))
    packed = np.zeros(3, [("flag", "i1"), ("state", "f4", (1,))])  # numbers five bytes apart
    packed.flags.writeable = False
    dataset = OfflineDataset.from_arrays(**arrays(observations=packed["state"]))
    assert torch.from_numpy(dataset.observations).tolist() == [[0.0]] * 3


def walk(offset: float, dtype: type = np.float64) -> dict[str, Any]:
    """A random walk of changes of 0.1 around `offset`, and beside it a constant of float64's."""
    steps = 0.1 * np.random.default_rng(0).standard_normal(1001)
    states = np.stack([np.full(1001, 0.1), offset + np.cumsum(steps)], axis=1).astype(dtype)
    return {
        "observations": states[:-1],
        "actions": np.linspace(-1, 1, 1000)[:, None],
        "rewards": np.zeros(1000),
        "next_observations": states[1:],
        "terminations": np.zeros(1000, bool),
    }


def test_an_offset_that_float32_is_too_coarse_for_is_warned_of() -> None:
    message = r"mine: 'observations' dimension 1 is near 5.4e\+06 .* by 0.0978 a step.* an offset"
    with pytest.warns(UserWarning, match=message) as caught:
        OfflineDataset.from_arrays(**walk(5.4e6), name="mine")
    assert len(caught) == 1
    box = Box(-1.0, 1.0, (1,), np.float32)
    with pytest.warns(UserWarning, match="Subtract an offset"):
        OfflineDataset(
            **walk(5.4e6),
            truncations=np.zeros(1000, bool),
            observation_space=Box(-np.inf, np.inf, (2,), np.float32),
            action_space=box,
        )
    with pytest.warns(UserWarning, match="Subtract an offset"):  # 30 bits do not fit into 24
        OfflineDataset.from_arrays(**walk(2**30, np.int32))
    clock = walk(0.0)
    clock["observations"][:, 1] = 1.7e9 + 0.05 * np.arange(1000)  # all steps are alike
    clock["next_observations"] = clock["observations"] + [[0.0, 0.05]]
    with pytest.warns(UserWarning, match=r"near 1.7e\+09 and changes by 0.05 a step"):
        OfflineDataset.from_arrays(**clock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OfflineDataset.from_arrays(**walk(0.0))
        OfflineDataset.from_arrays(**walk(1000.0))  # moved by 2e-5
        OfflineDataset.from_arrays(**walk(5.4e6, np.float32))  # came as it is


def test_another_rounding_of_the_same_state_is_no_gap() -> None:
    """A recorder may take the successor from float64, and the next observation from float32."""
    states = np.linspace(1.0, 2.0, 7)[:, None] ** 0.5
    rounded = np.nextafter(states[1:].astype(np.float32), np.float32(2.0))  # one step of float32
    data = OfflineDataset.from_arrays(
        states[:-1], np.full((6, 1), 0.9), np.zeros(6), rounded, np.zeros(6, bool)
    )
    assert np.flatnonzero(data.truncations).tolist() == [5]
    rounded[2] += 1e-4
    data = OfflineDataset.from_arrays(
        states[:-1], np.full((6, 1), 0.9), np.zeros(6), rounded, np.zeros(6, bool)
    )
    assert np.flatnonzero(data.truncations).tolist() == [2, 5]


def test_a_goal_on_the_way_ends_no_episode() -> None:
    """AntMaze: terminations mark the rows at the goal, and the ant walks on."""
    states = np.array([0, 1, 2, 3, 10, 11, 12], np.float32)[:, None]
    columns = (
        states,
        np.zeros((7, 1)),
        [0, 1, 1, 1, 0, 0, 1],
        states + 1,
        [False, True, True, True, False, False, True],
        [False, False, False, False, False, False, False],
    )
    dataset = OfflineDataset.from_arrays(*columns, goal_terminals=True)
    assert dataset.episode_ends().tolist() == [3, 6]
    assert dataset.episode_returns().tolist() == [3.0, 1.0]
    assert dataset.with_reward_offset(-1.0).episode_ends().tolist() == [3, 6]
    # elsewhere, tasks of one step in one state for example, a termination is an end
    assert OfflineDataset.from_arrays(*columns).episode_ends().tolist() == [1, 2, 3, 6]


def test_offsets_add_up_and_returns_stay_the_environment_s() -> None:
    plain = OfflineDataset.from_arrays(**arrays())
    twice = plain.with_reward_offset(-1.0).with_reward_offset(-2.0)
    assert twice.reward_offset == -3.0
    np.testing.assert_allclose(twice.rewards, plain.rewards - 3.0)
    np.testing.assert_allclose(twice.episode_returns(), plain.episode_returns(), atol=1e-5)


def test_a_pickled_data_set_is_as_unchangeable() -> None:
    dataset = OfflineDataset.from_arrays(**arrays())
    again = pickle.loads(pickle.dumps(dataset))
    assert again.content_hash == dataset.content_hash
    with pytest.raises(ValueError, match="read-only"):
        again.observations[0] = 99.0
