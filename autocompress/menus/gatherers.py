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

    def begin_backward(self, functions: int) -> None:
        """The gradients of so many functions will come, one function after the other."""
        ...

    def end_batch(self, samples: int) -> None:
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
        self._functions = 0

    def begin_backward(self, functions: int) -> None:
        self._functions = functions

    def add(self, function: int, found: Tensor) -> None:
        """Add (n, width) of one call."""
        before = self._by_function.get(function)
        self._by_function[function] = found if before is None else before + found

    def end_batch(self, samples: int) -> None:
        if self._by_function:  # else no function depends on the layer
            like = next(iter(self._by_function.values()))
            zero = torch.zeros_like(like)
            found = torch.stack([self._by_function.get(index, zero) for index in range(self._functions)], 1).float()
        else:
            found = torch.zeros(samples, self._functions, self._width)
        self._batches.append(found)
        self._by_function = {}

    def finish(self) -> Tensor:
        return torch.cat([batch.cpu() for batch in self._batches])


class ByGradient(ResponseSums):
    """Changes of weights that are held all at once, against the samples' own gradients.

    The gradients of several functions are waited for, so that a layer's windows are laid out, and its changes read,
    once for all of them.
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
        held = _SideBySide(call, samples)

        def respond() -> None:
            if held.functions:
                of_weight, of_bias = held.sample_gradients()
                found = of_weight @ self._weights.mT + of_bias @ self._biases.mT  # (n, Q, V)
                for function, each in zip(held.functions, found.unbind(1), strict=True):
                    self.add(function, each)
                held.clear()

        def see(function: int, gradient: Tensor) -> None:
            held.put(function, gradient, min(self._at_once, self._functions))
            if len(held.functions) == self._at_once:
                respond()

        self._waiting.append(respond)
        return see

    def end_batch(self, samples: int) -> None:
        for respond in self._waiting:
            respond()
        self._waiting = []
        super().end_batch(samples)


class _SideBySide:
    """The gradients of several functions at a call's output, side by side in the order that they are multiplied in.

    They are copies, as backpropagation may still add to what it gives: (n, T, Q, rows) where a layer sees single
    positions, whose input is multiplied as it lies; else (n, g, Q, r, T), beside the layer's windows (n, g, d, T).

    Args:
        call: call of the layer.
        samples: number n of samples, which are the first axis of input and output, or its slower part.

    Attributes:
        functions: numbers of the functions whose gradients are held.
    """

    def __init__(self, call: Call, samples: int) -> None:
        self._call, self._samples = call, samples
        self._is_single = call.window is None or call.window.is_single
        self._groups = 1 if call.window is None else call.window.groups
        self._gradients: Tensor | None = None
        self.functions: list[int] = []

    def put(self, function: int, gradient: Tensor, most: int) -> None:
        """Hold a function's gradient, of at most `most` functions."""
        placed = self._placed(gradient)
        if self._gradients is None:
            self._gradients = placed.new_empty(*placed.shape[:2], most, *placed.shape[2:])
        self._gradients[:, :, len(self.functions)] = placed
        self.functions.append(function)

    def clear(self) -> None:
        """Hold none."""
        self._gradients, self.functions = None, []

    def sample_gradients(self) -> tuple[Tensor, Tensor]:
        """Each sample's gradients of the layer's weight, (n, Q, rows · d), and of its bias, (n, Q, rows)."""
        assert self._gradients is not None, "a gradient is held"
        gradients, count = self._gradients[:, :, : len(self.functions)], len(self.functions)
        if self._is_single:
            x = self._positions_first(self._call.x)  # (n, T, d)
            own = gradients.flatten(2).mT @ x  # (n, Q · rows, d)
            return own.unflatten(1, (count, -1)).flatten(2), gradients.sum(1)
        assert self._call.window is not None, "a linear layer sees single positions"
        windows = _samples_first(unfolded(self._call.x, self._call.window), self._samples)  # (n, g · d, T)
        windows = windows.unflatten(1, (self._groups, -1))
        by_group = gradients.flatten(2, 3) @ windows.mT  # (n, g, Q · r, d)
        own = by_group.unflatten(2, (count, -1)).transpose(1, 2)  # (n, Q, g, r, d)
        return own.flatten(2), gradients.sum(4).transpose(1, 2).flatten(2)

    def _placed(self, gradient: Tensor) -> Tensor:
        """A gradient with samples first: (n, T, rows) or (n, g, r, T)."""
        if self._is_single:
            return self._positions_first(gradient)
        rows = _samples_first(gradient.flatten(2), self._samples)  # (n, rows, T)
        return rows.view(len(rows), self._groups, -1, rows.shape[-1])

    def _positions_first(self, x: Tensor) -> Tensor:
        """(n, T, channels), from what a linear layer reads or writes, or (n · m, channels, …) of a convolution."""
        if self._call.window is None:
            return x.reshape(self._samples, -1, x.shape[-1])
        return x.movedim(1, -1).reshape(self._samples, -1, x.shape[1])


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
        self._functions = 0

    def begin_backward(self, functions: int) -> None:
        self._functions = functions

    def waiting(self, call: Call, samples: int) -> See:
        columns = extended_columns(call.x, call.window)
        self._columns.append(columns)

        def see(function: int, gradient: Tensor) -> None:
            # A copy: where the layer is the first, PyTorch adds the next function's gradient into the same memory.
            by_position = _by_position(gradient.clone(), self._changes.layer, samples, len(columns))
            self._of_batch[function] = by_position[..., 0]

        return see

    def end_batch(self, samples: int) -> None:
        zero = torch.zeros_like(next(iter(self._of_batch.values()))) if self._of_batch else torch.zeros(1, samples, 1)
        self._gradients.append(torch.stack([self._of_batch.get(index, zero) for index in range(self._functions)]))
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
            self.add(function, torch.stack([_moved(call, each, gradient, samples) for each in self._ranges], 1))

        return see if self._ranges else lambda function, gradient: None


def _moved(call: Call, rounding: ActivationRange | None, gradient: Tensor, samples: int) -> Tensor:
    """(n,) responses to one rounding; the errors are made anew for every function, and never kept."""
    if rounding is None:
        return gradient.new_zeros(samples)
    error = rounding.apply(call.x).sub_(call.x)
    moved: Tensor = (call.again(error) * gradient).sum(
        tuple(range(1, gradient.ndim))
    )  # in whatever order both lie in memory
    return moved.view(samples, -1).sum(1)


def _by_position(gradient: Tensor, layer: Layer, samples: int, groups: int) -> Tensor:
    """(g, n, r, T) a gradient at a layer's output: (n, rows, …), or (n, …, rows) of a linear layer."""
    last = gradient if layer.has_channels_last else gradient.movedim(1, -1)
    return last.reshape(samples, -1, groups, layer.rows // groups).permute(2, 0, 3, 1)
