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
        self.centre = 0.5 * (self.low + self.high)
        self.reach = 0.5 * (self.high - self.low)

    def scale(self, action: Tensor) -> Tensor:
        """Raw actions ``(..., A)`` to [-1, 1]."""
        return (action - self.centre) / self.reach

    def unscale(self, scaled: Tensor) -> Tensor:
        """Actions in [-1, 1] ``(..., A)`` to raw ones."""
        return torch.addcmul(self.centre, scaled, self.reach)
