"""The termination rules agree with the real environments, step by step."""

import json
import warnings
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

from adv_worldmodel import OfflineDataset
from adv_worldmodel.building import make_quietly
from adv_worldmodel.dynamics import termination as termination_module
from adv_worldmodel.dynamics.known_tasks import read_environment, spec_of_task
from adv_worldmodel.dynamics.termination import (
    compare_with_flags,
    make_termination,
    termination_from_spec,
)


def perturbed_steps(env_id: str, scale: float, steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Next observations `(n, S)` and true terminations `(n,)` from states around the start."""
    env = make_quietly(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)
    base = env.unwrapped
    rng = np.random.default_rng(0)
    observations, terminations = [], []
    for _ in range(steps):
        spread = scale * rng.uniform()
        qpos = base.init_qpos + spread * rng.normal(size=base.model.nq)
        qvel = base.init_qvel + spread * rng.normal(size=base.model.nv)
        env.reset()
        base.set_state(qpos, qvel)
        observation, _, terminated, _, _ = env.step(env.action_space.sample())
        observations.append(observation)
        terminations.append(terminated)
    env.close()
    return np.array(observations), np.array(terminations)


def flags(env_id: str, observations: np.ndarray) -> np.ndarray:
    obs = torch.as_tensor(observations)
    return make_termination("auto", env_id)(obs, obs, obs).numpy()


@pytest.mark.parametrize(
    ("env_id", "scale"),
    [
        ("Hopper-v5", 0.4),
        ("Walker2d-v5", 1.0),
        ("Ant-v5", 0.5),
        ("Humanoid-v5", 0.5),
        ("InvertedPendulum-v5", 0.3),
        ("HalfCheetah-v5", 1.0),
    ],
)
def test_agrees_with_the_real_environment(env_id: str, scale: float) -> None:
    observations, terminations = perturbed_steps(env_id, scale)
    np.testing.assert_array_equal(flags(env_id, observations), terminations)
    if env_id != "HalfCheetah-v5":
        assert 20 < terminations.sum() < 380  # both outcomes were tried


def test_double_pendulum_agrees_with_the_real_environment() -> None:
    # MuJoCo's tip position lags the observed angles by one of the step's five substeps, so
    # that the two may differ only where the tip is at the very limit.
    observations, terminations = perturbed_steps("InvertedDoublePendulum-v5", 0.8, steps=1000)
    wrong = flags("InvertedDoublePendulum-v5", observations) != terminations
    angles = np.arctan2(observations[:, 1:3], observations[:, 3:5])
    tip = 0.6 * np.cos(angles[:, 0]) + 0.6 * np.cos(angles.sum(axis=1))
    assert 50 < terminations.sum() < 950
    assert wrong.mean() < 0.02
    assert np.all(np.abs(tip[wrong] - 1.0) < 0.1)


def test_mountain_car_ends_at_the_goal() -> None:
    next_obs = torch.tensor([[0.44, 0.05], [0.46, 0.05], [0.46, -0.01]])
    done = make_termination(None, "MountainCarContinuous-v0")(next_obs, next_obs, next_obs)
    assert done.tolist() == [False, True, False]


def test_bounds_are_those_of_the_environment_that_was_named() -> None:
    gym.register(
        id="LowHopper-v0",
        entry_point="gymnasium.envs.mujoco.hopper_v5:HopperEnv",
        kwargs={
            "healthy_z_range": (0.3, float("inf")),
            "exclude_current_positions_from_observation": False,
        },
    )
    try:
        termination = make_termination(None, "LowHopper-v0")
    finally:
        del gym.registry["LowHopper-v0"]
    next_obs = torch.zeros(3, 12)
    next_obs[:, 1] = torch.tensor([0.2, 0.5, 0.5])  # z comes second where x is observed
    next_obs[:, 0] = 1000.0  # x is free
    next_obs[2, 2] = 0.3  # angle
    assert termination(next_obs, next_obs, next_obs).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["AntMaze_UMaze-v5", "antmaze-large-play-v0", "antmaze"])
def test_an_ant_in_a_maze_is_not_an_ant(name: str) -> None:
    assert make_termination(name, None).spec["kind"] == "never"


def test_ant_by_name_ends_below_and_above_its_range() -> None:
    next_obs = torch.zeros(4, 27)
    next_obs[:, 0] = torch.tensor([0.19, 0.21, 1.0, 1.01])
    done = make_termination("ant", None)(next_obs, next_obs, next_obs)
    assert done.tolist() == [True, False, False, True]


def test_an_environment_that_cannot_be_built_is_looked_up_by_exact_name() -> None:
    assert make_termination(None, "Hopper-v2").spec["bounds"][0]["low"] == 0.7
    with pytest.raises(ValueError, match=r"SuperHopper-v2.*termination='never'"):
        make_termination(None, "SuperHopper-v2")


def test_an_unknown_environment_or_none_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"CartPoleEnv.*termination='never'"):
        make_termination("auto", "CartPole-v1")
    with pytest.raises(ValueError, match=r"names no environment.*termination='never'"):
        make_termination(None, None)
    with pytest.raises(ValueError, match=r"^Expected a Gymnasium id .*, got TimeLimit; "):
        make_termination(None, gym.make("Pendulum-v1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'hoper'; known: .*hopper"):
        make_termination("hoper", None)


@pytest.mark.parametrize(
    "name", ["hopper", "inverteddoublependulum", "mountaincarcontinuous", "never"]
)
def test_a_spec_survives_json(name: str) -> None:
    termination = make_termination(name, None)
    text = json.dumps(termination.spec, allow_nan=False)
    rebuilt = termination_from_spec(json.loads(text))
    next_obs = 0.5 * torch.randn(500, 11, generator=torch.Generator().manual_seed(0)) + 0.6
    want = termination(next_obs, next_obs, next_obs)
    assert torch.equal(rebuilt(next_obs, next_obs, next_obs), want)
    assert rebuilt.spec == termination.spec


def test_a_function_is_used_and_asked_for_again() -> None:
    def high(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        return next_obs[:, 0] > 1

    termination = make_termination(high, None)
    next_obs = torch.tensor([[0.0], [2.0]], requires_grad=True)
    assert termination(next_obs, next_obs, next_obs).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"high.*pass it again"):
        termination_from_spec(termination.spec)
    assert termination_from_spec(termination.spec, high).rule is high


def test_a_function_that_writes_to_its_arguments_is_refused() -> None:
    """They are what the rollout goes on with."""

    def shifting(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        next_obs -= 0.85
        return next_obs[:, 0] > 0

    obs = torch.zeros(3, 2)
    rule = make_termination(shifting, None)
    with pytest.raises(ValueError, match="the termination function changes its arguments in place"):
        rule(obs, obs, torch.zeros(3, 2))
    make_termination(lambda s, a, n: shifting(s, a, n.clone()), None)(obs, obs, obs)


def test_wrong_results_and_widths_are_reported() -> None:
    obs = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"torch.float32 \(3, 1\).*shape \(3,\)"):
        make_termination(lambda s, a, n: n[:, :1], None)(obs, obs, obs)
    with pytest.raises(ValueError, match=r"component 1 of the observation, which has only 1"):
        make_termination("walker2d", None)(obs[:, :1], obs, obs[:, :1])
    with pytest.raises(ValueError, match=r"Unknown termination kind 'exec'"):
        termination_from_spec({"kind": "exec", "code": "1"})
    with pytest.raises(ValueError, match=r"Damaged"):
        termination_from_spec({"kind": "outside"})


@pytest.mark.parametrize(
    "env_id",
    [
        "Hopper-v5",
        "Walker2d-v5",
        "Ant-v5",
        "Humanoid-v5",
        "InvertedPendulum-v5",
        "InvertedDoublePendulum-v5",
        "MountainCarContinuous-v0",
    ],
)
def test_the_table_has_the_environments_default_bounds(env_id: str) -> None:
    assert read_environment(env_id)[0] == spec_of_task(env_id.partition("-")[0].lower())


def test_a_state_that_ran_away_ends_the_episode() -> None:
    """Hopper: |state| < 100 but for the first components; Ant: finite."""
    hopper, ant = torch.zeros(2, 11), torch.zeros(2, 27)
    hopper[:, 0], hopper[1, 7] = 1.2, 101.0
    ant[:, 0], ant[1, 20] = 0.5, torch.inf
    for name, obs in (("hopper", hopper), ("ant", ant)):
        assert make_termination(name, None)(obs, obs, obs).tolist() == [False, True]


@pytest.fixture
def registered() -> Iterator[None]:
    before = set(gym.registry)
    yield
    for env_id in set(gym.registry) - before:
        del gym.registry[env_id]


class Reversed(HopperEnv):
    def _get_obs(self) -> np.ndarray:
        return super()._get_obs()[::-1]


class Negative(gym.ObservationWrapper):
    def observation(self, observation: np.ndarray) -> np.ndarray:
        return -observation


def test_an_environment_s_settings_and_changes_are_seen(registered: None) -> None:
    calm = {"terminate_when_unhealthy": False}
    gym.register("Calm-v0", "gymnasium.envs.mujoco.hopper_v5:HopperEnv", kwargs=calm)
    gym.register("Reversed-v0", Reversed)
    gym.register("Negative-v0", lambda **kwargs: Negative(HopperEnv(**kwargs)))
    assert make_termination(None, "Calm-v0").spec["kind"] == "never"
    with pytest.raises(ValueError, match="overrides _get_obs"):
        make_termination(None, "Reversed-v0")
    with pytest.raises(ValueError, match="a wrapper changes"):
        make_termination(None, "Negative-v0")


# ------------------------------------------------------------- the rule and the data's own flags


def line(terminal: list[int], size: int = 1000, goal_terminals: bool = False) -> OfflineDataset:
    """States 0, 1, 2, ... on a line; the rows `terminal` are flagged."""
    states = np.arange(size, dtype=np.float64)[:, None]
    flags = np.isin(np.arange(size), terminal)
    actions = np.linspace(-1, 1, size)[:, None]
    return OfflineDataset.from_arrays(
        states, actions, states[:, 0], states + 1, flags, name="line", goal_terminals=goal_terminals
    )


def said(data: OfflineDataset, ends: str | list[int]) -> str:
    """What is said of a rule that ends episodes at the rows `ends`; "" if nothing is."""

    def rule(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        return torch.isin(obs[:, 0], torch.tensor(ends, dtype=obs.dtype))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare_with_flags(make_termination(ends if isinstance(ends, str) else rule, None), data)
    assert len(caught) <= 1
    return "".join(str(warning.message) for warning in caught)


def test_time_limits_flagged_as_terminations_are_warned_of() -> None:
    message = said(line(list(range(99, 1000, 100))), "never")
    assert message.startswith(
        "line: 10 of 1,000 rows are terminal, the termination rule (never) says none. 10 are "
        "terminal in the data alone: are these time limits?"
    )
    assert "by the rule alone" not in message
    # beside true ones
    message = said(line(list(range(99, 1000, 50))), list(range(99, 1000, 100)))
    assert "19 of 1,000 rows are terminal" in message
    assert "says 10. 9 are terminal in the data alone" in message


def test_missing_terminations_are_warned_of() -> None:
    message = said(line([]), list(range(0, 1000, 100)))
    assert "0 of 1,000 rows are terminal" in message
    assert "says 10. 10 are so by the rule alone" in message


def test_equal_flags_and_a_few_rounded_ones_are_not_warned_of() -> None:
    ends = list(range(0, 1000, 5))
    assert said(line(ends), ends) == ""
    assert said(line([]), "never") == ""
    assert said(line([500]), "never") == ""  # such as a recording's last row
    assert said(line(ends), [*ends[:-2], 2, 3]) == ""  # 4 of 202 rows
    assert said(line(ends), [*ends[:-3], 2, 3]) != ""


def test_goals_on_the_way_are_no_terminations() -> None:
    ends = list(range(99, 1000, 100))
    assert said(line(ends, goal_terminals=True), "never") == ""


def test_all_terminal_rows_of_a_large_set_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination_module, "CHECKED_ROWS", 10)
    ends = [7, 13, *range(200, 250)]
    message = said(line(ends), [7, *range(240, 250)])
    # spread over the data: 0, 111, 222, ..., 999
    assert "52 of 1,000 rows are terminal" in message
    assert "says 11 of the 61 looked at. 41 are terminal in the data alone" in message


def test_the_environment_s_own_flags_agree_with_its_rule(pendulum: OfflineDataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_with_flags(make_termination(None, "Pendulum-v1"), pendulum)
