"""Features extractors: the data's statistics, those that are given, and a user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from adv_worldmodel import OfflineDataset
from tests.agents.small_agents import MakeAgent, run


class Normalised(BaseFeaturesExtractor):
    """Batch normalisation of the states."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 3)
        self.normalise = nn.BatchNorm1d(3)

    def forward(self, obs: Tensor) -> Tensor:
        found: Tensor = self.normalise(obs)
        return found


@pytest.mark.parametrize("given", [{}, {"mean": [0.0] * 3}, {"std": [1.0, 2.0, 3.0]}])
def test_statistics_that_are_given_are_taken(
    make_agent: MakeAgent, pendulum: OfflineDataset, given: dict[str, list[float]]
) -> None:
    networks = {"net_arch": [8], "features_extractor_kwargs": given}
    extractor: Any = make_agent(policy_kwargs=networks).actor.features_extractor
    states = pendulum.observations.astype(np.float64)
    expected = {"mean": states.mean(0).tolist(), "std": states.std(0).tolist(), **given}
    for name, values in expected.items():
        torch.testing.assert_close(getattr(extractor, name), torch.tensor(values))


def test_the_targets_take_the_critics_batch_statistics(make_agent: MakeAgent) -> None:
    """As in SB3's SAC; evaluated with those that they began with, they would scale nothing."""
    networks = {"net_arch": [8], "features_extractor_class": Normalised}
    model = run(make_agent(policy_kwargs=networks), 1)
    critic, target = (
        network.features_extractor.normalise  # type: ignore[union-attr]
        for network in (model.critic, model.critic_target)
    )
    assert not torch.equal(critic.running_var, torch.ones(3))
    assert torch.equal(target.running_var, critic.running_var)
    assert torch.equal(target.running_mean, critic.running_mean)


def test_a_row_left_over_by_the_batches_of_a_clone_breaks_no_batch_statistics(
    make_agent: MakeAgent, pendulum: OfflineDataset
) -> None:
    networks = {"net_arch": [8], "features_extractor_class": Normalised}
    agent = make_agent(policy_kwargs=networks)
    assert np.isfinite(agent.clone(1, batch_size=len(pendulum) - 1))
