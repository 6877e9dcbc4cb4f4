"""What gathers the responses to changes of one layer, from its inputs and the gradients at its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from autocompress.menus.activations import ActivationRange
from autocompress.menus.changes import Changes
from autocompress.menus.columns import extended_columns, unfolded, weight_order
from autocompress.menus.listening import Call
from autocompress.network.structure import Layer

See = Callable[[int, Tensor], None]
"""Takes the number of a function, and its gradient at a call's output."""


class Gatherer(Protocol):
    """Gathers the responses to some changes of one layer."""

    def waiting(self, call: Call, samples: int) -> See:
        """What takes the gradients of a call, of a batch of so many samples."""
        ...

    def end_batch(self, samples: int, functions: int) -> None:
        """All gradients of a batch came that will come."""
        ...

    def finish(self) -> Tensor:
        """(N, Q, changes) the responses."""
        ...


class ResponseSums:
    """(N, Q, width) responses, batch by batch: sums over a layer's calls."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._batches: list[Tensor] = []
        self._by_function: dict[int, Tensor] = {}

    def add(self, function: int, found: Tensor) -> None:
        """Add (n, width) of one call."""
        before = self._by_function.get(function)
        self._by_function[function] = found if before is None else before + found

    def end_batch(self, samples: int, functions: int) -> None:
        if self._by_function:  # else no function depends on the layer
            like = next(iter(self._by_function.values()))
            zero = torch.zeros_like(like)
            found = torch.stack([self._by_function.get(index, zero) for index in range(functions)], 1).float()
        else:
            found = torch.zeros(samples, functions, self._width)
        self._batches.append(found)
        self._by_function = {}

    def finish(self) -> Tensor:
        return torch.cat([batch.cpu() for batch in self._batches])


class ByGradient(ResponseSums):
    """Changes of weights that are held all at once, against the samples' own gradients.

    The gradients of several functions are waited for, so that a layer's windows are laid out once for all of them.
    """

    def __init__(self, changes: Changes, device: torch.device, dtype: torch.dtype, functions_at_once: int) -> None:
        super().__init__(changes.count)
        self._at_once = functions_at_once
        self._waiting: list[Callable[[], None]] = []
        layer = changes.layer
        self._weights = torch.empty(changes.count, layer.parameters, device=device, dtype=dtype)
        self._biases = torch.empty(changes.count, layer.rows, device=device, dtype=dtype)
        for number, change in enumerate(changes.weights()):
            self._weights[number], self._biases[number] = change[:, :-1].flatten(), change[:, -1]

    def waiting(self, call: Call, samples: int) -> See:
        if not len(self._weights):
            return lambda function, gradient: None
        held: dict[int, Tensor] = {}

        def respond() -> None:
            if held:
                of_weight, of_bias = _sample_gradients(call, torch.stack([*held.values()]), samples)
                found = of_weight @ self._weights.mT + of_bias @ self._biases.mT  # (Q, n, V)
                for function, each in zip(held, found, strict=True):
                    self.add(function, each)
                held.clear()

        def see(function: int, gradient: Tensor) -> None:
            # A copy of what backpropagation may still add to.
            held[function] = gradient.clone() if self._at_once > 1 else gradient
            if len(held) == self._at_once:
                respond()

        self._waiting.append(respond)
        return see

    def end_batch(self, samples: int, functions: int) -> None:
        for respond in self._waiting:
            respond()
        self._waiting = []
        super().end_batch(samples, functions)


def _sample_gradients(call: Call, gradients: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Each sample's gradients of a layer's weight, (Q, n, rows · d), and of its bias, (Q, n, rows).

    Where a layer sees single positions, its input is multiplied as it lies; else its windows are laid out first.

    Args:
        call: call of the layer.
        gradients: (Q, …) gradients of Q functions at the call's output.
        samples: number n of samples, which are the first axis of input and output, or its slower part.
    """
    if call.window is None:
        rows = gradients.reshape(len(gradients), samples, -1, gradients.shape[-1])  # (Q, n, T, rows)
        return (rows.mT @ call.x.reshape(samples, -1, call.x.shape[-1])).flatten(2), rows.sum(2)
    rows = torch.stack([_samples_first(each.flatten(2), samples) for each in gradients])  # (Q, n, rows, T)
    if call.window.is_single:
        return (rows @ _samples_first(call.x.flatten(2), samples).mT).flatten(2), rows.sum(3)
    groups = call.window.groups
    windows = _samples_first(unfolded(call.x, call.window), samples).unflatten(1, (groups, -1))  # (n, g, d, T)
    by_group = rows.unflatten(2, (groups, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)  # (n, g, Q · r, T)
    own = (by_group @ windows.mT).unflatten(2, (len(gradients), -1))  # (n, g, Q, r, d)
    return own.permute(2, 0, 1, 3, 4).flatten(2), rows.sum(3)


def _samples_first(x: Tensor, samples: int) -> Tensor:
    """(n, channels, T), from (n · m, channels, T / m)."""
    return x if len(x) == samples else x.unflatten(0, (samples, -1)).transpose(1, 2).flatten(2)


class OneByOne:
    """Changes of a layer with one position a sample: its inputs and gradients are kept, its changes are not."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._columns: list[Tensor] = []  # (g, n, d + 1) of every batch
        self._gradients: list[Tensor] = []  # (Q, g, n, r) of every batch
        self._of_batch: dict[int, Tensor] = {}

    def waiting(self, call: Call, samples: int) -> See:
        columns = extended_columns(call.x, call.window)
        self._columns.append(columns)

        def see(function: int, gradient: Tensor) -> None:
            # A copy: where the layer is the first, PyTorch adds the next function's gradient into the same memory.
            by_position = _by_position(gradient.clone(), self._changes.layer, samples, len(columns))
            self._of_batch[function] = by_position[..., 0]

        return see

    def end_batch(self, samples: int, functions: int) -> None:
        zero = torch.zeros_like(next(iter(self._of_batch.values()))) if self._of_batch else torch.zeros(1, samples, 1)
        self._gradients.append(torch.stack([self._of_batch.get(index, zero) for index in range(functions)]))
        self._of_batch = {}

    def finish(self) -> Tensor:
        columns, gradients = torch.cat(self._columns, 1), torch.cat(self._gradients, 2)
        inverse = weight_order(self._changes.layer).argsort()
        found = []
        for change in self._changes.weights():
            by_group = change[:, inverse].to(columns).view(len(columns), -1, columns.shape[-1])  # (g, r, d + 1)
            moved = columns @ by_group.mT  # (g, N, r)
            found.append((gradients * moved).sum((1, 3)).T.float().cpu())  # (N, Q)
        return torch.stack(found, 2) if found else torch.empty(columns.shape[1], len(gradients), 0)


class OfRoundings(ResponseSums):
    """Roundings of a layer's input: the layer is run on their errors."""

    def __init__(self, ranges: Sequence[ActivationRange | None]) -> None:
        super().__init__(len(ranges))
        self._ranges = ranges

    def waiting(self, call: Call, samples: int) -> See:
        def see(function: int, gradient: Tensor) -> None:
            flat = gradient.reshape(samples, -1)
            found = [self._moved(call, each, flat) for each in self._ranges]
            self.add(function, torch.stack(found, 1) if found else flat.new_zeros(samples, 0))

        return see

    def _moved(self, call: Call, rounding: ActivationRange | None, gradient: Tensor) -> Tensor:
        """(n,) responses to one rounding; the errors are made anew for every function, and never kept."""
        if rounding is None:
            return gradient.new_zeros(len(gradient))
        error = rounding.apply(call.x).sub_(call.x)
        return (call.again(error).reshape(len(gradient), -1) * gradient).sum(1)


def _by_position(gradient: Tensor, layer: Layer, samples: int, groups: int) -> Tensor:
    """(g, n, r, T) a gradient at a layer's output: (n, rows, …), or (n, …, rows) of a linear layer."""
    last = gradient if layer.has_channels_last else gradient.movedim(1, -1)
    return last.reshape(samples, -1, groups, layer.rows // groups).permute(2, 0, 3, 1)
