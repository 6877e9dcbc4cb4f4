"""Responses: how far a change of one layer's weights moves functions of the outputs, to first order, sample by sample.

A change dW moves a layer's output at position t by dW x_t, and so a function f of a sample's outputs by

    Σ_t γ_tᵀ dW x_t = ⟨g, dW⟩     with the sample's own gradient g = Σ_t γ_t x_tᵀ and γ_t = ∂f / ∂y_t,

without any assumption on how inputs, gradients and positions hang together. The gradient is the same for all changes of
the layer. So hundreds of changes cost little more than one, whatever the size of the map.

Two things are made from responses: expected losses, from random functions whose responses' mean square is the
divergence (`judging`), and first-order effects, from the log-probability of every class (`evaluation.effects`).

Rounding a layer's input moves its output by W e_t with the error e_t, which differs from position to position: there
the layer is run on the errors.

Memory: a batch's activations, one layer's gradients of a batch, and the changes of as many layers at once as
`most_bytes` allows; the others wait for another pass over the samples. A layer with one position a sample has no need
of gradients: its inputs and its γ are kept, and its changes are taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from autocompress.borrowed import frozen
from autocompress.errors import InputError
from autocompress.menus.activations import ActivationRange
from autocompress.menus.columns import extended_columns, unfolded, weight_order
from autocompress.menus.listening import Call, Listening
from autocompress.network.structure import Layer

MOST_BYTES = 1_000_000_000  # of the changes that are held at once
_MOST_SAMPLES = 64  # in a batch
_BATCH_BYTES = 64_000_000  # of the columns, and of the gradients, of one layer in a batch

Functions = Callable[[int, Tensor], Sequence[Tensor]]
"""From the number of a batch's first sample and the outputs (n, …): Q numbers, each a sum over the samples."""


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
        return self.layer.positions == 1

    @property
    def bytes_held(self) -> int:
        """Bytes of the changes of the weights that are held at once."""
        return 0 if self.one_by_one else 4 * self.count * self.layer.rows * (self.layer.fan_in + 1)


