"""Settings and seeds that change after an agent was made count from then on, or are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn

from adv_worldmodel import OfflineDataset, WorldModel
from agents import COMBO, RAMBO
from agents.model_check import check_in_model
from agents.training.progress import MetricsHistory
from agents.updates import sac_update
from tests.agents.small_agents import HORIZON, N_ENVS, MakeAgent, run


def parameters(agent: RAMBO) -> Tensor:
    return nn.utils.parameters_to_vector(agent.policy.parameters()).detach()


class BeforeRollouts(BaseCallback):
    """Changes the agent before each rollout."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.change = change

    def _on_rollout_start(self) -> None:
        self.change(self.model)

    def _on_step(self) -> bool:
        return True


def in_second(change: Callable[[Any], object]) -> BeforeRollouts:
    """Makes the change once, before the updates of the second iteration."""
    return BeforeRollouts(lambda agent: agent.iteration == 1 and change(agent))


def set_in_second(name: str, value: Any) -> BeforeRollouts:
    return in_second(lambda agent: setattr(agent, name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", 0.5), ("tau", 0.5), ("target_entropy", 3.0), ("cloning_weight", 1.0),
     ("entropy_in_target", False)],
)  # fmt: skip
def test_a_callback_may_change_a_setting(make_agent: MakeAgent, name: str, value: Any) -> None:
    usual = run(make_agent(), 3)
    first, changed = (
        run(make_agent(), iterations, callback=set_in_second(name, value)) for iterations in (1, 3)
    )
    assert torch.equal(parameters(first), parameters(run(make_agent(), 1)))
    assert not torch.equal(parameters(changed), parameters(usual))


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.1), ("actor_learning_rate", 0.1), ("entropy_learning_rate", 0.1),
     ("real_ratio", 0.25), ("rollout_policy", "random")],
)  # fmt: skip
def test_a_callback_may_change_what_is_handed_on(
    make_agent: MakeAgent, name: str, value: Any
) -> None:
    usual, changed = (
        run(make_agent(), 3, callback=callback) for callback in (None, set_in_second(name, value))
    )
    assert not torch.equal(parameters(changed), parameters(usual))


def test_a_callback_may_change_a_fixed_entropy_coefficient(make_agent: MakeAgent) -> None:
    agent = run(make_agent(ent_coef=0.1), 3, callback=set_in_second("ent_coef", 0.9))
    assert agent.alpha_in_target == pytest.approx(0.9)


def test_an_optimiser_s_own_rate_stays_as_a_callback_sets_it(make_agent: MakeAgent) -> None:
    def change(agent: Any) -> None:
        agent.actor.optimizer.param_groups[0]["lr"] = 0.1

    agent = run(make_agent(), 3, callback=in_second(change))
    assert agent.actor.optimizer.param_groups[0]["lr"] == 0.1


def test_a_wrong_setting_is_refused_in_mid_training(make_agent: MakeAgent) -> None:
    with pytest.raises(ValueError, match="'curent' is not 'current' or 'random'"):
        run(make_agent(), 3, callback=set_in_second("rollout_policy", "curent"))


