"""Environments and agents that tests of several files share."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium as gym
import pytest

from tests.agents.countdown import Countdown


@pytest.fixture
def countdown() -> Iterator[str]:
    gym.register(id="Countdown-v0", entry_point=Countdown)
    yield "Countdown-v0"
    del gym.registry["Countdown-v0"]
