"""One compression task in numbers: menus with their expected losses, labellings, and measured outcomes.

This is all that the environment, the solver and the policies know of a network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem.arrays import FloatArray, IntArray
from autocompress_envs.problem.costs import CostModel


@dataclass(frozen=True)
class LayerNumbers:
    """One layer's menu in numbers: S sparsities, B weight bits and A activation bits to choose from.

    A group of channels is removed by the layer that owns it (the one that writes it), but the loss arises at
    the layers that read it. So a layer's expected losses depend on the sparsity chosen at its source.

    Attributes:
        name: the layer's name, as in `named_modules()`.
        kind: `conv`, `depthwise` or `linear`.
        sparsities: (S,) sparsities to choose from, ascending, the first one 0; (0.0,) where there is no
            choice.
        kept: (S,) channels left in the owned group for each sparsity; empty where the layer owns no group.
        group: index of the group that the layer owns, or None.
        weight_bits: (B,) weight bits to choose from, ascending for each rank.
        activation_bits: (A,) activation bits to choose from, ascending.
        source: index of the layer whose sparsity selects the row of `errors`: the owner of the group that
            this layer reads, or the layer itself where the granularity is not `channel`. None where there is
            one row.
        errors: (S of the source or 1, B, A) expected losses in nats of KL divergence a sample, at least 0.
        extra_sources: owners of the further groups that this layer reads (concatenations), each with the
            expected losses (S,) in nats that its sparsity adds here.
        ranks: (B,) rank that goes with each of the weight bits, 0 for the layer as it is; low ranks stand first,
            ascending, and rank 0 last. Empty, the default, where no layer is cut in two.
    """

    name: str
    kind: str
    sparsities: FloatArray
    kept: IntArray
    group: int | None
    weight_bits: IntArray
    activation_bits: IntArray
    source: int | None
    errors: FloatArray
    extra_sources: tuple[tuple[int, FloatArray], ...] = ()
    ranks: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def weight_ranks(self) -> IntArray:
        """(B,) the rank of every entry of `weight_bits`: zeros where no rank is on offer."""
        return self.ranks if len(self.ranks) else np.zeros(len(self.weight_bits), dtype=np.int64)


@dataclass(frozen=True)
class Labeling:
    """A plan as indices into the layers' menus.

    Attributes:
        sparsity: (L,) indices into `LayerNumbers.sparsities`, int64.
        weight_bits: (L,) indices into `LayerNumbers.weight_bits`, int64.
        activation_bits: (L,) indices into `LayerNumbers.activation_bits`, int64.
    """

    sparsity: IntArray
    weight_bits: IntArray
    activation_bits: IntArray

    def key(self) -> bytes:
        """Bytes that are equal for equal labellings of one network, and for no others."""
        return np.stack([self.sparsity, self.weight_bits, self.activation_bits]).astype(np.int64).tobytes()


@dataclass(frozen=True)
class Problem:
    """One network in numbers.

    Attributes:
        layers: menus of the L layers, in network order.
        costs: cost model of the same layers.
    """

    layers: tuple[LayerNumbers, ...]
    costs: CostModel

    def kept(self, labeling: Labeling) -> IntArray:
        """(G,) channels that a labelling leaves in every group."""
        kept = self.costs.group_width.copy()
        for index, layer in enumerate(self.layers):
            if layer.group is not None:
                kept[layer.group] = layer.kept[labeling.sparsity[index]]
        return kept

    def resources(self, labeling: Labeling) -> dict[str, int]:
        """The amount of every resource that a labelling takes, as it is counted on the finished file."""
        picked = zip(self.layers, labeling.sparsity, labeling.weight_bits, labeling.activation_bits, strict=True)
        chosen = np.array(
            [(at.sparsities[s], at.weight_bits[w], at.activation_bits[a], at.weight_ranks[w]) for at, s, w, a in picked]
        )
        bits = chosen[:, 1:].astype(np.int64)
        totals = self.costs.resources(self.kept(labeling), bits[:, 0], bits[:, 1], chosen[:, 0], bits[:, 2])
        return {name: int(amount) for name, amount in totals.items()}

    def original(self) -> dict[str, int]:
        """The amount of every resource that the original takes: all channels, 32 bits everywhere."""
        full = np.full(len(self.layers), 32)
        totals = self.costs.resources(self.costs.group_width, full, full)
        return {name: int(amount) for name, amount in totals.items()}


@dataclass(frozen=True)
class Outcome:
    """Measurements of one plan.

    Attributes:
        kl: mean Kullback-Leibler divergence from the original's outputs to the plan's, in nats a sample, at
            least 0.
        accuracy: task metric in [0, 1], such as top-1 accuracy; NaN without labels.
        agreement: fraction of samples on which the plan has the original's top-1 answer.
        resources: amount of every resource.
        shift: (N, K) float16 changes of the log-probability of each of K classes on each of N samples, plan
            minus original; None where only the numbers above were kept. Not compared and not printed.
    """

    kl: float
    accuracy: float
    agreement: float
    resources: dict[str, int]
    shift: npt.NDArray[np.float16] | None = field(default=None, compare=False, repr=False)
