"""Training through rounding: weights and inputs are rounded in the forward pass, and their steps are learned.

Learned Step Size Quantization (LSQ, Esser et al. 2020): with v = w / s, the gradient passes where v lies within the
range (straight-through), and that of the step is (eq. 3)

    d ŵ / d s = round(v) - v inside, the end of the range outside,    times 1 / sqrt(weights in the row · largest code).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.execute.compressed import Compressed, LayerWeights, kept_map, write_weights_
from autocompress.menus.activations import ActivationRange
from autocompress.menus.quantizers import code_range

_SMALLEST_STEP = 1e-14  # below what quantizers give rows of zeros, whose steps must stay what they are


class _Round(torch.autograd.Function):
    """round(x / step) clamped to [low, high], times step; `step` broadcasts. 1 bit (low, high = -1, 1): the sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, binary: bool, gradient_scale: float) -> Tensor:
        scaled = x / step.to(x.dtype)
        codes = torch.where(scaled < 0, -1.0, 1.0).to(x.dtype) if binary else scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, codes if step.requires_grad else None, step)
        ctx.range, ctx.gradient_scale = (low, high), gradient_scale
        return codes * step.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        scaled, codes, step = ctx.saved_tensors
        low, high = ctx.range
        # The derivative of a clamp, in one pass; half a step more on either side, which rounds into the range.
        passed = torch.ops.aten.hardtanh_backward(gradient, scaled, low - 0.5, high + 0.5)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None, None, None
        by_step = gradient * codes - passed * scaled
        reduced = by_step.float().sum_to_size(step.shape) * ctx.gradient_scale
        return passed, reduced, None, None, None, None


class LearnedCodes(nn.Module):
    """Parametrization of a weight: what is removed stays removed, what is left is rounded on a learned step per row.

    Args:
        layer: its values, bits and scale so far.
        granularity: of the sparsity.
    """

    kept: Tensor | None

    def __init__(self, layer: LayerWeights, granularity: str) -> None:
        super().__init__()
        self.bits = layer.bits
        shape = (-1, *[1] * (layer.values.ndim - 1))
        self.step = None if layer.scale is None else nn.Parameter(layer.scale.clone().view(shape))
        self.gradient_scale = 1 / math.sqrt(layer.values[0].numel() * max(1, code_range(min(layer.bits, 8))[1]))
        kept = kept_map(layer.values, layer.sparsity, granularity)
        self.register_buffer("kept", None if kept is None else kept.float())

    def forward(self, weight: Tensor) -> Tensor:
        if self.kept is not None:
            weight = weight * self.kept
        if self.step is None:
            return weight.half().float() if self.bits == 16 and not torch.is_grad_enabled() else weight
        low, high = code_range(self.bits)
        step = self.step.clamp(min=_SMALLEST_STEP)
        rounded: Tensor = _Round.apply(weight, step, low, high, self.bits == 1, self.gradient_scale)
        return rounded if self.kept is None else rounded * self.kept

    @torch.no_grad()
    def finish(self, weight: Tensor, layer: LayerWeights) -> LayerWeights:
        """The layer with what was learned: the codes that `forward` computes."""
        weight = weight.detach().float().contiguous()
        if self.kept is not None:
            weight = weight * self.kept
        if self.step is None:
            return replace(layer, values=weight.half().float() if self.bits == 16 else weight.clone())
        step = self.step.float().clamp(min=_SMALLEST_STEP)
        scaled = weight / step
        codes = torch.where(scaled < 0, -1.0, 1.0) if self.bits == 1 else scaled.round().clamp(*code_range(self.bits))
        codes = codes if self.kept is None else codes * self.kept
        return replace(layer, values=codes.to(torch.int8), scale=step.flatten().clone())


class LearnedRange(nn.Module):
    """Rounds a layer's input; the code of zero stays, so that padding is exact.

    The step is learned below 8 bits; at 8 bits its gradient would take a third of the training time for nothing.
    """

    def __init__(self, found: ActivationRange) -> None:
        super().__init__()
        self.found = found
        self.step = nn.Parameter(torch.tensor([found.scale]), requires_grad=found.bits < 8)

    def forward(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        low, high = -self.found.zero, 2**self.found.bits - 1 - self.found.zero
        scale = 1 / math.sqrt(args[0][0].numel() * max(1, high))
        rounded: Tensor = _Round.apply(args[0], self.step.clamp(min=_SMALLEST_STEP), low, high, False, scale)
        return (rounded, *args[1:])

    def finish(self) -> ActivationRange:
        return replace(self.found, scale=max(float(self.step), _SMALLEST_STEP))


def rounding_aware(compressed: Compressed, kept_weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the network that computes what `Compressed.rounded` does, and can be trained.

    Args:
        compressed: the network.
        kept_weights: by layer, in its shapes: weights that are rounded in the place of its own.
    """
    model = copy.deepcopy(compressed.model).requires_grad_(True)
    for name, layer in compressed.layers.items():
        module = model.get_submodule(name)
        if layer.is_empty:  # the zeros that stand in for a removed branch stay zeros; what reads it learns its bias
            module.get_parameter("weight").requires_grad_(False)
            if len(layer.values) == 0:
                module.requires_grad_(False)
            continue
        if kept_weights is not None:
            module.get_parameter("weight").data = kept_weights[name].clone()
        parametrize.register_parametrization(module, "weight", LearnedCodes(layer, compressed.plan.granularity))
        if layer.input_range is not None:
            module.input_rounding = LearnedRange(layer.input_range)
            module.register_forward_pre_hook(module.input_rounding)
    return model


@torch.no_grad()
def finished(model: nn.Module, compressed: Compressed) -> Compressed:
    """The compressed network that a trained `rounding_aware` model stands for."""
    result = copy.deepcopy(compressed.model)
    layers = {}
    for name, layer in compressed.layers.items():
        module: Any = model.get_submodule(name)
        layers[name] = layer if layer.is_empty else _finished_weight(module, layer)
        if layer.bias is not None:
            layers[name] = replace(layers[name], bias=_learned_bias(module, layer))
        write_weights_(result, name, layers[name])
    names = {f"{name}.{field}" for name in layers for field in ("weight", "bias")}
    trained = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (*result.named_parameters(), *result.named_buffers()):
        if name not in names:
            tensor.copy_(trained[name])
    return Compressed(result, layers, compressed.plan)


def _finished_weight(module: Any, layer: LayerWeights) -> LayerWeights:
    shadow = module.parametrizations.weight
    found: LayerWeights = shadow[0].finish(shadow.original, layer)
    return found if layer.input_range is None else replace(found, input_range=module.input_rounding.finish())


def _learned_bias(module: Any, layer: LayerWeights) -> Tensor:
    bias: Tensor = module.bias.detach().float().clone()
    return bias[: len(layer.values)]


@torch.no_grad()
def unrounded(model: nn.Module, compressed: Compressed) -> dict[str, tuple[Tensor, Tensor | None]]:
    """By layer, (weight, bias) that a trained `rounding_aware` model keeps behind its rounding, removed ones at 0."""
    found = {}
    for name, layer in compressed.layers.items():
        module: Any = model.get_submodule(name)
        bias = None if layer.bias is None else _learned_bias(module, layer)
        found[name] = (layer.weight() if layer.is_empty else _unrounded_weight(module), bias)
    return found


def _unrounded_weight(module: Any) -> Tensor:
    shadow = module.parametrizations.weight
    weight: Tensor = shadow.original.detach().float().clone()
    kept: Tensor | None = shadow[0].kept
    return weight if kept is None else weight * kept
