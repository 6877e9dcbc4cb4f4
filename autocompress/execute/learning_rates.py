"""Learning rates of fine-tuning: one for every tensor, in proportion to its size, and one course for all."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

_WARM_UP = 0.05  # share of all steps
_STEP_RATE = 0.1  # of quantization steps, beside weights: at the weights' own rate, 2-bit networks were undone
_SMALLEST_SIZE = 1e-3  # of a tensor, for its learning rate


def parameter_groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Groups for an optimizer, one for each tensor that is trained.

    A tensor's rate is `rate` times its root mean square, at least `rate` / 1000, since networks differ in the scale of
    their folded weights. A bias learns at its weight's rate: its own size would make it several times faster.
    Quantization steps learn at a tenth.

    Args:
        model: model from `rounding_aware`.
        rate: change of a typical weight in one step of Adam, relative to the tensor's root mean square.
    """
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups = []
    for name, tensor in trained.items():
        weight = name.removesuffix("bias") + "parametrizations.weight.original"
        sized = trained.get(weight, tensor) if name.endswith("bias") else tensor
        relative = rate * (_STEP_RATE if name.endswith(".step") else 1.0)
        size = max(float(_root_mean_square(sized)), _SMALLEST_SIZE)
        groups.append({"params": [tensor], "lr": relative * size})
    return groups


def _root_mean_square(tensor: Tensor) -> Tensor:
    return tensor.detach().float().square().mean().sqrt()


def rate_at(step: int, total: int) -> float:
    """The share of the peak learning rate at a step: linear warm-up over 5 % of the steps, then half a cosine to 0.

    >>> [round(rate_at(step, 40), 3) for step in (0, 1, 2, 21, 40)]
    [0.5, 1.0, 1.0, 0.5, 0.0]

    Args:
        step: number of steps done.
        total: number of all steps.
    """
    warm_up = max(1, int(_WARM_UP * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))
