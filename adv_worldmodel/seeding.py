"""Independent random streams from one seed; nothing here touches the global random state."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from adv_worldmodel.checks import check_whole


def make_generator(
    seed: int | None, stream: str, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator for one named purpose.

    Two purposes under the same seed must not share numbers (the environment's noise would equal
    the agent's), so the name of the stream is mixed into the seed. ``None`` asks the operating
    system for entropy.
    """
    if seed is not None:
        check_whole(at_least=0, seed=seed)
    generator = torch.Generator(device=device)
    entropy = (
        np.random.SeedSequence()
        if seed is None
        else np.random.SeedSequence([seed, zlib.crc32(stream.encode())])
    )
    generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return generator
