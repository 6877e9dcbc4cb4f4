"""What prices weigh: the expected loss of a plan, split by layer into pruning and rounding."""

from __future__ import annotations

import numpy as np

from autocompress_envs.problem.arrays import FloatArray
from autocompress_envs.problem.problem import Labeling, Problem
from autocompress_envs.problem.tables import Tables


class LossParts:
    """Splits the expected loss of a plan by what prices can weigh.

    Attributes:
        active: (L, 2) whether a price has anything to weigh: the menu has a choice there.
    """

    def __init__(self, problem: Problem, tables: Tables | None = None) -> None:
        tables = tables or Tables(problem)
        self._tables = tables
        bits_choices = tables.counts[:, 1] * tables.counts[:, 2]
        self.active = np.stack([tables.counts[:, 0] > 1, bits_choices > 1], axis=1)

    def __call__(self, labeling: Labeling) -> FloatArray:
        """(L, 2) nats, at least 0: pruning by owner, quantization by layer; their sum is the unweighted error."""
        tables = self._tables
        rows = np.arange(tables.layer_count)
        at_source = labeling.sparsity[tables.source]
        pruning = tables.pruning_errors[rows, at_source]
        total = tables.errors[rows, at_source, labeling.weight_bits, labeling.activation_bits]
        by_owner = tables.extra_errors[rows, labeling.sparsity].copy()
        np.add.at(by_owner, tables.source, pruning)
        parts: FloatArray = np.maximum(np.stack([by_owner, total - pruning], axis=1), 0.0)
        return parts
