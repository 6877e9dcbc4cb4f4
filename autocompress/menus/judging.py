"""Judging: what the labels of every layer are expected to cost, on samples that no weight was fitted to.

The expected divergence that a change dW of one layer causes is ½ E[⟨g, dW⟩²], with the gradients g of random functions
whose second moment is the Fisher matrix (`fisher`), each sample's own and over all positions together (`responses`).

Three things separate it from ½ tr(G dW H dWᵀ), which weights are made by (`calibration`). It is taken on other samples:
a fit is perfect on its own samples wherever these are fewer than its unknowns. It does not take positions as
uncorrelated: behind a global pool all positions pull the outputs the same way, and an error that they share costs as
many times more as there are positions (EfficientNet-Lite0, last convolution at 2 bits: 58 times). And it does not take
gradients as independent of inputs. What is judged are a label's renormalized weights (`renormalized`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.menus.changes import Changes
from autocompress.menus.fisher import random_functions
from autocompress.menus.responses import responses
from autocompress.samples import Inputs
from autocompress_envs.problem import FloatArray


@dataclass(frozen=True)
class Judged:
    """Expected losses of one layer's labels in nats, at least 0.

    Attributes:
        weights: (V,) of the changes of its weights.
        roundings: (A,) of the ranges of its input.
    """

    weights: FloatArray
    roundings: FloatArray


def judge(
    model: nn.Module,
    changes: Sequence[Changes],
    inputs: Inputs,
    *,
    draws: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping[str, Judged]:
    """The expected losses of every layer's changes, by layer name.

    Args:
        model: network with its batch norms folded, in eval mode, on the device to compute with.
        changes: changes of the layers.
        inputs: (N, …) float32 samples to judge on, N at least 1.
        draws: random functions of each sample's outputs, at least 1.
        seed: seed of those functions.
        progress: observer that is called with (samples done, samples in all).

    Raises:
        InputError: the network's outputs are not finite.
    """

    def functions(first: int, outputs: Tensor) -> list[Tensor]:
        # Of the sample's number, so that every pass over the samples sees the same functions.
        return random_functions(outputs, draws, torch.Generator().manual_seed(seed * 1_000_003 + first))

    found = responses(model, changes, inputs, functions, progress=progress)
    return {each.layer.name: _losses(found[each.layer.name], each.count) for each in changes}


def _losses(found: Tensor, count: int) -> Judged:
    """From responses (N, Q, V + A)."""
    losses: FloatArray = 0.5 * found.double().square().mean((0, 1)).numpy()
    return Judged(np.array(losses[:count]), np.array(losses[count:]))
