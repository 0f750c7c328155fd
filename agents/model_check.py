"""What a policy is worth in its world model, beside what its critics say: no simulator needed.

Rollouts of a few steps from the data never reach the states that a policy comes to later, and
critics can believe anything there. Whole episodes in the model show it: where the critics promise
more than the model gives, they are wrong, whatever the world is like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adv_worldmodel import OfflineDataset, WorldModel
from adv_worldmodel.checks import check_whole
from adv_worldmodel.data.environments import time_limit
from adv_worldmodel.dynamics.world_model import SMALLEST_STD
from adv_worldmodel.seeding import make_generator
from agents.printed import number
from agents.rambo import RAMBO
from agents.updates import sample_action
from agents.values import SquashedPolicy

__all__ = ["ModelCheck", "check_in_model"]

#: How far beyond the data's rewards a mean may lie for no other reason than that it was learnt.
ROUNDING = 0.01
#: Standard deviations from the data's mean, beyond which a state is none, and an episode ends.
FAR = 1e6
#: Share of a return, the behaviour's or one found in the model, by which the clone's, or what the
#: critics promise, may differ.
TOLERANCE = 0.5
#: Steps of an episode at most, where no environment's time limit is known, unless gamma looks
#: further ahead.
LONG = 1000


@dataclass(frozen=True, eq=False)
class ModelCheck:
    """Episodes of a policy in a world model; each array is (episodes,).

    The deterministic action is what is deployed, and what the first two say. The critics value the
    policy that trained, which draws its actions: so do the others, from the same starts.
    """

    returns: NDArray[np.float64]  #: deployed, undiscounted, in the environment's reward
    lengths: NDArray[np.int64]  #: of these episodes, in steps
    sampled_returns: NDArray[np.float64]  #: of drawn actions, undiscounted likewise
    sampled_lengths: NDArray[np.int64]  #: of these episodes
    #: of drawn actions, in the reward that was trained on, as the critics count: with the entropy
    #: that is in their targets; theirs too is what comes after the last step of an episode that
    #: was cut
    discounted: NDArray[np.float64]
    #: the part of these that is what the critics say of what comes after a cut, no model
    beyond_cut: NDArray[np.float64]
    values: NDArray[np.float64]  #: min_j Q_j(s, a) at the starts, of the first action drawn
    max_steps: int  #: after which an episode is cut
    rewards: tuple[float, float]  #: the least and the largest of the data
    #: deployed episodes that left all bounds, and ended there
    ran_away: NDArray[np.bool_]
    #: undiscounted, of the behaviour's clone drawing its actions from the same starts, for as long
    #: as the data's episodes were recorded; None: no clone was given
    clone_returns: NDArray[np.float64] | None
    clone_lengths: NDArray[np.int64] | None  #: of these episodes
    #: of the data's episodes, as they were recorded, mean and standard deviation of the returns;
    #: NaN where nobody knows them
    behaviour: tuple[float, float]

    @property
    def reward_per_step(self) -> float:
        """Mean over the steps of the deployed episodes."""
        return _per_step(self.returns, self.lengths)

    @property
    def drawn_rewards_per_step(self) -> dict[str, float]:
        """Mean over the steps of the episodes with drawn actions, by whose they are."""
        found = {"drawn actions": _per_step(self.sampled_returns, self.sampled_lengths)}
        if self.clone_returns is not None and self.clone_lengths is not None:
            found["the clone"] = _per_step(self.clone_returns, self.clone_lengths)
        return found

    def doubt(self, *, in_fit: bool) -> str | None:
        """Why what it says is not to be believed; None if nothing speaks against it.

        :param in_fit: whether the model is a fit, in which the clone should return what the data
            do; an adversary means to lower that.
        """
        if self.ran_away.any():
            return f"{self.ran_away.sum()} episodes left all bounds"
        least, largest = self.rewards
        between = f"where the data's rewards lie between {least:.4g} and {largest:.4g}"
        if self.beyond_data:
            return f"{self.reward_per_step:.4g} per step, {between}"
        for whose, reward in self.drawn_rewards_per_step.items():
            if reward > self._largest_believed:
                return f"{reward:.4g} per step by {whose}, {between}"
        if in_fit and self.misjudges_clone and self.clone_returns is not None:
            return (
                f"the clone returns {number(self.clone_returns.mean())} there, and the data "
                f"{number(self.behaviour[0])}"
            )
        return None

    @property
    def overpromised(self) -> bool:
        """Whether the critics promise far more than drawn actions find, discounted, in the model.

        By more than half of that, or of how much the episodes differ, whichever is larger.
        """
        found = float(self.discounted.mean())
        return float(self.values.mean()) - found > _slack(found, float(self.discounted.std()))

    @property
    def misjudges_clone(self) -> bool:
        """Whether the clone returns something else than the behaviour that it was cloned from.

        By more than half of that, or of how much the data's episodes differ, whichever is larger.
        Then whole episodes in the model, or the clone, are not like those of the data. False where
        that cannot be known.
        """
        if self.clone_returns is None:
            return False
        mean, std = self.behaviour
        gap = abs(float(self.clone_returns.mean()) - mean)
        return gap > _slack(mean, std)  # not of NaN

    @property
    def beyond_data(self) -> bool:
        """Whether the deployed policy's mean reward per step is larger than any in the data.

        Or smaller than all by more than they differ: worse than what was logged a policy may well
        be. Then the model has been left by what it knows, and its returns say nothing.
        """
        least, largest = self.rewards
        lowest = least - max(self._slack_of_rewards, largest - least)
        return not lowest <= self.reward_per_step <= self._largest_believed

    @property
    def _slack_of_rewards(self) -> float:
        least, largest = self.rewards
        return ROUNDING * max(abs(least), abs(largest), largest - least) + SMALLEST_STD

    @property
    def _largest_believed(self) -> float:
        return self.rewards[1] + self._slack_of_rewards


def _per_step(returns: NDArray[np.float64], lengths: NDArray[np.int64]) -> float:
    return float(returns.sum() / lengths.sum())


def _slack(mean: float, std: float) -> float:
    """By how much another mean return may differ."""
    return TOLERANCE * max(abs(mean), std)


@torch.no_grad()
def check_in_model(
    agent: RAMBO,
    model: WorldModel,
    dataset: OfflineDataset,
    *,
    episodes: int = 100,
    gamma: float | None = None,
    alpha: float | None = None,
    seed: int = 0,
    clone: RAMBO | None = None,
    look_ahead: float | None = None,
) -> ModelCheck:
    """Run whole episodes in the model, from states in which the data's episodes start.

    :param agent: its policy acts, once by its deterministic action, once drawing its actions.
    :param model: the fit, or what the adversary has made of it; with its noise, its members drawn
        anew each step.
    :param dataset: gives the starts, those of its episodes, or any states where it has but one,
        and by its longest episode the steps after which one is cut. No more than 1000, or as
        many as leave 5 % of the discount, where the environment's time limit is not known; where
        rows are not in order that limit, or as many.
    :param gamma: discount of what is compared with the critics; default the agent's.
    :param alpha: entropy coefficient of the soft values that the critics learnt; 0: plain ones. By
        default what the agent's is at present, 0 without ``entropy_in_target``.
    :param seed: of starts, members, actions and noise.
    :param clone: the policy that was cloned from the data, to see whether the model returns what
        the data do.
    :param look_ahead: discount that says when an episode is cut, where ``gamma`` would: policies of
        several discounts are to run as long as each other.
    :raises ValueError: no episode; the model's observations or actions are not the agent's or the
        data's; the agent is from ``load_weights``, which knows neither gamma nor alpha, and they
        are not given.
    """
    check_whole(at_least=1, episodes=episodes)
    if agent.weights_only and (gamma is None or alpha is None):
        raise ValueError(
            f"gamma = {gamma}, alpha = {alpha}, and an agent from load_weights knows neither: give "
            "both as in its training (alpha=0.0 where the critics learnt no entropy)"
        )
    gamma = float(agent.gamma) if gamma is None else gamma
    alpha = agent.alpha_in_target if alpha is None else alpha
    width = dataset.observations.shape[1]
    sizes = {
        "agent": (agent.observation_space.shape, agent.action_space.shape),
        "world model": ((model.obs_dim,), (model.action_dim,)),
        "data": ((width,), (dataset.actions.shape[1],)),
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"observations and actions differ in their shapes: {sizes}")
    agent.policy.set_training_mode(False)
    max_steps = _longest(dataset, gamma if look_ahead is None else look_ahead)
    recorded = _recorded(dataset, max_steps)
    generator = make_generator(seed, "model check", model.device)
    n_starts = len(recorded.starts)
    rows = torch.randint(n_starts, (episodes,), generator=generator, device=model.device)
    obs = torch.as_tensor(dataset.observations[recorded.starts], device=model.device)[rows]
    most = torch.full_like(rows, max_steps)
    mean, sampled = (
        _episodes(agent, model, obs, generator, most, gamma, alpha, sample=sample)
        for sample in (False, True)
    )
    least, largest = (
        float(x) - dataset.reward_offset for x in (dataset.rewards.min(), dataset.rewards.max())
    )
    clone_returns = clone_lengths = None
    if clone is not None:
        clone.policy.set_training_mode(False)
        as_long = torch.as_tensor(recorded.steps, device=model.device)[rows]
        cloned = _episodes(clone, model, obs, generator, as_long, gamma, alpha, sample=True)
        clone_returns = cloned.in_environment(dataset.reward_offset)
        clone_lengths = cloned.lengths.cpu().numpy()
    return ModelCheck(
        returns=mean.in_environment(dataset.reward_offset),
        lengths=mean.lengths.cpu().numpy(),
        sampled_returns=sampled.in_environment(dataset.reward_offset),
        sampled_lengths=sampled.lengths.cpu().numpy(),
        discounted=sampled.discounted.cpu().numpy(),
        beyond_cut=sampled.beyond_cut.double().cpu().numpy(),
        values=sampled.values.double().cpu().numpy(),
        max_steps=max_steps,
        rewards=(least, largest),
        ran_away=mean.ran_away.cpu().numpy(),
        clone_returns=clone_returns,
        clone_lengths=clone_lengths,
        behaviour=(float(recorded.returns.mean()), float(recorded.returns.std())),
    )


class _Episodes(NamedTuple):
    """Each (episodes,), in the reward that was trained on."""

    returns: Tensor
    discounted: Tensor
    lengths: Tensor
    beyond_cut: Tensor
    values: Tensor
    ran_away: Tensor

    def in_environment(self, offset: float) -> NDArray[np.float64]:
        """The returns in the environment's own reward."""
        returns: NDArray[np.float64] = (self.returns - offset * self.lengths).cpu().numpy()
        return returns


