"""Embeddings: tables whose rows are looked up, one for each token.

A table is a layer whose input is a token's number. With a weight of V rows and d columns, a change dW of it moves the
output at a position with token v by dW_v. So its expected loss is

    ½ Σ_v f_v dW_v G dW_vᵀ,   f_v: look-ups of row v in a sample, G = E[γ γᵀ] (d, d): moment of the gradients there,

and rounding a row is GPTQ's problem with G in the place of H: `second_moment` holds G, `gradient_moment` the look-ups
f (V,). Rows that no sample looks up are rounded like all others. There is nothing to prune, no bias, and the input is
not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from autocompress.menus.changes import Changes
from autocompress.menus.gatherers import ResponseSums, See
from autocompress.menus.listening import Call, on_gradient
from autocompress.menus.statistics import Statistics
from autocompress.network.structure import Layer


class LookupCollector:
    """Sums of an embedding's statistics over batches.

    Args:
        layer: structure of the layer.
        module: the layer itself.
    """

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        weight = module.get_parameter("weight")
        self.gradients = 0  # samples times functions
        self._positions = layer.positions
        self._lookups = torch.zeros(layer.rows, device=weight.device)
        self._moment = torch.zeros(layer.fan_in, layer.fan_in, device=weight.device)

    def see(self, call: Call, output: Tensor, samples: int) -> None:
        """Add a call in a batch of so many samples: the rows that it looks up now, its gradients when they come."""
        self._lookups += call.x.flatten().bincount(minlength=len(self._lookups))
        if output.requires_grad:
            on_gradient(output, self._see_gradient)

    def _see_gradient(self, gradient: Tensor) -> None:
        """Add a batch's gradients (…, d) at the layer's outputs."""
        flat = gradient.reshape(-1, gradient.shape[-1]).float()
        self._moment += flat.T @ flat / self._positions

    def end_function(self, samples: int) -> None:
        """The gradients of a function of so many samples are all seen."""
        self.gradients += samples

    def end_batch(self) -> None:
        """A batch is over."""

    def end_block(self, samples: int) -> None:
        """A block of so many samples is over."""

    def finish(self, count: int) -> Statistics:
        """The statistics, from `count` samples."""
        columns = len(self._moment)
        moment = torch.zeros(1, columns + 1, columns + 1)
        moment[0, :columns, :columns] = (self._moment / self.gradients).cpu()
        moment[0, -1, -1] = 1.0  # the bias, which there is none of, and which nothing hangs together with
        nothing, none = torch.zeros(1), torch.tensor(0.0)
        return Statistics(moment, (self._lookups / count).cpu(), nothing, nothing, none, none)


def lookup_loss(change: Tensor, lookups: Tensor, moment: Tensor) -> float:
    """½ Σ_v f_v dW_v G dW_vᵀ: the expected loss of a change of a table, in nats.

    >>> lookup_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 0.5]), torch.tensor([[2.0]]))  # 3 + 2
    5.0

    Args:
        change: (V, d) dW.
        lookups: (V,) f.
        moment: (d, d) G.
    """
    return 0.5 * float((((change @ moment) * change).sum(1) * lookups).sum())


class OfLookups(ResponseSums):
    """Gathers the responses to changes of a table: the changed rows are looked up as the table's own are."""

    def __init__(self, changes: Changes, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(changes.count)
        shape = (changes.count, changes.layer.rows, changes.layer.fan_in)
        self._changes = torch.empty(shape, device=device, dtype=dtype)
        for number, change in enumerate(_weights(changes)):
            self._changes[number] = change

    def waiting(self, call: Call, samples: int) -> See:
        rows = call.x.reshape(samples, -1)  # (n, T)

        def see(function: int, gradient: Tensor) -> None:
            of_sample = gradient.reshape(samples, rows.shape[1], -1)  # (n, T, d)
            found = [(change[rows] * of_sample).sum((1, 2)) for change in self._changes]
            self.add(function, torch.stack(found, 1) if found else of_sample.new_zeros(samples, 0))

        return see


def _weights(changes: Changes) -> Iterator[Tensor]:
    """(V, d) the changes without the bias."""
    return (change[:, :-1] for change in changes.weights())
