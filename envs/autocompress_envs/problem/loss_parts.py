"""The expected loss of a plan by layer, split into what price actions weigh: pruning and quantization."""

from __future__ import annotations

import numpy as np

from autocompress_envs.problem.arrays import FloatArray
from autocompress_envs.problem.problem import Labeling, Problem
from autocompress_envs.problem.tables import Tables


class LossParts:
    """Splitter of the expected loss of a plan into the parts that the two price actions of a layer weigh.

    Args:
        problem: the layers' menus and the cost model.
        tables: padded menus of the same problem; built from it by default.

    Attributes:
        active: (L, 2) whether the menu has a choice of sparsity, and of bits: where not, a price has no
            effect.
    """

    def __init__(self, problem: Problem, tables: Tables | None = None) -> None:
        tables = tables or Tables(problem)
        self._tables = tables
        bits_choices = tables.counts[:, 1] * tables.counts[:, 2]
        self.active = np.stack([tables.counts[:, 0] > 1, bits_choices > 1], axis=1)

    def __call__(self, labeling: Labeling) -> FloatArray:
        """(L, 2) expected losses of a labelling in nats, at least 0.

        Column 0 holds the pruning losses of the group that the layer owns, summed over all layers that read
        it. Column 1 holds the layer's own quantization loss. All together are the expected loss of the
        labelling.
        """
        tables = self._tables
        rows = np.arange(tables.layer_count)
        at_source = labeling.sparsity[tables.source]
        pruning = tables.pruning_errors[rows, at_source]
        total = tables.errors[rows, at_source, labeling.weight_bits, labeling.activation_bits]
        by_owner = tables.extra_errors[rows, labeling.sparsity].copy()
        np.add.at(by_owner, tables.source, pruning)
        parts: FloatArray = np.maximum(np.stack([by_owner, total - pruning], axis=1), 0.0)
        return parts
