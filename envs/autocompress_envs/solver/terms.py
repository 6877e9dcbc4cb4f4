"""What layers cost as functions of their widths, for fixed multipliers: size, multiply-accumulates, time.

Shapes: L layers; S sparsities, B weight bits and A activation bits on the longest menus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autocompress_envs.problem import FloatArray, IntArray, KernelCosts


@dataclass(frozen=True)
class TimeTerms:
    """What the time of layers costs.

    Attributes:
        kernels: time of the layers in the runtime's kernels.
        weight: cost of one nanosecond.
        at: (L,) indices of the layers.
        bits: (B*A, L) weight bits of every flat option.
        activations: (B*A, L) activation bits of every flat option.
    """

    kernels: KernelCosts
    weight: float
    at: IntArray
    bits: IntArray
    activations: IntArray

    def of(self, layers: IntArray) -> TimeTerms:
        """The terms of n layers."""
        bits, activations = self.bits[:, layers], self.activations[:, layers]
        return replace(self, at=self.at[layers], bits=bits, activations=activations)

    def by_option(self) -> TimeTerms:
        """The same terms for widths of shape (n, S)."""
        bits, activations = self.bits[..., None], self.activations[..., None]
        return replace(self, at=self.at[..., None], bits=bits, activations=activations)

    def cost(self, fan_in: IntArray, out: IntArray) -> FloatArray:
        """(B*A, *widths) costs of the layers' time."""
        nanoseconds = self.kernels.of_layers(self.at, fan_in, out, self.bits, self.activations)
        cost: FloatArray = (self.weight * nanoseconds).astype(np.float64)
        return cost


@dataclass(frozen=True)
class LayerTerms:
    """The cost of a layer: per_weight * fan_in * out + per_column * fan_in + per_row * out + per_layer, and its time's.

    Attributes:
        per_weight: (B*A, L) cost of one weight; 0 where the rank is low.
        per_column: (B*A, L) cost of one column of weights; 0 but where the rank is low.
        per_row: (B*A, L) cost of one row of weights.
        per_layer: (B*A, L) cost of the layer whatever its widths are.
        time: cost of the layer's time; None where time has no limit.
    """

    per_weight: FloatArray
    per_column: FloatArray
    per_row: FloatArray
    per_layer: FloatArray
    time: TimeTerms | None = None

    def of(self, layers: IntArray) -> LayerTerms:
        """The terms of n layers, each (B*A, n)."""
        return self._with(lambda term: term[:, layers], None if self.time is None else self.time.of(layers))

    def by_option(self) -> LayerTerms:
        """The same terms as (B*A, n, 1), for widths of shape (n, S)."""
        return self._with(lambda term: term[..., None], None if self.time is None else self.time.by_option())

    def cost(self, fan_in: IntArray, out: IntArray) -> FloatArray:
        """(B*A, *widths) costs of the layers, for widths that broadcast with the terms' last axes."""
        of_columns = self.per_weight * out + self.per_column
        cost: FloatArray = of_columns * fan_in + self.per_row * out + self.per_layer
        return cost if self.time is None else cost + self.time.cost(fan_in, out)

    def _with(self, change: Callable[[FloatArray], FloatArray], time: TimeTerms | None) -> LayerTerms:
        return LayerTerms(
            change(self.per_weight), change(self.per_column), change(self.per_row), change(self.per_layer), time
        )
