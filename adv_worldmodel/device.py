"""Where tensors live, and how a data set's read-only arrays get there."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adv_worldmodel.errors import first_line


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the GPU where torch sees one, else the CPU.

    :raises ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a missing backend
        # the first sentence: of a backend that is left out, torch lists all operators in one line
        reason = first_line(error).partition(". ")[0]
        raise ValueError(
            f"device = {str(device)!r} cannot be used here ({reason}): set device=auto or "
            "device=cpu"
        ) from error
    return torch.device(device)


def shared_tensor(array: NDArray[Any], device: str | torch.device) -> Tensor:
    """A tensor of a read-only array, on the CPU without a copy: it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(array, device=device)
