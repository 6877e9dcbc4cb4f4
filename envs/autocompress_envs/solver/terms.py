"""What layers cost as functions of their widths, for fixed multipliers: size, multiply-accumulates, time, energy.

Shapes: L layers; S sparsities, B weight bits and A activation bits on the longest menus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autocompress_envs.problem import FLOAT_MAC, EnergyCosts, FloatArray, IntArray, KernelCosts


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
class EnergyTerms:
    """What the energy of layers costs, by its parts.

    Attributes:
        mac: (B*A, L) cost of one multiply-accumulate.
        float_mac: cost of one that reads float32.
        byte: (B*A, L) cost of one byte of the layer.
        column: (B*A, L) cost of the inputs of one weight column.
        row: (B*A, L) cost of the inputs of one weight row.
        handed_byte: cost of one byte that a first factor hands on.
    """

    mac: FloatArray | float = 0.0
    float_mac: float = 0.0
    byte: FloatArray | float = 0.0
    column: FloatArray | float = 0.0
    row: FloatArray | float = 0.0
    handed_byte: float = 0.0

    @classmethod
    def of(
        cls, energy: EnergyCosts | None, weight: float, weight_bits: IntArray, activation_bits: IntArray
    ) -> EnergyTerms:
        """The terms of all layers, where one picojoule costs `weight`; zeros where energy has no limit.

        Args:
            energy: what the layers' energy depends on.
            weight: cost of one picojoule.
            weight_bits: (B*A, L) weight bits of every flat option.
            activation_bits: (B*A, L) activation bits of every flat option.
        """
        if energy is None or not weight:
            return cls()
        mac, byte, column, row = (np.asarray(weight * slope) for slope in energy.slopes(weight_bits, activation_bits))
        return cls(mac, weight * FLOAT_MAC / 1000, byte, column, row, weight * 2 * energy.access / 1000)


@dataclass(frozen=True)
class LayerTerms:
    """The cost of a layer: per_weight * fan_in * out + per_column * fan_in + per_row * out + per_layer, and its time's.

    Attributes:
        per_weight: (B*A, L) cost of one weight; 0 where the rank is low.
        per_column: (B*A, L) cost of one column of weights.
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