def test_training_does_not_know_of_a_greedy_step(
    make_agent: MakeAgent, pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    usual, greedy = (run(make_agent(networks={"greedy_step": step}), 2) for step in (0.0, 0.1))
    assert torch.equal(parameters(usual), parameters(greedy))
    obs = pendulum.observations[:50]
    deployed = [agent.predict(obs, deterministic=True)[0] for agent in (usual, greedy)]
    low, high = pendulum.action_space.low, pendulum.action_space.high
    steps = np.abs(deployed[1] - deployed[0]) / ((high - low) / 2)
    assert float(steps.max()) == pytest.approx(0.1, rel=1e-3)  # of the one component
    checks = [
        check_in_model(agent, pendulum_model, pendulum, episodes=5) for agent in (usual, greedy)
    ]
    assert not np.array_equal(*(check.returns for check in checks))  # deployed
    assert np.array_equal(*(check.values for check in checks))  # drawn


def halve_in_place(agent: Any) -> None:
    agent.ent_coef_tensor.div_(2.0)


def halve_in_other_memory(agent: Any) -> None:
    agent.ent_coef_tensor = agent.ent_coef_tensor / 2.0


@pytest.mark.parametrize("halve", [halve_in_place, halve_in_other_memory])
def test_a_callback_may_change_the_entropy_coefficient(
    make_agent: MakeAgent, halve: Callable[[Any], None]
) -> None:
    agent, history = make_agent(ent_coef=0.8), MetricsHistory()
    agent.set_logger(Logger(None, [history]))
    run(agent, 3, callback=BeforeRollouts(halve))
    assert [row["train/ent_coef"] for row in history.rows] == pytest.approx([0.4, 0.2, 0.1])
    assert agent.alpha_in_target == pytest.approx(0.1)


def test_an_entropy_coefficient_given_later_counts_from_then_on(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = run(make_agent(ent_coef=0.1), 1)
    agent.save(tmp_path / "agent.zip")
    loaded = RAMBO.load(tmp_path / "agent.zip", env=agent.get_env(), ent_coef=0.5)
    agent.ent_coef = 0.5
    for later in (agent, loaded):
        run(later, 1, reset_num_timesteps=False)
        assert later.alpha_in_target == 0.5
    agent.ent_coef_tensor.fill_(0.25)  # which a further training leaves
    run(agent, 1, reset_num_timesteps=False)
    assert agent.alpha_in_target == 0.25


@pytest.mark.parametrize(("first", "later"), [(0.1, "auto"), ("auto", 0.1), ("auto", "auto_0.1")])
def test_an_entropy_coefficient_of_another_kind_is_refused_later(
    make_agent: MakeAgent, tmp_path: Path, first: float | str, later: float | str
) -> None:
    agent = make_agent(ent_coef=first)
    agent.save(tmp_path / "agent.zip")
    message = f"ent_coef = {later!r}, and the agent was made with {first!r}"
    with pytest.raises(ValueError, match=message):
        RAMBO.load(tmp_path / "agent.zip", env=agent.get_env(), ent_coef=later)
    agent.ent_coef = later
    with pytest.raises(ValueError, match=message):
        run(agent, 1)


def test_an_agent_saved_before_the_coefficient_was_kept_is_loaded(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = run(make_agent(ent_coef=0.1), 1)
    agent.save(tmp_path / "agent.zip", exclude=["_made_with_ent_coef"])
    loaded = RAMBO.load(tmp_path / "agent.zip", env=agent.get_env())
    assert run(loaded, 1).alpha_in_target == pytest.approx(0.1)


def test_weights_of_other_statistics_bring_them(
    make_agent: MakeAgent, pendulum: OfflineDataset
) -> None:
    far = {"mean": [5.0] * 3, "std": [0.1] * 3}
    networks = {"features_extractor_kwargs": far}
    state = make_agent(networks=networks, seed=1).policy.state_dict()
    load = in_second(lambda agent: agent.policy.load_state_dict(state))
    written_out = run(make_agent(), 3, callback=load)
    reference = make_agent()
    reference._make_update = lambda parts, n: lambda b, z: sac_update(parts, b, z[0], z[1])
    run(reference, 3, callback=load)
    torch.testing.assert_close(parameters(written_out), parameters(reference))


def test_fresh_outcomes_may_begin_in_mid_training(make_agent: MakeAgent) -> None:
    usual, changed = (
        run(make_agent(), 3, callback=callback)
        for callback in (None, set_in_second("fresh_outcomes", True))
    )
    assert not torch.equal(parameters(changed), parameters(usual))


def test_in_another_environment_other_rows_are_drawn(make_agent: MakeAgent) -> None:
    agent = make_agent(real_ratio=1.0)
    first = agent.replay_buffer.draw(2, 16)[0].clone()
    agent.set_env(make_agent().get_env())
    assert not torch.equal(agent.replay_buffer.draw(2, 16)[0], first)


def test_combo_s_weight_too(make_agent: MakeAgent) -> None:
    usual, changed = (
        run(make_agent(COMBO), 3, callback=callback)
        for callback in (None, set_in_second("beta", 5.0))
    )
    assert not torch.equal(parameters(changed), parameters(usual))


def test_share_and_age_of_rows_may_change_between_two_trainings(make_agent: MakeAgent) -> None:
    agent = run(make_agent(retain_iterations=3), 2)
    assert agent.replay_buffer.synthetic is not None
    rows = agent.replay_buffer.synthetic[: agent.replay_buffer.size()].clone()
    agent.real_ratio, agent.retain_iterations = 0.25, 4
    run(agent, 1, reset_num_timesteps=False)
    buffer = agent.replay_buffer
    assert buffer.n_real(16) == 4
    assert buffer.buffer_size == 4 * N_ENVS * HORIZON
    assert buffer.size() == 3 * N_ENVS * HORIZON
    assert torch.equal(buffer.synthetic[: len(rows)], rows)  # type: ignore[index]


def test_a_seed_makes_what_follows_happen_again(make_agent: MakeAgent) -> None:
    agents = [make_agent(seed=seed) for seed in (None, 7, 7)]
    for agent in agents:
        agent.policy.load_state_dict(agents[0].policy.state_dict())
        agent.policy.critic_target.load_state_dict(agents[0].policy.critic_target.state_dict())
    for agent, seed in zip(agents, (3, 3, 4), strict=True):
        agent.set_random_seed(seed)
        run(agent, 2)
    assert torch.equal(parameters(agents[0]), parameters(agents[1]))
    assert not torch.equal(parameters(agents[0]), parameters(agents[2]))


WRONG = [
    ({"rollout_policy": "currrent"}, "'currrent' is not 'current' or 'random'"),
    ({"gamma": 1.5}, "gamma = 1.5 must lie between 0 and 1"),
    ({"critic_warmup": -5}, "critic_warmup = -5 must be at least 0"),
    ({"critic_warmup": "2"}, "critic_warmup = '2': expected a whole number"),
    ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
    ({"cloning_weight": 1.0, "real_ratio": 0.0}, "needs rows of data: real_ratio = 0.0"),
    ({"target_entropy": float("nan")}, "target_entropy = nan must be 'auto' or a finite number"),
    ({"target_entropy": None}, "target_entropy = None must be"),
    *(
        ({"ent_coef": text}, f"ent_coef = {text!r} must be a finite number of at least 0")
        for text in ("-0.5", "nan", "inf", "automatic", "auto_0", "auto_-1", "auto_inf", -0.5)
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_settings_are_refused_by_every_door(
    make_agent: MakeAgent, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(**wrong)
    agent = make_agent()
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=message):
        RAMBO.load(tmp_path / "agent.zip", env=agent.get_env(), **wrong)
    for name, value in wrong.items():
        setattr(agent, name, value)
    with pytest.raises(ValueError, match=message):
        run(agent, 1)


def test_numbers_of_numpy_are_settings_too(make_agent: MakeAgent) -> None:
    agent = make_agent(learning_rate=np.float32(1e-3), horizon=np.int64(2), n_envs=np.int64(4))
    assert run(agent, 1).num_timesteps == 8


@pytest.mark.parametrize("name", ["learning_rate", "actor_learning_rate", "entropy_learning_rate"])
@pytest.mark.parametrize("later", [False, True])
def test_an_agent_with_numbers_of_numpy_can_be_loaded(
    make_agent: MakeAgent, tmp_path: Path, name: str, later: bool
) -> None:
    agent = make_agent(**({} if later else {name: np.float64(1e-3)}))
    if later:
        setattr(agent, name, np.float32(1e-3))
    run(agent, 1).save(tmp_path / "agent.zip")
    loaded = RAMBO.load(tmp_path / "agent.zip", device="cpu")
    assert torch.equal(parameters(loaded), parameters(agent))


def test_a_target_entropy_of_auto_may_be_set_later(make_agent: MakeAgent) -> None:
    agent = make_agent(target_entropy=-3.0)
    agent.target_entropy = "auto"
    assert run(agent, 1).target_entropy == -1.0  # minus the length of an action


def test_parameters_put_back_after_a_divergence_go_on(make_agent: MakeAgent) -> None:
    agent = run(make_agent(), 1)
    good = copy.deepcopy(agent.get_parameters())
    agent.learning_rate = 1e30
    with pytest.raises(FloatingPointError):
        run(agent, 3)
    agent.learning_rate = 1e-3
    agent.set_parameters(good)
    run(agent, 2)
    assert bool(torch.isfinite(parameters(agent)).all())


def test_a_check_leaves_the_policy_as_it_is(
    make_agent: MakeAgent, pendulum: OfflineDataset, pendulum_model: WorldModel
) -> None:
    agent = run(make_agent(), 1)  # after which its mode is that of training
    assert agent.policy.training
    check_in_model(agent, pendulum_model, pendulum, episodes=2)
    assert not agent.policy.training
