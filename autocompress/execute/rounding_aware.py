"""Training through rounding: weights and inputs are rounded in the forward pass, and their steps are learned.

Learned Step Size Quantization (LSQ, Esser et al. 2020). A weight w is run as

    ŵ = s · q,    q = clamp(round(v), low, high),    v = w / s        s: the step (scale) of w's row

round() has derivative 0 almost everywhere, so its derivative is taken as 1 (straight-through). For a loss L that gives

    ∂ŵ / ∂w = 1           where v rounds into the range, 0 outside
    ∂ŵ / ∂s = q - v       where v rounds into the range, q (the end of the range) outside         (eq. 3)

and the step's gradient is summed over its row and multiplied by 1 / sqrt(weights in the row · largest code), so that
steps and weights move at like relative speeds (section 2.2).

The way through: `rounding_aware` gives every layer of a copy a `LearnedCodes` (its weight) and a `LearnedRange` (its
input); after training, `finished` reads the codes, scales and ranges back.
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
from autocompress.menus.rounding import code_range

_SMALLEST_STEP = 1e-14  # below what quantizers give rows of zeros, whose steps must stay what they are


class _Round(torch.autograd.Function):
    """x rounded to codes from `low` to `high`, times `step`, which is broadcast; with `binary`, codes are -1 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, binary: bool, gradient_scale: float) -> Tensor:
        scaled = x / step.to(x.dtype)  # v
        codes = torch.where(scaled < 0, -1.0, 1.0).to(x.dtype) if binary else scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, codes if step.requires_grad else None, step)
        ctx.range, ctx.gradient_scale = (low, high), gradient_scale
        return codes * step.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        scaled, codes, step = ctx.saved_tensors
        low, high = ctx.range
        # The gradient where v rounds into the range, else 0: the derivative of a clamp, in one pass. Half a step beyond
        # either end still rounds to that end.
        passed = torch.ops.aten.hardtanh_backward(gradient, scaled, low - 0.5, high + 0.5)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None, None, None
        by_step = gradient * codes - passed * scaled  # q - v inside, q outside, each times the gradient
        reduced = by_step.float().sum_to_size(step.shape) * ctx.gradient_scale
        return passed, reduced, None, None, None, None


class LearnedCodes(nn.Module):
    """Parametrization of a weight: removed weights stay 0, all others are rounded on a learned step for every row.

    Args:
        layer: finished layer that training begins with.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

    Attributes:
        bits: bit-width of the weights.
        step: (rows, 1, …) learned steps; None: the label is floating point.
        gradient_scale: number that the steps' gradient is multiplied by.
        kept: 1.0 where a weight is kept and 0.0 where it is removed, in the weight's shape; None: all are kept.
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
        """The rounded weight, in the shape of `weight`, the float one that is trained."""
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
        """The layer with the codes that `forward` computes and the learned steps as scales.

        Args:
            weight: trained float weight.
            layer: finished layer that training began with.
        """
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
    """Forward pre-hook that rounds a layer's input on a learned step; the zero point stays, so that padding is exact.

    The step is learned below 8 bits; at 8 bits its gradient would take a third of the training time for nothing.

    Args:
        found: range of the input that training begins with.

    Attributes:
        found: range of the input that training began with.
        step: (1,) step, learned below 8 bits.
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
        """The range with the learned step."""
        return replace(self.found, scale=max(float(self.step), _SMALLEST_STEP))


def rounding_aware(compressed: Compressed, kept_weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the network that computes what `Compressed.rounded` does, and can be trained.

    Args:
        compressed: network to be trained; it is not changed.
        kept_weights: float weights by layer, in its shapes, that training begins with in the place of its own. Layers
            that are not among them, as the factors of low ranks, begin with their own; None: all do.
    """
    model = copy.deepcopy(compressed.model).requires_grad_(True)
    for name, layer in compressed.layers.items():
        module = model.get_submodule(name)
        if layer.is_empty:  # the zeros that stand in for a removed branch stay zeros; what reads it learns its bias
            module.get_parameter("weight").requires_grad_(False)
            if len(layer.values) == 0:
                module.requires_grad_(False)
            continue
        if kept_weights is not None and name in kept_weights:
            module.get_parameter("weight").data = kept_weights[name].clone()
        parametrize.register_parametrization(module, "weight", LearnedCodes(layer, compressed.plan.granularity))
        if layer.input_range is not None:
            module.input_rounding = LearnedRange(layer.input_range)
            module.register_forward_pre_hook(module.input_rounding)
    return model


@torch.no_grad()
def finished(model: nn.Module, compressed: Compressed) -> Compressed:
    """The compressed network that a trained model computes.

    Args:
        model: model from `rounding_aware`, trained.
        compressed: network that training began with; it is not changed.
    """
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
    """The layer with the codes, scales and input range that its module has learned."""
    shadow = module.parametrizations.weight
    found: LayerWeights = shadow[0].finish(shadow.original, layer)
    return found if layer.input_range is None else replace(found, input_range=module.input_rounding.finish())


def _learned_bias(module: Any, layer: LayerWeights) -> Tensor:
    """(rows,) the bias of a trained module, without the one of a channel that stands in for a removed branch."""
    bias: Tensor = module.bias.detach().float().clone()
    return bias[: len(layer.values)]


@torch.no_grad()
def unrounded(model: nn.Module, compressed: Compressed) -> dict[str, tuple[Tensor, Tensor | None]]:
    """(weight, bias or None) by layer that a trained model keeps behind its rounding, removed weights at 0.

    Args:
        model: model from `rounding_aware`, trained.
        compressed: network that training began with.
    """
    found = {}
    for name, layer in compressed.layers.items():
        module: Any = model.get_submodule(name)
        bias = None if layer.bias is None else _learned_bias(module, layer)
        found[name] = (layer.weight() if layer.is_empty else _unrounded_weight(module), bias)
    return found


def _unrounded_weight(module: Any) -> Tensor:
    """The float weight that a trained module rounds, removed weights at 0."""
    shadow = module.parametrizations.weight
    weight: Tensor = shadow.original.detach().float().clone()
    kept: Tensor | None = shadow[0].kept
    return weight if kept is None else weight * kept
