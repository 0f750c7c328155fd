"""Where tensors live, and how a data set's read-only arrays get there."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the GPU where torch sees one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def shared_tensor(array: NDArray[Any], device: str | torch.device) -> Tensor:
    """A tensor of a read-only array, on the CPU without a copy: it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(array, device=device)