def _has_run_away(model: WorldModel, obs: Tensor, reward: Tensor) -> Tensor:
    """Which rows ``(B,)`` are states that no number says anything of any more."""
    width = obs.shape[1]
    standardised = (obs - model.input_mean[:width]) / model.input_std[:width]
    return ~((standardised.abs().amax(1) <= FAR) & reward.isfinite())  # of NaN too


def _episodes(
    agent: RAMBO,
    model: WorldModel,
    obs: Tensor,
    generator: torch.Generator,
    steps: Tensor,
    gamma: float,
    alpha: float,
    *,
    sample: bool,
) -> _Episodes:
    """From the states `obs` on, to the model's terminations, or for as many `steps` each."""
    bounds, critic = SquashedPolicy(agent).bounds, agent.policy.critic
    n = len(obs)

    def act(obs: Tensor) -> tuple[Tensor, Tensor]:
        if not sample:
            return agent.policy.deterministic_action(obs), obs.new_zeros(n)
        noise = torch.randn(n, model.action_dim, generator=generator, device=model.device)
        return sample_action(agent.actor, obs, noise)

    starts = obs
    going = torch.ones(n, dtype=torch.bool, device=model.device)
    ran_away = torch.zeros_like(going)
    returns, discounted = (
        torch.zeros(n, dtype=torch.float64, device=model.device) for _ in range(2)
    )
    lengths = torch.zeros(n, dtype=torch.int64, device=model.device)
    action, _ = act(obs)
    values = critic.q_values(obs, action).amin(0)
    max_steps = int(steps.max())
    for step in range(max_steps):
        obs, reward, terminated = model.step(obs, bounds.unscale(action), generator=generator)
        gone = _has_run_away(model, obs, reward)
        obs = torch.where(gone.unsqueeze(1), starts, obs)  # where the networks are finite
        ran_away |= going & gone
        reward = torch.where(going & reward.isfinite(), reward, 0.0)
        returns += reward
        discounted += gamma**step * reward
        lengths += going
        # those that are to take all steps are still going after the last one
        going &= ~(terminated | gone) & ((lengths < steps) | (steps == max_steps))
        if not bool(going.any()):
            break
        action, log_prob = act(obs)  # its entropy counts; that of the first action, given to Q, not
        discounted -= alpha * gamma ** (step + 1) * torch.where(going, log_prob, 0.0)
    rest = gamma**max_steps * torch.where(going, critic.q_values(obs, action).amin(0), 0.0)
    return _Episodes(returns, discounted + rest, lengths, rest, values, ran_away)


