"""How large the agents of the fixture `make_agent` are, and how to train one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents import RAMBO

N_ENVS, HORIZON, UPDATES = 20, 3, 4
MakeAgent = Callable[..., Any]


def run(agent: RAMBO, iterations: int, **kwargs: Any) -> RAMBO:
    return agent.learn(total_timesteps=iterations * agent.timesteps_per_iteration, **kwargs)


def learnt(make_agent: MakeAgent, **settings: Any) -> RAMBO:
    """An agent that has learnt a little."""
    return run(make_agent(gradient_steps=2, **settings), 1)
