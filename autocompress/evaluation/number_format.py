"""The dtype and the batch size that a network runs fastest with on this machine, without giving other outputs."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.batches import BATCH, Note, room_for, room_on, run_in_batches, running
from autocompress.evaluation.measure import AT_ONCE, compare
from autocompress.memory import samples_at_once
from autocompress.network.structure import Network
from autocompress.samples import Inputs, cast, images_channels_last, tensors_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCHES = (1, 4, 16, 64, 128, 256)  # batch sizes: the three largest that memory holds are timed
AUTO = "auto"  # name of the device that is chosen: CUDA where there is one
CPU = torch.device("cpu")
_TIMED_SIZES = 3
_COPIES = 2  # of the activations: convolutions re-order what they read
_TIMED_SAMPLES = 256  # samples of a timed pass, at most …
_TIMED_VALUES = 10_000_000  # … and values of their inputs: 66 RGB images of 224 pixels tell as much
_HOST_BYTES = 512_000_000  # of a batch's activations on the host: larger batches are no faster there …
_UNTIMED_BYTES = 128_000_000  # … and where nothing is timed, so many are never much slower than the fastest
_DTYPE_NOISE = 2e-3  # nats; a faster dtype must change the original's outputs by less


def samples_that_fit(network: Network, memory: int | None, most: int, device: torch.device = CPU) -> int:
    """Number of samples, 1 to `most`, of a forward pass whose activations fit into memory.

    On a GPU, which says so when its memory is full, it is the number that may fit in the smallest dtype: batches begin
    with it and are halved where they turn out too large. The host's memory must not get full.

    Args:
        network: trace of the network.
        memory: most bytes that the process may hold in all; None: what it holds now and 70 % of what is available. On a
            GPU its own free memory counts instead.
        most: number that is never exceeded.
        device: device that the network runs on.
    """
    held, room = network.activation_bytes, room_on(device, memory)
    if device.type == "cuda":
        return samples_at_once(held // 2, room, most)
    return samples_at_once(_COPIES * held, min(room, _HOST_BYTES), most)


def measured_at_once(network: Network, memory: int | None, device: torch.device) -> int:
    """Number of samples in a forward pass that nobody times: at most 64, few of large images, or 256 on a GPU.

    Args:
        network: trace of the network.
        memory: most bytes that the process may hold in all, as for `samples_that_fit`.
        device: device that the network runs on.
    """
    if device.type == "cuda":
        return samples_that_fit(network, memory, BATCH, device)
    fast = samples_at_once(_COPIES * network.activation_bytes, _UNTIMED_BYTES, AT_ONCE)
    return samples_that_fit(network, memory, fast, device)


def batch_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes that are timed where at most so many samples fit into memory.

    >>> batch_sizes(1000), batch_sizes(130), batch_sizes(20), batch_sizes(1)
    ((64, 128, 256), (16, 64, 128), (1, 4, 16), (1,))
    """
    return tuple(size for size in BATCHES if size <= most)[-_TIMED_SIZES:]


def choose_dtype(
    folded: nn.Module, inputs: Inputs, original: nn.Module, device: str = "cpu", most: int = BATCHES[-1]
) -> str:
    """The dtype that an `Evaluator` with `dtype="auto"` would run in (`fastest_dtype`).

    Args:
        folded: network with its norms folded.
        inputs: (N, …) samples; at most the first 256 are run.
        original: network whose outputs must not change.
        device: device that the network is to run on.
        most: number of samples in a forward pass, at most.
    """
    some = _timed_samples(inputs)
    there = torch_device(device)
    return fastest_dtype(folded, some, outputs_of(original, some, there, most), there, most)


def fastest_dtype(
    folded: nn.Module, inputs: Inputs, reference: Tensor, device: torch.device, most: int = BATCHES[-1]
) -> str:
    """`float32`, unless a smaller dtype is faster here and changes the outputs by less than 0.002 nats.

    `float16` is tried on CUDA only.

    Args:
        folded: network with its norms folded.
        inputs: (N, …) samples; at most the first 256 are run.
        reference: (N, classes) outputs that must not change.
        device: device that the network is to run on.
        most: number of samples in a forward pass, at most.
    """
    best, best_seconds, batch = "float32", math.inf, batch_sizes(most)[:2][-1]
    for name in ("float32", "bfloat16", *(["float16"] if device.type == "cuda" else [])):
        try:
            seconds, outputs, _ = _timed(prepared(folded, name, device), inputs, name, device, batch)
        except RuntimeError as error:
            if name == "float32" or isinstance(error, InputError | torch.OutOfMemoryError):
                raise
            continue  # its forward pass makes float32 tensors itself, or has an operator without this dtype
        noise = compare(reference[: len(outputs)], outputs, None).kl if outputs.isfinite().all() else math.inf
        if seconds < best_seconds and (name == "float32" or noise < _DTYPE_NOISE):
            best, best_seconds = name, seconds
    return best


