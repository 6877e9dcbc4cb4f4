"""A compressed network: a plain, smaller module, and for every layer the codes, scales and ranges of its file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.evaluation.stitch import (
    InputRounding,
    LayerChoice,
    Stitcher,
    in_layer_shape,
    kept_rows,
    resolve,
    runnable,
)
from autocompress.menus.activations import ActivationRange
from autocompress.menus.menus import Menus
from autocompress.menus.variants import Variant
from autocompress.network.structure import Layer, Network
from autocompress.plan import Label, Plan
from autocompress_envs.problem import Labeling, n_of_m, removed_weights


@dataclass(frozen=True)
class LayerWeights:
    """One finished layer.

    Attributes:
        values: in the shape of the module's weight, rows first, without elements where the layer writes or reads a
            removed branch: int8 codes where `scale` is given, else float32 (16 bits: every value exactly representable
            in float16).
        scale: (rows,) float32 > 0, or None for floating-point labels.
        bias: (rows,) float32, or None.
        bits: of the weights: 1 to 8, 16 or 32.
        sparsity: of the layer's own weights with granularity `element` or `n:m`; 0 with `channel`.
        input_range: how its input is rounded, or None.
    """

    values: Tensor
    scale: Tensor | None
    bias: Tensor | None
    bits: int
    sparsity: float
    input_range: ActivationRange | None

    @property
    def is_empty(self) -> bool:
        """Whether no weight is left: the layer writes or reads a removed branch."""
        return self.values.numel() == 0

    def weight(self) -> Tensor:
        """Float32 in the shape of `values`."""
        if self.scale is None:
            return self.values.float()
        return self.values * self.scale.view(-1, *[1] * (self.values.ndim - 1))

    def as_run(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as PyTorch can run them (`runnable`); the bias is zeros where the layer has none."""
        return runnable(self.weight(), torch.zeros(len(self.values)) if self.bias is None else self.bias)


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network.

    Attributes:
        model: float32 in eval mode: norms folded where a layer could take them, channels gone, the layers' weights
            written in. It does not round activations; `rounded` does. A channel of zeros stands in for every removed
            branch (`runnable`); files have none.
        layers: by name in network order, with exactly the weights that `model` has.
        plan: the labels that it was made by.
    """

    model: nn.Module
    layers: Mapping[str, LayerWeights]
    plan: Plan

    def rounded(self) -> nn.Module:
        """A copy of the model whose layers round their inputs as the plan says."""
        model = copy.deepcopy(self.model)
        modules = dict(model.named_modules())
        ranges = {name: layer.input_range for name, layer in self.layers.items()}
        for name in ranges:
            modules[name].register_forward_pre_hook(InputRounding(name, ranges))
        return model


def from_menus(menus: Menus, labeling: Labeling, folded: nn.Module) -> Compressed:
    """The plan with its menus' weights as they are.

    Args:
        menus: of the network.
        labeling: the plan.
        folded: the original with its norms folded (`fold_batch_norms`); it is not changed.
    """
    stitcher = Stitcher(copy.deepcopy(folded).cpu().float().eval(), menus)
    model = stitcher.stitch_(labeling)
    layers = {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        variant = menus.variant(layer, choice.reads, choice.sparsity, choice.weight_bits)
        layers[layer.name] = layer_weights(menus, layer, choice, variant)
        write_weights_(model, layer.name, layers[layer.name])  # in plain memory order, as files have them
        _remove_rounding_(model.get_submodule(layer.name))
    return Compressed(model, layers, menus.plan(labeling))


def uncompressed(folded: nn.Module, network: Network, granularity: str = "channel") -> Compressed:
    """The original in the same form: every layer in float32, nothing removed, no input rounded.

    Args:
        folded: the original with its norms folded; it is not changed.
        network: its trace.
        granularity: of the plan that says so.
    """
    model = copy.deepcopy(folded).cpu().float().eval()
    layers = {}
    for layer in network.layers:
        module = model.get_submodule(layer.name)
        bias = None if module.bias is None else module.get_parameter("bias").detach().clone()
        layers[layer.name] = LayerWeights(module.get_parameter("weight").detach().clone(), None, bias, 32, 0.0, None)
    return Compressed(model, layers, Plan({name: Label() for name in layers}, granularity, network.fingerprint))


def layer_weights(menus: Menus, layer: Layer, choice: LayerChoice, variant: Variant) -> LayerWeights:
    """The rows of a variant that stay, in the shape of the module's weight."""
    rows = kept_rows(menus, layer, choice)
    return LayerWeights(
        values=in_layer_shape(variant.values[rows], layer),
        scale=None if variant.scale is None else variant.scale[rows],
        bias=variant.bias[rows] if layer.has_bias else None,
        bits=menus.settings.weight_bits[choice.weight_bits],
        sparsity=choice.sparsity,
        input_range=menus.ranges[layer.name][choice.activation_bits],
    )


def _remove_rounding_(module: nn.Module) -> None:
    """The stitcher's hook; the model's own stay."""
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, InputRounding)]:
        del hooks[key]


def write_weights_(model: nn.Module, name: str, weights: LayerWeights) -> None:
    """Put a layer's weights into a module of the shapes that they have as they run."""
    module = model.get_submodule(name)
    weight, bias = weights.as_run()
    module.get_parameter("weight").data = weight.clone(memory_format=torch.contiguous_format)
    if weights.bias is not None:
        module.get_parameter("bias").data = bias.clone()


def kept_map(values: Tensor, sparsity: float, granularity: str) -> Tensor | None:
    """True where a weight is stored; of the zeros, exactly as many as the label removes are not. None: all are.

    Args:
        values: codes or weights, rows first.
        sparsity: of the label.
        granularity: `channel`, `element` or `n:m`.

    Returns:
        Bool, shape of `values`.
    """
    if granularity == "channel" or sparsity == 0:
        return None
    zero = (values == 0).flatten(1).numpy()
    if granularity == "element":
        removed = int(removed_weights(np.array(zero.size), sparsity))
        kept = ~(zero & (zero.ravel().cumsum().reshape(zero.shape) <= removed))
    else:
        stays, block = n_of_m(granularity)
        blocks = zero.reshape(-1, block)
        kept = ~(blocks & (blocks.cumsum(1) <= block - stays))
    return torch.from_numpy(kept).view(values.shape)
