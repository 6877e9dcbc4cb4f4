"""The numbers of one compression task: what every label of every layer costs and how much it is expected to hurt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem.arrays import FloatArray, IntArray
from autocompress_envs.problem.costs import CostModel


@dataclass(frozen=True)
class LayerNumbers:
    """One layer's menu in numbers.

    Attributes:
        name: the layer's name.
        kind: `conv`, `depthwise` or `linear`.
        sparsities: (S,) what this layer may choose, ascending, first 0. Just (0.0,) where it has nothing to choose.
        kept: (S,) channels left in the layer's own group for each sparsity; empty where it owns no group.
        group: index of the group it owns, or None.
        weight_bits: (B,) ascending.
        activation_bits: (A,) ascending.
        source: index of the layer whose chosen sparsity selects the first axis of `errors` (the owner of the group
            that this layer reads, or the layer itself where the granularity is not `channel`); None: one row.
        errors: (S of source or 1, B, A) expected loss (nats of KL divergence a sample), at least 0.
        extra_sources: owners of further groups that this layer reads (concatenations), each with the error (S,)
            that its sparsity adds.
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


@dataclass(frozen=True)
class Labeling:
    """A plan in indices into the menus, one entry per layer: each (L,) int64."""

    sparsity: IntArray
    weight_bits: IntArray
    activation_bits: IntArray

    def key(self) -> bytes:
        """The same for equal labellings of one network, and only for these."""
        return np.stack([self.sparsity, self.weight_bits, self.activation_bits]).astype(np.int64).tobytes()


@dataclass(frozen=True)
class Problem:
    """Everything that the environment knows of one network: its layers' menus and its costs."""

    layers: tuple[LayerNumbers, ...]
    costs: CostModel

    def kept(self, labeling: Labeling) -> IntArray:
        """(G,) channels left in every group."""
        kept = self.costs.group_width.copy()
        for index, layer in enumerate(self.layers):
            if layer.group is not None:
                kept[layer.group] = layer.kept[labeling.sparsity[index]]
        return kept

    def resources(self, labeling: Labeling) -> dict[str, int]:
        """Every resource of a labelling, exactly as it will be counted in the end."""
        picked = zip(self.layers, labeling.sparsity, labeling.weight_bits, labeling.activation_bits, strict=True)
        chosen = np.array([(at.sparsities[s], at.weight_bits[w], at.activation_bits[a]) for at, s, w, a in picked])
        bits = chosen[:, 1:].astype(np.int64)
        totals = self.costs.resources(self.kept(labeling), bits[:, 0], bits[:, 1], chosen[:, 0])
        return {name: int(amount) for name, amount in totals.items()}

    def original(self) -> dict[str, int]:
        """Resources of the uncompressed network: all channels, 32 bits everywhere."""
        full = np.full(len(self.layers), 32)
        totals = self.costs.resources(self.costs.group_width, full, full)
        return {name: int(amount) for name, amount in totals.items()}


@dataclass(frozen=True)
class Outcome:
    """What was measured for one plan.

    Attributes:
        kl: mean Kullback-Leibler divergence from the original's outputs to the plan's, in nats, at least 0.
        accuracy: task metric in [0, 1] (top-1), NaN without labels.
        agreement: fraction of samples with the original's top-1 answer.
        resources: every resource.
        shift: (N, K) by how much the plan raises the log-probability of each of K classes on each of N samples; None
            where only the numbers above were kept.
    """

    kl: float
    accuracy: float
    agreement: float
    resources: dict[str, int]
    shift: npt.NDArray[np.float16] | None = field(default=None, compare=False, repr=False)