def fastest_batch(folded: nn.Module, inputs: Inputs, dtype: str, device: torch.device, most: int = BATCHES[-1]) -> int:
    """The fastest of three batch sizes: 64, 128 and 256, or smaller ones where memory does not hold these.

    On a CPU, small batches of large images are often faster: what stays in its caches need not be fetched.

    Args:
        folded: network with its norms folded.
        inputs: (N, …) samples; at most the first 256 are run.
        dtype: floating-point type of the forward passes.
        device: device that the network is to run on.
        most: number of samples in a forward pass, at most.
    """
    sizes = batch_sizes(most)
    if len(sizes) == 1:
        return sizes[0]
    model = prepared(folded, dtype, device)
    seconds: dict[int, float] = {}
    for size in sizes:
        taken, _, fitted = _timed(model, inputs, dtype, device, size)
        seconds.setdefault(fitted, taken)
    return min(seconds, key=lambda size: seconds[size])


def prepared(folded: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    """A copy of a network that runs in `dtype` on `device`, channels last."""
    with room_for("the network", device):
        model = copy.deepcopy(folded).to(device, DTYPES[dtype])
    return channels_last(model)


def channels_last(model: nn.Module) -> nn.Module:
    """The model itself, weights of images channels last; as it is with a Conv3d, which the format can't hold."""
    if any(parameter.ndim == 5 for parameter in model.parameters()):
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def in_format(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """The (N, …) inputs in the format of a network that was `prepared`: on its device, in its dtype, channels last."""
    with room_for("the samples that plans are compared on", device):
        there = cast(inputs, device, dtype)
    return images_channels_last(there)


def run(
    model: nn.Module, inputs: Inputs, batch_size: int, device: torch.device, note: Note | None = None
) -> tuple[Tensor, int]:
    """Logits (N, classes) or rows (N, P, K), float32 on the CPU, and the batch size that fitted (`run_in_batches`).

    Args:
        model: network that was `prepared`; what it keeps from a pass can't be trained with.
        inputs: (N, …) samples in its format.
        batch_size: largest number of samples in a batch, at least 1.
        device: device of the model.
        note: function that is told once where batches had to become smaller. Default: nobody.
    """
    with torch.inference_mode():
        return run_in_batches(model, inputs, batch_size, device, note)


def outputs_of(model: nn.Module, inputs: Inputs, device: torch.device = CPU, most: int = AT_ONCE) -> Tensor:
    """(N, classes) logits or (N, P, K) rows of a model in eval mode, float32, computed in its own dtype.

    Args:
        model: model to run; it is left where it is and in the mode that it was in.
        inputs: (N, …) samples.
        device: device that it runs on.
        most: number of samples in a forward pass, at most; above 64 it is 64.

    Raises:
        InputError: an output is NaN or infinite.
    """
    with running(model, device, batch_size=min(most, AT_ONCE)) as run_model:
        outputs: Tensor = run_model(inputs)
    if not torch.isfinite(outputs).all():
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
    return outputs


def outputs_within(
    model: nn.Module, inputs: Inputs, network: Network, device: torch.device, memory: int | None
) -> Tensor:
    """`outputs_of` a model that nobody timed, in batches that memory holds.

    Args:
        model: model to run.
        inputs: (N, …) samples.
        network: trace of the model.
        device: device that it runs on.
        memory: most bytes that the process may hold in all, as for `samples_that_fit`.

    Raises:
        InputError: an output is NaN or infinite.
    """
    return outputs_of(model, inputs, device, measured_at_once(network, memory, device))


def torch_device(name: str) -> torch.device:
    """The device of a name such as `cpu` or `cuda:0`; `auto` is `cuda` where there is one, else `cpu`.

    Raises:
        InputError: this machine has no such device.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"`device` must be such as auto, cpu or cuda:0, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"`device` must exist on this machine, got {name!r} without CUDA; use cpu.")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # what backends raise that are missing or hold no data
        raise InputError(f"`device` must exist on this machine, got {name!r}; use cpu.") from error
    return device


def _timed_samples(inputs: Inputs) -> Inputs:
    """The first samples, as many as are timed."""
    values = sum(tensor[0].numel() for tensor in tensors_of(inputs))
    return inputs[: max(1, min(_TIMED_SAMPLES, _TIMED_VALUES // values))]


def _timed(model: nn.Module, inputs: Inputs, dtype: str, device: torch.device, batch: int) -> tuple[float, Tensor, int]:
    """(seconds of a pass over at most 256 samples, their outputs (n, classes), the batch size that fitted).

    One batch runs before, unmeasured.
    """
    samples = in_format(_timed_samples(inputs), device, DTYPES[dtype])
    _, fitted = run(model, samples[:batch], batch, device)
    started = time.perf_counter()
    outputs, fitted = run(model, samples, fitted, device)
    return time.perf_counter() - started, outputs, fitted
