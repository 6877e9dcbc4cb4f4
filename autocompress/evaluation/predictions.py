"""The original's predictions, and how a plan changes them: the data that a model of a network's outputs learns from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

KEPT_CLASSES = 9  # classes of a sample; all others are one, so that a thousand classes cost no more than ten


class Predictions:
    """The original's class probabilities on N samples, over K classes: its most likely ones, and all others as one.

    Pooling classes never raises a divergence, and where there are at most `KEPT_CLASSES` + 1 it changes nothing. Where
    a sample has many rows, one is drawn for it: their mean over the samples is that of all rows, without bias.

    Args:
        outputs: (N, classes) logits or (N, P, C) rows of the original.

    Attributes:
        probabilities: (N, K) float64 class probabilities, K = min(classes, 10); rows sum to 1. With more than 10
            classes, each sample has its own most likely class first and all others last.
    """

    def __init__(self, outputs: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self._row = None
        if outputs.ndim > 2:
            self._row = torch.randint(outputs.shape[1], (len(outputs),), generator=generator)  # (N,)
        drawn = self._drawn(0, outputs)
        classes = drawn.shape[1]
        self._order = drawn.argsort(1, descending=True) if classes > KEPT_CLASSES + 1 else None
        self._log_probabilities = self.pooled(0, outputs)
        self.probabilities: npt.NDArray[np.float64] = self._log_probabilities.exp().numpy()

    def shift(self, outputs: Tensor) -> npt.NDArray[np.float16]:
        """(N, K) float16 differences of log-probabilities, plan minus original.

        Args:
            outputs: logits or rows of the network with a plan's weights, on the same samples.
        """
        change: npt.NDArray[np.float16] = (self.pooled(0, outputs) - self._log_probabilities).half().numpy()
        return change

    def pooled(self, first: int, outputs: Tensor) -> Tensor:
        """(n, K) float64 log-probabilities of some of the samples, over the original's K classes.

        Args:
            first: number of the first of these samples.
            outputs: logits or rows of a network on the samples `first` to `first + n - 1`.
        """
        log_probabilities = self._drawn(first, outputs).double().log_softmax(1)
        if self._order is None:
            return log_probabilities
        order = self._order[first : first + len(outputs)].to(outputs.device)
        ordered = log_probabilities.gather(1, order)
        rest = ordered[:, KEPT_CLASSES:].logsumexp(1, keepdim=True)
        return torch.cat([ordered[:, :KEPT_CLASSES], rest], dim=1)

    def _drawn(self, first: int, outputs: Tensor) -> Tensor:
        """(n, C) logits: of many rows, each sample's drawn one."""
        if self._row is None:
            return outputs
        row = self._row[first : first + len(outputs)].to(outputs.device)
        return outputs[torch.arange(len(outputs), device=outputs.device), row]
