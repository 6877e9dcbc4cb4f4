"""Changes of one layer whose responses are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from autocompress.menus.activations import ActivationRange
from autocompress.network.structure import EMBEDDING, Layer


@dataclass(frozen=True)
class Changes:
    """Changes of one layer.

    Attributes:
        layer: structure of the layer.
        count: number V of changes of its weights.
        weights: function that yields them: (rows, d + 1) each, in the order of the flattened weight, the bias last.
        roundings: A ranges that its input is rounded to; None for no rounding.
    """

    layer: Layer
    count: int
    weights: Callable[[], Iterator[Tensor]]
    roundings: Sequence[ActivationRange | None] = ()

    @property
    def one_by_one(self) -> bool:
        """Whether the changes are taken one by one at the end, and none is held."""
        return self.layer.positions == 1 and self.layer.kind != EMBEDDING

    @property
    def bytes_held(self) -> int:
        """Bytes of the changes of the weights that are held at once."""
        return 0 if self.one_by_one else 4 * self.count * self.layer.rows * (self.layer.fan_in + 1)
