"""All that the world model knows of an agent: a policy to sample and a value function to lower."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Policy(Protocol):
    """A stochastic policy on raw observations and raw actions."""

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """One action per row, ``(B, A)``, of states ``(B, S)`` and standard normals ``(B, A)``.

        A function of tensors: the caller draws, so that an update can be repeated or captured.
        """
        ...


class ValueFunction(Protocol):
    """Values of raw states and actions under the agent's present policy.

    Both methods must be differentiable in their arguments, for the ``pathwise`` model gradient.
    """

    def v(self, obs: Tensor) -> Tensor:
        """State value V(s): ``(B, S)`` to ``(B,)``."""
        ...

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """State-action value Q(s, a), or V(s) where the agent has no Q: to ``(B,)``."""
        ...