def responses(
    model: nn.Module,
    changes: Sequence[Changes],
    inputs: Tensor,
    functions: Functions,
    *,
    most_bytes: int = MOST_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The responses of Q functions to every layer's V changes and A roundings.

    Args:
        model: network in eval mode; it is not changed. It runs on its own device, in its own dtype.
        changes: changes of the layers, each layer at most once.
        inputs: (N, …) samples, N at least 1.
        functions: function that gives what responds.
        most_bytes: bound of the changes that are held at once; one layer's are held in any case.
        progress: observer that is called with (samples done, samples in all) after every batch, of all passes.

    Returns:
        By layer name (N, Q, V + A) float32 on the CPU.

    Raises:
        InputError: the outputs are not finite.
    """
    parts = list(_parts(changes, most_bytes))
    batch = _samples_at_once(model, changes, inputs)
    found: dict[str, Tensor] = {}
    with frozen(model):
        for number, part in enumerate(parts):
            listener = _Listener(model, part)
            for start in range(0, len(inputs), batch):
                listener.run(start, inputs[start : start + batch], functions)
                if progress is not None:
                    done = number * len(inputs) + min(start + batch, len(inputs))
                    progress(done, len(parts) * len(inputs))
            found |= listener.finish()
    return found


def _parts(changes: Sequence[Changes], most_bytes: int) -> Iterator[list[Changes]]:
    """The layers whose changes are held at once, in their order."""
    part: list[Changes] = []
    for each in changes:
        if part and each.bytes_held and sum(held.bytes_held for held in part) + each.bytes_held > most_bytes:
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def _samples_at_once(model: nn.Module, changes: Sequence[Changes], inputs: Tensor) -> int:
    """Samples in a batch; 1 where a layer's first axis is not the samples'."""
    device, dtype = _place(model)
    seen: list[tuple[Tensor, ...]] = []
    for count in (1, 2):
        calls: list[Call] = []
        names = [each.layer.name for each in changes]
        with Listening(dict(model.named_modules()), names, calls.append, graph=False).listening(), torch.no_grad():
            model(inputs[:count].to(device, dtype))
        seen.append(tuple(call.x for call in calls))
    if len(inputs) > 1 and not all(_is_by_sample(one, two) for one, two in zip(*seen, strict=True)):
        return 1
    most = max(_bytes_a_sample(each.layer) for each in changes)
    return int(max(1, min(_MOST_SAMPLES, _BATCH_BYTES // most)))


def _is_by_sample(one: Tensor, two: Tensor) -> bool:
    """Whether the input of two samples holds that of the first of them in its first half, as near as float16 is."""
    one, first = one.float(), two[: len(one)].float()
    return len(two) == 2 * len(one) and bool((first - one).norm() <= 0.05 * one.norm())


def _bytes_a_sample(layer: Layer) -> int:
    """Bytes of a layer's columns, or of its gradient, for one sample."""
    gradient = 0 if layer.positions == 1 else layer.rows * (layer.fan_in + 1)
    return 4 * max(layer.positions * layer.groups * (layer.fan_in + 1), gradient)


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype


class _Listener:
    """Runs batches, and gathers the responses of some layers.

    Args:
        model: network that is run.
        changes: changes of these layers.
    """

    def __init__(self, model: nn.Module, changes: Sequence[Changes]) -> None:
        self._model, self._modules = model, dict(model.named_modules())
        self._device, self._dtype = _place(model)
        self._gatherers: dict[str, list[_Gatherer]] = {}
        for each in changes:
            of_weights = _OneByOne(each) if each.one_by_one else _ByGradient(each, self._device, self._dtype)
            self._gatherers[each.layer.name] = [of_weights, _OfRoundings(each.roundings)]
        self._samples, self._function = 0, 0

    def run(self, first: int, batch: Tensor, functions: Functions) -> None:
        """Add a batch: one pass forward, and one back for every function."""
        self._samples = len(batch)
        with Listening(self._modules, self._gatherers, self._hear, graph=True).listening(), torch.enable_grad():
            outputs = self._model(batch.to(self._device, self._dtype))
        if not torch.isfinite(outputs).all():
            raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
        with torch.enable_grad():
            wanted = functions(first, outputs)
        for self._function, function in enumerate(wanted):
            function.backward(retain_graph=self._function + 1 < len(wanted))  # type: ignore[no-untyped-call]
        for gatherer in self._all():
            gatherer.end_batch(self._samples, len(wanted))

    def _hear(self, call: Call) -> None:
        """Wait for the gradients of a call."""
        seeing = [gatherer.waiting(call, self._samples) for gatherer in self._gatherers[call.name]]

        def see(gradient: Tensor) -> None:
            for each in seeing:
                each(self._function, gradient.detach())

        call.output.register_hook(see)

    def _all(self) -> Iterator[_Gatherer]:
        return (gatherer for each in self._gatherers.values() for gatherer in each)

    def finish(self) -> dict[str, Tensor]:
        """By layer name (N, Q, V + A)."""
        return {name: torch.cat([each.finish() for each in found], 2) for name, found in self._gatherers.items()}


See = Callable[[int, Tensor], None]
"""Takes the number of a function, and its gradient at a call's output."""


class _Gatherer(Protocol):
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


class _Sums:
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
        zero = torch.zeros(samples, self._width)  # of a function that does not depend on the layer
        found = [self._by_function.get(index, zero).float().cpu() for index in range(functions)]
        self._batches.append(torch.stack(found, 1))
        self._by_function = {}

    def finish(self) -> Tensor:
        return torch.cat(self._batches)


class _ByGradient(_Sums):
    """Changes of weights that are held all at once, against the samples' own gradients."""

    def __init__(self, changes: Changes, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(changes.count)
        layer = changes.layer
        self._weights = torch.empty(changes.count, layer.parameters, device=device, dtype=dtype)
        self._biases = torch.empty(changes.count, layer.rows, device=device, dtype=dtype)
        for number, change in enumerate(changes.weights()):
            self._weights[number], self._biases[number] = change[:, :-1].flatten(), change[:, -1]

    def waiting(self, call: Call, samples: int) -> See:
        if not len(self._weights):
            return lambda function, gradient: None

        def see(function: int, gradient: Tensor) -> None:
            of_weight, of_bias = _sample_gradients(call, gradient, samples)
            self.add(function, of_weight @ self._weights.mT + of_bias @ self._biases.mT)

        return see


def _sample_gradients(call: Call, gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Each sample's gradient of a layer's weight, (n, rows · d), and of its bias, (n, rows).

    Where a layer sees single positions, its input is multiplied as it lies; else its windows are laid out first.

    Args:
        call: call of the layer.
        gradient: gradient at the call's output.
        samples: number n of samples, which are the first axis of both, or its slower part.
    """
    if call.window is None:
        rows, x = (each.reshape(samples, -1, each.shape[-1]) for each in (gradient, call.x))  # (n, T, …)
        return (rows.mT @ x).flatten(1), rows.sum(1)
    rows = _samples_first(gradient.flatten(2), samples)  # (n, rows, T)
    if call.window.is_single:
        return (rows @ _samples_first(call.x.flatten(2), samples).mT).flatten(1), rows.sum(2)
    groups = call.window.groups
    windows = _samples_first(unfolded(call.x, call.window), samples).unflatten(1, (groups, -1))  # (n, g, d, T)
    return (rows.unflatten(1, (groups, -1)) @ windows.mT).flatten(1), rows.sum(2)


def _samples_first(x: Tensor, samples: int) -> Tensor:
    """(n, channels, T), from (n · m, channels, T / m)."""
    return x if len(x) == samples else x.unflatten(0, (samples, -1)).transpose(1, 2).flatten(2)


class _OneByOne:
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


class _OfRoundings(_Sums):
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
    last = gradient if layer.kind == "linear" else gradient.movedim(1, -1)
    return last.reshape(samples, -1, groups, layer.rows // groups).permute(2, 0, 3, 1)
