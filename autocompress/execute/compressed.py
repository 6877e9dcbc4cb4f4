"""A compressed network: a plain, smaller module, and for every layer the codes, scales and ranges of its file.

The same weights are held twice. `LayerWeights` has them as files store them, integer codes with a scale for every row;
the module has them as PyTorch runs them, float32:

    weight[r] = codes[r] * scale[r]

Whoever changes one writes the other (`write_weights_`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.renormalize import Affine, Renormalizer
from autocompress.evaluation.stitch import (
    InputRounding,
    LayerChoice,
    Stitcher,
    in_layer_shape,
    kept_rows,
    resolve,
    runnable,
)
from autocompress.execute.factors import cut_, join_
from autocompress.menus.activations import ActivationRange
from autocompress.menus.menus import Menus
from autocompress.menus.variants import Variant
from autocompress.network.structure import Layer, Network
from autocompress.plan import FIRST, SECOND, Label, Plan
from autocompress_envs.problem import Labeling, n_of_m, removed_weights


@dataclass(frozen=True)
class LayerWeights:
    """The finished weights of one layer, as files store them.

    >>> codes = torch.tensor([[1, -8], [7, 0]], dtype=torch.int8)
    >>> layer = LayerWeights(codes, torch.tensor([0.5, 0.25]), None, bits=4, sparsity=0.0, input_range=None)
    >>> layer.weight()
    tensor([[ 0.5000, -4.0000],
            [ 1.7500,  0.0000]])

    Attributes:
        values: (rows, …) in the shape of the module's weight; it has no element where the layer writes or reads a
            removed branch. int8 codes where there is a scale, otherwise float32 weights; with 16 bits all of them are
            float16 numbers.
        scale: (rows,) float32 above 0; None: the label is floating point (16 or 32 bits).
        bias: (rows,) float32; None: the layer has none.
        bits: bit-width of the weights: 1 to 8, 16 or 32.
        sparsity: fraction of the layer's single weights that are removed (granularity `element` or `n:m`); 0 with
            `channel`, where removed channels are gone from `values`.
        input_range: range that the layer's input is rounded to; None: it is not rounded.
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
        """The float32 weight in the shape of `values`: code * scale of its row, or the values themselves."""
        if self.scale is None:
            return self.values.float()
        return self.values * self.scale.view(-1, *[1] * (self.values.ndim - 1))

    def as_run(self, unit: Sequence[int] = (1, 1)) -> tuple[Tensor, Tensor]:
        """Weight and bias as PyTorch can run them (`runnable`); the bias is zeros where the layer has none.

        Args:
            unit: output and input channels of zeros that stand in where the layer has none.
        """
        return runnable(self.weight(), torch.zeros(len(self.values)) if self.bias is None else self.bias, unit)


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network, as a module and as the finished weights of its layers.

    A layer of low rank is two layers here, `NAME.0` and `NAME.1` (`factors`).

    Attributes:
        model: float32 module in eval mode: norms folded where a layer could take them, channels gone, the layers'
            weights written in. It does not round activations; `rounded` does. A channel of zeros, or a head, stands in
            for every removed branch (`runnable`); files have none.
        layers: finished weights by layer name, in the order of the network (`Plan.modules`); exactly those that `model`
            has.
        plan: labels that the network was made by.
    """

    model: nn.Module
    layers: Mapping[str, LayerWeights]
    plan: Plan

    def rounded(self) -> nn.Module:
        """A copy of the model whose layers round their inputs as the plan says (by forward pre-hooks)."""
        model = copy.deepcopy(self.model)
        modules = dict(model.named_modules())
        ranges = {name: layer.input_range for name, layer in self.layers.items()}
        for name in ranges:
            modules[name].register_forward_pre_hook(InputRounding(name, ranges))
        return model


def from_menus(menus: Menus, labeling: Labeling, folded: nn.Module) -> Compressed:
    """The compressed network of a plan, with the menus' weights as they are.

    Args:
        menus: menus of the network.
        labeling: plan, as positions on the menus.
        folded: original network with its norms folded (`fold_batch_norms`); it is not changed.
    """
    stitcher = Stitcher(copy.deepcopy(folded).cpu().float().eval(), menus)
    model = stitcher.stitch_(labeling)
    layers: dict[str, LayerWeights] = {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        variant = menus.variant(layer, choice.reads, choice.sparsity, choice.weight_bits)
        made = finished_layers(menus, layer, choice, variant)
        _remove_rounding_(model.get_submodule(layer.name))
        if variant.first is not None:
            cut_(model, layer.name, len(variant.first.values))
        for name, weights in made.items():
            write_weights_(model, name, weights)  # in plain memory order, as files have them
        layers |= made
    return Compressed(model, layers, menus.plan(labeling))


def check_activations(layers: Mapping[str, LayerWeights], file: str, target: str) -> None:
    """Raise InputError where inputs are rounded to other than 8 bits, which files with integer kernels can't hold.

    Args:
        layers: finished layers by name.
        file: kind of file in a message, such as `an ONNX file`.
        target: name of the target to search for instead.
    """
    for name, layer in layers.items():
        if layer.input_range is not None and layer.input_range.bits != 8:
            raise InputError(
                f"`plan` must round activations to 8 bits or not at all for {file}, got {layer.input_range.bits} "
                f"bits for {name}; search with `--target {target}`."
            )


def uncompressed(folded: nn.Module, network: Network, granularity: str = "channel") -> Compressed:
    """The original as a `Compressed`: every layer in float32, nothing removed, no input rounded.

    Args:
        folded: original network with its norms folded; it is not changed.
        network: trace of the original.
        granularity: granularity that the plan of the result names; nothing is removed whatever it is.
    """
    model = copy.deepcopy(folded).cpu().float().eval()
    layers = {}
    for layer in network.layers:
        module = model.get_submodule(layer.name)
        bias = None if getattr(module, "bias", None) is None else module.get_parameter("bias").detach().clone()
        layers[layer.name] = LayerWeights(module.get_parameter("weight").detach().clone(), None, bias, 32, 0.0, None)
    return Compressed(model, layers, Plan({name: Label() for name in layers}, granularity, network.fingerprint))


def whole_layers(compressed: Compressed) -> Compressed:
    """The same network, computing the same, with every layer as one: two factors become their product, in 32 bits.

    Args:
        compressed: compressed network; it is not changed.
    """
    model, layers = copy.deepcopy(compressed.model), {}
    for name, label in compressed.plan.labels.items():
        if not label.rank:
            layers[name] = compressed.layers[name]
            continue
        first, second = (compressed.layers[f"{name}.{part}"] for part in (FIRST, SECOND))
        product = (second.weight().flatten(1) @ first.weight().flatten(1)).view(-1, *first.values.shape[1:])
        layers[name] = LayerWeights(product, None, second.bias, 32, 0.0, first.input_range)
        join_(model, name)
        write_weights_(model, name, layers[name])
    return Compressed(model, layers, compressed.plan)


def with_layers_of(compressed: Compressed, layers: Mapping[str, LayerWeights]) -> Compressed:
    """A copy with other weights of the same shapes.

    Args:
        compressed: compressed network; it is not changed.
        layers: weights by layer name; the layers that are not among them keep their own.
    """
    model = copy.deepcopy(compressed.model)
    found = {name: layers.get(name, own) for name, own in compressed.layers.items()}
    for name, weights in found.items():
        write_weights_(model, name, weights)
    return Compressed(model, found, compressed.plan)


def renormalized(
    compressed: Compressed, renormalizer: Renormalizer, rows: Mapping[str, Tensor], keeping: Collection[str] = ()
) -> Compressed:
    """A copy whose layers give outputs with the original's means and spreads (`evaluation.renormalize`).

    Args:
        compressed: compressed network; it is not changed.
        renormalizer: renormalizer of the original.
        rows: (k,) int64 output channels that are left, by name of the layer.
        keeping: names of layers that keep their weights.
    """
    layers, model = {}, whole_layers(compressed).rounded().to(renormalizer.device)
    for name, affine in renormalizer.apply_(model, rows, keeping).items():
        last = name if name in compressed.layers else f"{name}.{SECOND}"
        layers[last] = _scaled(compressed.layers[last], affine.cpu())
    return with_layers_of(compressed, layers)


def _scaled(layer: LayerWeights, affine: Affine) -> LayerWeights:
    """The layer with outputs that are scaled and shifted; its codes stay."""
    bias = None if layer.bias is None else affine.bias(layer.bias)
    if layer.scale is not None:
        return replace(layer, scale=affine.weight(layer.scale), bias=bias)
    values = affine.weight(layer.values)
    return replace(layer, values=values.half().float() if layer.bits == 16 else values, bias=bias)


def finished_layers(menus: Menus, layer: Layer, choice: LayerChoice, variant: Variant) -> dict[str, LayerWeights]:
    """The finished weights of one layer by name: the rows of a variant that stay, in the shape of the module's weight.

    Of a variant of low rank, those of its two factors.

    Args:
        menus: menus of the network.
        layer: structure of the layer.
        choice: resolved part of a plan that is the layer's.
        variant: weights from the layer's menu, columns of removed input channels gone.
    """
    rows = kept_rows(menus, layer, choice)
    last = LayerWeights(
        values=in_layer_shape(variant.values[rows], layer),
        scale=None if variant.scale is None else variant.scale[rows],
        bias=variant.bias[rows] if layer.has_bias else None,
        bits=menus.formats(layer)[choice.weight_bits].bits,
        sparsity=choice.sparsity,
        input_range=menus.ranges[layer.name][choice.activation_bits],
    )
    if variant.first is None:
        return {layer.name: last}
    values = in_layer_shape(variant.first.values, layer)
    first = replace(last, values=values, scale=variant.first.scale, bias=None)
    return {f"{layer.name}.{FIRST}": first, f"{layer.name}.{SECOND}": replace(last, input_range=None)}


def _remove_rounding_(module: nn.Module) -> None:
    """Remove the stitcher's hook from a layer; the model's own hooks stay."""
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, InputRounding)]:
        del hooks[key]


def write_weights_(model: nn.Module, name: str, weights: LayerWeights) -> None:
    """Put a layer's weights into its module, as PyTorch runs them.

    Args:
        model: network that has the layer; its module already has the numbers of channels of `weights`.
        name: name of the layer.
        weights: finished weights of the layer.
    """
    module = model.get_submodule(name)
    weight, bias = weights.as_run(module.get_parameter("weight").shape[:2])
    device = module.get_parameter("weight").device
    module.get_parameter("weight").data = weight.clone(memory_format=torch.contiguous_format).to(device)
    if weights.bias is not None:
        module.get_parameter("bias").data = bias.clone().to(device)


def kept_map(values: Tensor, sparsity: float, granularity: str) -> Tensor | None:
    """Which weights of a sparse layer are stored. Of its zeros, exactly as many as the label removes are not.

    Rounding makes more zeros than the label removes. Those left out are the first ones in memory order (`element`), or
    the first ones of every block (`n:m`), so that a reader knows the number of stored weights from the label alone.

    >>> kept_map(torch.tensor([[0, 3, 0, 0]]), 0.5, "element")  # two of the three zeros are removed
    tensor([[False,  True, False,  True]])

    Args:
        values: (rows, …) codes or weights.
        sparsity: fraction of single weights that the label removes.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

    Returns:
        Bool in the shape of `values`, True where the weight is stored; None: all are.
    """
    if granularity == "channel" or sparsity == 0:
        return None
    zero = (values == 0).flatten(1).numpy()  # (rows, columns)
    if granularity == "element":
        removed = int(removed_weights(np.array(zero.size), sparsity))
        kept = ~(zero & (zero.ravel().cumsum().reshape(zero.shape) <= removed))
    else:
        stays, block = n_of_m(granularity)
        blocks = zero.reshape(-1, block)
        kept = ~(blocks & (blocks.cumsum(1) <= block - stays))
    return torch.from_numpy(kept).view(values.shape)
