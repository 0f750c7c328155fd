"""Products that are added to biases: what a GPU can do of them before their inputs are there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from adv_worldmodel.graphs import Branches


def comes_early(output: Tensor) -> bool:
    """Whether biases are written before the products: not on a CPU, which would read them twice."""
    return output.device.type != "cpu"


def begin_biases(outputs: Iterable[Tensor], biases: Iterable[Tensor]) -> Branches:
    """Begin to write biases into the outputs of layers, for :func:`add_product`.

    On a GPU that is a kernel of its own, which need not wait for the layer's inputs.

    :param biases: broadcast to the outputs, as many.
    :return: to be joined before the products.
    """
    pairs = list(zip(outputs, biases, strict=True))
    branches = Branches(pairs[0][0].device if pairs else torch.device("cpu"))
    for output, bias in pairs:
        if comes_early(output):
            with branches.beside():
                output.copy_(bias)
    return branches


def add_product(output: Tensor, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """bias + x weight into ``output``, where the bias has been written by :func:`begin_biases`.

    :param output: ``(E, B, out)``, or ``(B, out)``.
    :param x: ``(E, B, in)``, or ``(B, in)``.
    :param weight: ``(E, in, out)``, or ``(in, out)``.
    """
    if comes_early(output):
        return output.addmm_(x, weight) if output.dim() == 2 else output.baddbmm_(x, weight)
    product = torch.addmm if output.dim() == 2 else torch.baddbmm
    return product(bias, x, weight, out=output)
