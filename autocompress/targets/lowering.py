"""Lowering: a compressed network as a graph of ATen operators, with every rounding of an activation as a node.

All files are written from this form, and it needs no class of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from autocompress.execute.compressed import LayerWeights
from autocompress.plan import Plan


@torch.library.custom_op("autocompress::round_activation", mutates_args=())
def round_activation(x: Tensor, scale: float, zero: int, bits: int) -> Tensor:
    """`ActivationRange.apply` as an operator: what QuantizeLinear and DequantizeLinear do one after the other."""
    return x.div(scale).round_().clamp_(-zero, 2**bits - 1 - zero).mul_(scale)


@round_activation.register_fake
def _(x: Tensor, scale: float, zero: int, bits: int) -> Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True, eq=False)
class Lowered:
    """A compressed network, ready to be written to a file.

    Attributes:
        graph: takes (N, …) float32 with any N. Its nodes are one placeholder, get_attr for parameters and buffers under
            the original's names (`layer1.0.conv1.weight`), calls of ATen operators and of `round_activation`,
            and one output.
        layers: by name, whose weight and bias the graph holds as float32 parameters.
        plan: the labels that it was made by.
        input_shape: of one sample.
    """

    graph: fx.GraphModule
    layers: Mapping[str, LayerWeights]
    plan: Plan
    input_shape: tuple[int, ...]
