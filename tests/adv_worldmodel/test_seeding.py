"""Random streams under one seed."""

from __future__ import annotations

import pytest
import torch

from adv_worldmodel.seeding import make_generator

STREAMS = ("fit", "env", "agent", "replay", "adversary")


def test_streams_and_seeds_share_no_numbers() -> None:
    generators = [make_generator(seed, stream) for seed in (0, 1) for stream in STREAMS]
    first = torch.cat([torch.rand(100, generator=g, dtype=torch.float64) for g in generators])
    assert len(first.unique()) == len(first)


def test_a_stream_is_known_by_its_seed_and_one_without_is_new() -> None:
    assert make_generator(3, "env").initial_seed() == make_generator(3, "env").initial_seed()
    assert make_generator(None, "env").initial_seed() != make_generator(None, "env").initial_seed()


@pytest.mark.parametrize("seed", ["a", -1, 1.5, True])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(ValueError, match=f"seed = {seed!r}"):
        make_generator(seed, "env")  # type: ignore[arg-type]
