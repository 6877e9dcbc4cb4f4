"""The dtype and the batch size that a network runs fastest with on this machine, without giving other outputs."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.errors import InputError
from autocompress.evaluation.measure import compare
from autocompress.memory import memory_left, samples_at_once
from autocompress.network.structure import Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCHES = (64, 128, 256)  # batch sizes that are timed, as far as memory holds them
_SMALL_BATCHES = (1, 8, 16, 32)  # where it holds none of these, the largest of those that it holds
_COPIES = 2  # of the activations: convolutions re-order what they read
_TIMED_SAMPLES = 256  # samples of a timed pass, at most
_DTYPE_NOISE = 2e-3  # nats; a faster dtype must change the original's outputs by less


def samples_that_fit(network: Network, memory: int | None, most: int) -> int:
    """Number of samples, 1 to `most`, of a forward pass whose activations fit into memory.

    Args:
        network: trace of the network.
        memory: most bytes that the process may hold in all; None: what it holds now and 70 % of what is available.
        most: number that is never exceeded.
    """
    return samples_at_once(_COPIES * network.activation_bytes, memory_left(memory), most)


def batch_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes that are timed where at most so many samples fit into memory.

    >>> batch_sizes(1000), batch_sizes(130), batch_sizes(20), batch_sizes(1)
    ((64, 128, 256), (64, 128), (16,), (1,))
    """
    fitting = tuple(size for size in BATCHES if size <= most)
    return fitting or (max(size for size in _SMALL_BATCHES if size <= most),)


def choose_dtype(
    folded: nn.Module, inputs: Tensor, original: nn.Module, device: str = "cpu", most: int = BATCHES[-1]
) -> str:
    """The dtype that an `Evaluator` with `dtype="auto"` would run in (`fastest_dtype`).

    Args:
        folded: network with its norms folded.
        inputs: (N, …) samples; the first 256 are run.
        original: network whose outputs must not change.
        device: device that the network is to run on.
        most: number of samples in a forward pass, at most.
    """
    some = inputs[:_TIMED_SAMPLES]
    return fastest_dtype(folded, some, outputs_of(original, some, most), torch_device(device), most)


def fastest_dtype(
    folded: nn.Module, inputs: Tensor, reference: Tensor, device: torch.device, most: int = BATCHES[-1]
) -> str:
    """`float32`, unless a smaller dtype is faster here and changes the outputs by less than 0.002 nats.

    `float16` is tried on CUDA only.

    Args:
        folded: network with its norms folded.
        inputs: (N, …) samples; the first 256 are run.
        reference: (N, classes) outputs that must not change.
        device: device that the network is to run on.
        most: number of samples in a forward pass, at most.
    """
    best, best_seconds = "float32", math.inf
    for name in ("float32", "bfloat16", *(["float16"] if device.type == "cuda" else [])):
        seconds, outputs = _timed(prepared(folded, name, device), inputs, name, device, batch_sizes(most)[:2][-1])
        noise = compare(reference[: len(outputs)], outputs, None).kl if outputs.isfinite().all() else math.inf
        if seconds < best_seconds and (name == "float32" or noise < _DTYPE_NOISE):
            best, best_seconds = name, seconds
    return best


def fastest_batch(folded: nn.Module, inputs: Tensor, dtype: str, device: torch.device, most: int = BATCHES[-1]) -> int:
    """The fastest of the batch sizes 64, 128 and 256, as far as memory holds them; else 32, 16, 8 or 1.

    Args:
        folded: network with its norms folded.
        inputs: (N, …) samples; the first 256 are run.
        dtype: floating-point type of the forward passes.
        device: device that the network is to run on.
        most: number of samples in a forward pass, at most.
    """
    sizes = batch_sizes(most)
    if len(sizes) == 1:
        return sizes[0]
    model = prepared(folded, dtype, device)
    return min(sizes, key=lambda size: _timed(model, inputs, dtype, device, size)[0])


def prepared(folded: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    """A copy of a network that runs in `dtype` on `device`, channels last."""
    model = copy.deepcopy(folded).to(device, DTYPES[dtype])
    if any(parameter.ndim == 5 for parameter in model.parameters()):  # of Conv3d, which the format can't hold
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def in_format(inputs: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The (N, …) inputs in the format of a network that was `prepared`: on its device, in its dtype, channels last."""
    inputs = inputs.to(device, dtype)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def run(model: nn.Module, batches: tuple[Tensor, ...]) -> Tensor:
    """(N, classes) float32 outputs on the CPU, of a model in eval mode on batches in its format."""
    with torch.inference_mode():
        return torch.cat([model(batch).flatten(1).float().cpu() for batch in batches])


def outputs_of(model: nn.Module, inputs: Tensor, most: int = BATCHES[0]) -> Tensor:
    """(N, classes) float32 outputs of a model, which runs on its own device, in its own dtype and in eval mode.

    Args:
        model: model to run; it is left in the mode that it was in.
        inputs: (N, …) samples on the CPU.
        most: number of samples in a forward pass, at most; above 64 it is 64.

    Raises:
        InputError: an output is NaN or infinite.
    """
    with evaluating(model):
        device = next(model.parameters()).device
        outputs = torch.cat([model(batch.to(device)).flatten(1).cpu() for batch in inputs.split(min(most, BATCHES[0]))])
    if not torch.isfinite(outputs).all():
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
    return outputs.float()


def torch_device(name: str) -> torch.device:
    """The device of a name such as `cpu` or `cuda:0`. Raises InputError where this machine has no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"`device` must be such as cpu or cuda:0, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"`device` must exist on this machine, got {name!r} without CUDA; use cpu.")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # what backends raise that are missing or hold no data
        raise InputError(f"`device` must exist on this machine, got {name!r}; use cpu.") from error
    return device


def _timed(model: nn.Module, inputs: Tensor, dtype: str, device: torch.device, batch: int) -> tuple[float, Tensor]:
    """(seconds of a pass over at most 256 samples, their outputs (n, classes)); one batch runs before, unmeasured."""
    batches = in_format(inputs[:_TIMED_SAMPLES], device, DTYPES[dtype]).split(batch)
    run(model, batches[:1])
    started = time.perf_counter()
    outputs = run(model, batches)
    return time.perf_counter() - started, outputs
