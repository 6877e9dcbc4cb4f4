"""In which dtype and in which batches a network runs fastest on this machine, without giving other outputs."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.errors import InputError
from autocompress.evaluation.measure import compare

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCHES = (64, 128, 256)
_TRIAL_SAMPLES = 256
_DTYPE_NOISE = 2e-3  # nats by which a faster dtype may change the original's outputs


def choose_dtype(folded: nn.Module, inputs: Tensor, original: nn.Module, device: str = "cpu") -> str:
    """The dtype that an evaluator would pick; see `fastest_dtype`.

    Args:
        folded: the network with its norms folded.
        inputs: (N, …) samples.
        original: the network whose outputs count.
        device: where the network is to run.
    """
    some = inputs[:_TRIAL_SAMPLES]
    return fastest_dtype(folded, some, outputs_of(original, some), torch_device(device))


def fastest_dtype(folded: nn.Module, inputs: Tensor, reference: Tensor, device: torch.device) -> str:
    """float32, unless a smaller dtype is faster here and changes the outputs by less than 0.002 nats.

    Args:
        folded: the network with its norms folded.
        inputs: (N, …) samples.
        reference: (N, classes) the outputs that count.
        device: where the network is to run.
    """
    best, best_seconds = "float32", math.inf
    for name in ("float32", "bfloat16", *(["float16"] if device.type == "cuda" else [])):
        seconds, outputs = _trial(prepared(folded, name, device), inputs, name, device, BATCHES[1])
        noise = compare(reference[: len(outputs)], outputs, None).kl if outputs.isfinite().all() else math.inf
        if seconds < best_seconds and (name == "float32" or noise < _DTYPE_NOISE):
            best, best_seconds = name, seconds
    return best


def fastest_batch(folded: nn.Module, inputs: Tensor, dtype: str, device: torch.device) -> int:
    """The fastest of a few batch sizes."""
    model = prepared(folded, dtype, device)
    return min(BATCHES, key=lambda size: _trial(model, inputs, dtype, device, size)[0])


def prepared(folded: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    """A copy that runs in `dtype` on `device`, channels last."""
    model = copy.deepcopy(folded).to(device, DTYPES[dtype])
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def in_format(inputs: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Inputs (N, …) for a network that was `prepared`."""
    inputs = inputs.to(device, dtype)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def run(model: nn.Module, batches: tuple[Tensor, ...]) -> Tensor:
    """(N, classes) float32 outputs on the CPU."""
    with torch.inference_mode():
        return torch.cat([model(batch).flatten(1).float().cpu() for batch in batches])


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """(N, classes) float32 outputs on the CPU, where the model is, in its own dtype. Raises InputError for NaN."""
    with evaluating(model):
        device = next(model.parameters()).device
        outputs = torch.cat([model(batch.to(device)).flatten(1).cpu() for batch in inputs.split(BATCHES[0])])
    if not torch.isfinite(outputs).all():
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
    return outputs.float()


def torch_device(name: str) -> torch.device:
    """Raises InputError where this machine has no such device."""
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


def _trial(model: nn.Module, inputs: Tensor, dtype: str, device: torch.device, batch: int) -> tuple[float, Tensor]:
    """(seconds of a pass over some samples, outputs); a smaller pass warms up."""
    batches = in_format(inputs[:_TRIAL_SAMPLES], device, DTYPES[dtype]).split(batch)
    run(model, batches[:1])
    started = time.perf_counter()
    outputs = run(model, batches)
    return time.perf_counter() - started, outputs
