"""Networks on a device: copies are placed there, and run batch by batch, on smaller batches where memory is short.

A module that was given never moves: `placed` copies what lies elsewhere. Outputs come back to the CPU in float32, so
that nobody else has to know of devices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from autocompress.borrowed import evaluating
from autocompress.errors import InputError
from autocompress.memory import memory_left
from autocompress.samples import Inputs, call
from autocompress.tasks.outputs import on_host, together

BATCH = 256  # largest batch of `running`: that of a data's test batches

Note = Callable[[str], None]
"""Function that is called with what the user has to know, such as `Progress.note`."""


def run_in_batches(
    model: nn.Module, inputs: Inputs, batch_size: int, device: torch.device, note: Note | None = None
) -> tuple[Any, int]:
    """Run a model on samples; where the device's memory is too small for a batch, repeat on batches of half the size.

    Args:
        model: model on `device`, as it is to run: in eval mode, where gradients are switched off.
        inputs: (N, …) samples on any device, N at least 1.
        batch_size: largest number of samples in a batch, at least 1.
        device: device of the model.
        note: function that is told once where batches had to become smaller. Default: nobody.

    Returns:
        float32 outputs of N samples on the CPU, and the batch size that fitted: `batch_size`, or less. Outputs are what
        the network gives in its form: logits (N, classes), rows (N, P, K), or of a raw one whatever counts.

    Raises:
        InputError: the device's memory is too small for a single sample.
    """
    size = batch_size
    while True:
        try:
            outputs = together([on_host(call(model, batch.to(device))) for batch in inputs.split(size)])
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise _no_room("one sample of `data`", device) from error
        else:
            if size < batch_size and note is not None:
                note(f"{device} has no memory for batches of {batch_size}; they have {size} samples from here on")
            return outputs, size
        size = min(size, len(inputs)) // 2 or 1  # after the handler, whose traceback holds what filled the memory
        free_memory(device)


@contextmanager
def room_for(what: str, device: torch.device) -> Iterator[None]:
    """Turn a device's full memory into one line, where nothing smaller can be tried.

    Args:
        what: name in the message of what is moved to the device inside.
        device: device that it is moved to.

    Raises:
        InputError: the device's memory is too small.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _no_room(what, device) from error


def _no_room(what: str, device: torch.device) -> InputError:
    return InputError(
        f"`device` must have memory for {what}, got {device} without; free its memory, or pass --device cpu."
    )


def room_on(device: torch.device, memory: int | None) -> int:
    """Bytes that can still be taken where a network runs: of a GPU's own memory, else of the host's up to a limit.

    Args:
        device: device that the network runs on.
        memory: most bytes that the process may hold in all on the host; None: what it holds now and 70 % of what is
            available.
    """
    if device.type != "cuda":
        return memory_left(memory)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a CUDA device's memory for later; nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def running(
    model: nn.Module, device: torch.device, note: Note | None = None, batch_size: int = BATCH
) -> Iterator[Callable[[Inputs], Any]]:
    """A model in eval mode on a device, without gradients.

    Args:
        model: model to run. It is left where it is and in the mode that it is in: what runs elsewhere is a copy.
        device: device that it runs on.
        note: function that is told once where batches had to become smaller. Default: nobody.
        batch_size: largest number of samples in a batch, at least 1.

    Yields:
        Function from inputs (n, …), on any device, to outputs (n, …), float32 on the CPU, as of `run_in_batches`.
    """
    there, size = placed(model, device), batch_size

    def run(inputs: Inputs) -> Any:
        nonlocal size
        outputs, size = run_in_batches(there, inputs, size, device, note)
        return outputs

    with evaluating(there):
        yield run


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself where all of it lies on the device; else a copy that does.

    Args:
        model: model, which is left where it is.
        device: device of the result.

    Raises:
        InputError: the device's memory is too small for the model.
    """
    here = torch.empty(0, device=device).device  # with its index: `cuda` is `cuda:0`, or the one that is current
    if all(tensor.device == here for tensor in (*model.parameters(), *model.buffers())):
        return model
    with room_for("the network", device):
        copied = copy.deepcopy(model).to(device)
    if isinstance(copied, fx.GraphModule):
        _make_tensors_on_(copied, device)
    return copied


def _make_tensors_on_(graph: fx.GraphModule, device: torch.device) -> None:
    """Let the nodes of an exported graph that make new tensors make them on the device: their arguments name one."""

    def moved(value: object) -> object:
        return device if isinstance(value, torch.device) else value

    for node in graph.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)  # type: ignore[assignment, arg-type]
    graph.recompile()
