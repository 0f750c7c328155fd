"""Raw actions to and from [-1, 1], in which SB3 stores and criticises them off policy."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor


class ActionBounds:
    """The bounds of an action space as tensors on a device."""

    def __init__(self, space: Box, device: torch.device) -> None:
        self.low = torch.as_tensor(np.asarray(space.low), dtype=torch.float32, device=device)
        self.high = torch.as_tensor(np.asarray(space.high), dtype=torch.float32, device=device)

    def scale(self, action: Tensor) -> Tensor:
        """Raw actions ``(..., A)`` to [-1, 1]."""
        return 2.0 * (action - self.low) / (self.high - self.low) - 1.0

    def unscale(self, scaled: Tensor) -> Tensor:
        """Actions in [-1, 1] ``(..., A)`` to raw ones."""
        return self.low + 0.5 * (scaled + 1.0) * (self.high - self.low)
