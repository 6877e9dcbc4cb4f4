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

import torch
from torch import Tensor, nn

from autocompress.borrowed import frozen
from autocompress.errors import InputError
from autocompress.memory import bound_on, give_back
from autocompress.menus.calibration import COPIES, batch_size, output_bytes
from autocompress.menus.changes import Changes
from autocompress.menus.gatherers import ByGradient, Gatherer, OfRoundings, OneByOne
from autocompress.menus.listening import Call, Listening, on_gradient
from autocompress.menus.lookups import OfLookups
from autocompress.network.structure import EMBEDDING, Layer
from autocompress.samples import Inputs, call, cast

MOST_BYTES = {"cpu": 1_000_000_000, "cuda": 8_000_000_000}  # of the changes that are held at once
_MOST_SAMPLES = 64  # in a batch
_FUNCTIONS = 10  # whose gradients are held: of as many classes are effects taken
_BATCH_BYTES = {"cpu": 64_000_000, "cuda": 1_000_000_000}  # of the windows, or the gradients, of one layer in a batch
_GRADIENT_BYTES = {"cpu": 512_000_000, "cuda": 8_000_000_000}  # of the gradients at all layers' outputs that are held

Functions = Callable[[int, Tensor], Sequence[Tensor]]
"""From the number of a batch's first sample and the outputs (n, …): Q numbers, each a sum over the samples."""


def responses(
    model: nn.Module,
    changes: Sequence[Changes],
    inputs: Inputs,
    functions: Functions,
    *,
    most_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The responses of Q functions to every layer's V changes and A roundings.

    Args:
        model: network in eval mode; it is not changed. It runs on its own device, in its own dtype.
        changes: changes of the layers, each layer at most once.
        inputs: (N, …) samples, N at least 1.
        functions: function that gives what responds.
        most_bytes: bound of the changes that are held at once; one layer's are held in any case. None: 1 GB, or 8 GB on
            a GPU.
        progress: observer that is called with (samples done, samples in all) after every batch, of all passes.

    Returns:
        By layer name (N, Q, V + A) float32 on the CPU.

    Raises:
        InputError: the outputs are not finite.
    """
    device, _ = _place(model)
    most = bound_on(device.type, MOST_BYTES) if most_bytes is None else most_bytes
    parts = list(_parts(changes, most))
    batch = _samples_at_once(model, changes, inputs)
    outputs = batch * output_bytes(each.layer for each in changes)
    functions_at_once = max(1, bound_on(device.type, _GRADIENT_BYTES) // outputs)
    found: dict[str, Tensor] = {}
    with frozen(model):
        for number, part in enumerate(parts):
            listener = _Listener(model, part, functions_at_once)
            for start in range(0, len(inputs), batch):
                listener.run(start, inputs[start : start + batch], functions)
                give_back()
                if progress is not None:
                    done = number * len(inputs) + min(start + batch, len(inputs))
                    progress(done, len(parts) * len(inputs))
            found |= listener.finish()
    return found


def pass_bytes(layers: Sequence[Layer], device: torch.device) -> int:
    """Bytes that a pass forward and back takes at its peak: a batch's activations, and gradients at their outputs.

    Args:
        layers: layers of the network.
        device: device that it runs on.
    """
    outputs = min(_MOST_SAMPLES, batch_size(layers, device)) * output_bytes(layers)
    return COPIES * outputs + min(bound_on(device.type, _GRADIENT_BYTES), _FUNCTIONS * outputs)


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


def _samples_at_once(model: nn.Module, changes: Sequence[Changes], inputs: Inputs) -> int:
    """Samples in a batch; 1 where a layer's first axis is not the samples'."""
    device, _ = _place(model)
    names = [each.layer.name for each in changes]
    seen = (_operator_inputs(model, names, inputs[:count]) for count in (1, 2))
    if len(inputs) > 1 and not all(_is_by_sample(one, two) for one, two in zip(*seen, strict=True)):
        return 1
    most = max(_bytes_a_sample(each.layer) for each in changes)
    by_layer = bound_on(device.type, _BATCH_BYTES) // most
    return int(max(1, min(_MOST_SAMPLES, by_layer, batch_size((each.layer for each in changes), device))))


def _operator_inputs(model: nn.Module, names: Sequence[str], batch: Inputs) -> list[Tensor]:
    """The inputs of all calls of some layers' operators, in their order."""
    device, dtype = _place(model)
    seen: list[Tensor] = []
    listening = Listening(dict(model.named_modules()), names, lambda heard, _: seen.append(heard.x), graph=False)
    with listening.listening(), torch.no_grad():
        call(model, cast(batch, device, dtype))
    return seen


def _is_by_sample(one: Tensor, two: Tensor) -> bool:
    """Whether the input of two samples holds that of the first of them in its first half, as near as float16 is."""
    one, first = one.float(), two[: len(one)].float()
    return len(two) == 2 * len(one) and bool((first - one).norm() <= 0.05 * one.norm())


def _bytes_a_sample(layer: Layer) -> int:
    """Bytes of a layer's columns, or of its gradient, for one sample."""
    if layer.kind == EMBEDDING:
        return 4 * layer.positions * layer.fan_in  # of one change's rows
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
        functions_at_once: number of functions whose gradients at the layers' outputs are held.
    """

    def __init__(self, model: nn.Module, changes: Sequence[Changes], functions_at_once: int) -> None:
        self._model, self._modules = model, dict(model.named_modules())
        self._device, self._dtype = _place(model)
        self._gatherers: dict[str, list[Gatherer]] = {}
        for each in changes:
            self._gatherers[each.layer.name] = [self._of_weights(each, functions_at_once), OfRoundings(each.roundings)]
        self._samples, self._function = 0, 0

    def _of_weights(self, changes: Changes, functions_at_once: int) -> Gatherer:
        if changes.layer.kind == EMBEDDING:
            return OfLookups(changes, self._device, self._dtype)
        if changes.one_by_one:
            return OneByOne(changes)
        return ByGradient(changes, self._device, self._dtype, functions_at_once)

    def run(self, first: int, batch: Inputs, functions: Functions) -> None:
        """Add a batch: one pass forward, and one back for every function."""
        self._samples = len(batch)
        with Listening(self._modules, self._gatherers, self._hear, graph=True).listening(), torch.enable_grad():
            outputs = call(self._model, cast(batch, self._device, self._dtype))
        if not torch.isfinite(outputs).all():
            raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
        with torch.enable_grad():
            wanted = functions(first, outputs)
        for gatherer in self._all():
            gatherer.begin_backward(len(wanted))
        for self._function, function in enumerate(wanted):
            function.backward(retain_graph=self._function + 1 < len(wanted))  # type: ignore[no-untyped-call]
        for gatherer in self._all():
            gatherer.end_batch(self._samples)

    def _hear(self, call: Call, output: Tensor) -> None:
        """Wait for the gradients of a call."""
        seeing = [gatherer.waiting(call, self._samples) for gatherer in self._gatherers[call.name]]

        def see(gradient: Tensor) -> None:
            for each in seeing:
                each(self._function, gradient)

        on_gradient(output, see)

    def _all(self) -> Iterator[Gatherer]:
        return (gatherer for each in self._gatherers.values() for gatherer in each)

    def finish(self) -> dict[str, Tensor]:
        """By layer name (N, Q, V + A)."""
        return {name: torch.cat([each.finish() for each in found], 2) for name, found in self._gatherers.items()}