def _longest(dataset: OfflineDataset, gamma: float) -> int:
    """Steps after which an episode in the model is cut."""
    limit = time_limit(dataset.env_id)
    heard_of = math.ceil(3.0 / max(1.0 - gamma, 1e-3))  # as many as leave 5 % of the discount
    if not dataset.in_order:
        return limit or heard_of
    return min(int(dataset.episode_lengths().max()), limit or max(LONG, heard_of))


class _Recorded(NamedTuple):
    """What the data say of episodes from each of `starts`, (starts,) each."""

    starts: NDArray[np.intp]  #: rows
    #: undiscounted, in the environment's reward, of the steps that were recorded; NaN where rows
    #: are not in order
    returns: NDArray[np.float64]
    steps: NDArray[np.int64]  #: for which a policy is to be compared with them


def _recorded(dataset: OfflineDataset, max_steps: int) -> _Recorded:
    """Of episodes that the recording cut, what was recorded; of `max_steps` at most."""
    starts, ends = dataset.episode_starts(), dataset.episode_ends()
    if not dataset.in_order:
        return _Recorded(starts, np.full(len(starts), math.nan), np.full(len(starts), max_steps))
    if len(starts) == 1:  # one recording: from anywhere in it
        starts = np.arange(ends[-1] + 1)
    last = ends[np.searchsorted(ends, starts)]
    n = np.minimum(last - starts + 1, max_steps)
    sums = np.concatenate(([0.0], np.cumsum(dataset.rewards, dtype=np.float64)))
    returns = sums[starts + n] - sums[starts] - dataset.reward_offset * n
    ended = dataset.terminations[starts + n - 1] & (starts + n - 1 == last)
    return _Recorded(starts, returns, np.where(ended, max_steps, n))
