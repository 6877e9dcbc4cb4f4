"""Pictures of an episode: one bar a layer, as text and as pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import Tables

_HEIGHT, _MOST_WIDTH, _MARGIN = 160, 960, 8  # pixels
_TEXT_WIDTH = 32  # characters of a layer's bar
_PAPER, _UNDECIDED, _REMOVED = (255, 255, 255), (222, 222, 222), (243, 240, 234)
_FEWEST, _MOST = np.array((178, 58, 46)), np.array((46, 94, 140))  # colours of 1 bit and of 8 bits and more


def as_text(tables: Tables, so_far: Labeling, step: int, limits: Mapping[str, int]) -> str:
    """The network so far: a line for each layer, with a bar that is as long as what is left of its weights.

    Args:
        tables: padded menus of the problem.
        so_far: labels, of which the first `step` count.
        step: number of labelled layers.
        limits: upper bounds by resource; the last line shows what the labels so far would take.
    """
    lines = []
    for layer, numbers in enumerate(tables.problem.layers):
        if layer >= step:
            lines.append(f"{numbers.name:<28.28} {'·' * _TEXT_WIDTH}")
            continue
        sparsity, bits, activations = _label(tables, so_far, layer)
        left = round(_TEXT_WIDTH * (1 - sparsity))
        bar = "█" * left + "░" * (_TEXT_WIDTH - left)
        lines.append(f"{numbers.name:<28.28} {bar} {bits:>2} bits, {activations:>2} in, {sparsity:.0%} removed")
    amounts = ", ".join(f"{name} {limit:,}" for name, limit in limits.items())
    return "\n".join([*lines, f"{step} of {tables.layer_count} layers labelled; at most {amounts}"])


def as_pixels(tables: Tables, so_far: Labeling, step: int, limits: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 picture: bars as wide as the layers' shares of weights, blue for many bits and red for few.

    What is removed of a layer is left pale at the top of its bar; layers without a label are grey.

    Args:
        tables: padded menus of the problem.
        so_far: labels, of which the first `step` count.
        step: number of labelled layers.
        limits: not drawn.
    """
    widths = _bar_widths(tables)
    picture = np.full((_HEIGHT + 2 * _MARGIN, int(widths.sum()) + 2 * _MARGIN, 3), _PAPER, dtype=np.uint8)
    left = _MARGIN
    for layer, width in enumerate(widths):
        bar = picture[_MARGIN : _MARGIN + _HEIGHT, left : left + max(width - 1, 1)]
        if layer >= step:
            bar[:] = _UNDECIDED
        else:
            sparsity, bits, _ = _label(tables, so_far, layer)
            bar[:] = _REMOVED
            bar[round(_HEIGHT * sparsity) :] = _colour(bits)
        left += int(width)
    return picture


def _label(tables: Tables, so_far: Labeling, layer: int) -> tuple[float, int, int]:
    """Sparsity, weight bits and activation bits of a layer."""
    return (
        float(tables.sparsities[layer, so_far.sparsity[layer]]),
        int(tables.weight_bits[layer, so_far.weight_bits[layer]]),
        int(tables.activation_bits[layer, so_far.activation_bits[layer]]),
    )


def _bar_widths(tables: Tables) -> npt.NDArray[np.int64]:
    """(L,) widths of the bars in pixels, at least 3: the root of the layers' weights, so that small ones are seen."""
    fan_in, out = tables.problem.costs.widths(tables.problem.costs.group_width)
    roots = np.sqrt(np.maximum(fan_in * out, 1))
    widths: npt.NDArray[np.int64] = np.maximum(3, np.floor(_MOST_WIDTH * roots / roots.sum())).astype(np.int64)
    return widths


def _colour(bits: int) -> npt.NDArray[np.uint8]:
    share = min(np.log2(bits) / 3, 1.0)
    return np.asarray((1 - share) * _FEWEST + share * _MOST, dtype=np.uint8)
