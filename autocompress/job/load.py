"""Loading: the network of a job, its data, and what tracing says of the network."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.config import NetworkOptions
from autocompress.data import Data, from_tensors, load_data
from autocompress.data.sources import TensorSource
from autocompress.errors import InputError, reason_of
from autocompress.evaluation import torch_device
from autocompress.evaluation.batches import placed, running
from autocompress.evaluation.measure import Kept
from autocompress.evaluation.number_format import outputs_within
from autocompress.job.memory import check_memory
from autocompress.job.options import DataLike, ModelLike, Request, SearchRequest
from autocompress.job.outputs import read
from autocompress.models import gives_probabilities, has_random_weights, load_model
from autocompress.network import Network, fold_batch_norms, trace
from autocompress.network.groups import UNREADABLE
from autocompress.network.layered import with_layers
from autocompress.network.separate_attention import unseparated
from autocompress.progress import Progress
from autocompress.samples import ONE, Inputs, fields_of
from autocompress.searchers.base import REWARDS
from autocompress.targets import Target
from autocompress.tasks import Reading
from autocompress.tasks.metrics import find_metrics, missing_package


@dataclass(frozen=True)
class Loaded:
    """A network and its data.

    Attributes:
        model: the original: it teaches, and every result is measured against it.
        base: the network that is compressed: the original, or what earlier stages made of it, of the same architecture.
        folded: the base with its norms folded, float32.
        teacher: the original with its norms folded, float32.
        data: the data with its splits.
        inputs: inputs (N, …) of the calibration split.
        target: target that the result runs on.
        device: device that networks are run on; all that is held here lies on the CPU.
        network: layers, groups and costs that tracing found.
        reading: how outputs are read: the task, fitted to the original.
        memory: most bytes that the process may hold in all; None: what it holds and 70 % of what is available.
        search_outputs: function that gives the (N, classes) logits or (N, P, K) rows of the original on the search
            split, float32; all that is compared there is compared with them, so it computes them once.
    """

    model: nn.Module
    base: nn.Module
    folded: nn.Module
    teacher: nn.Module
    data: Data
    inputs: Inputs
    target: Target
    device: torch.device
    network: Network
    reading: Reading
    memory: int | None
    search_outputs: Callable[[], Tensor]

    def outputs(self, inputs: Inputs) -> Tensor:
        """(N, classes) logits or (N, P, K) rows of the original, float32, on N samples."""
        return outputs_within(self.model, inputs, self.network, self.device, self.memory)

    @cached_property
    def kept_outputs(self) -> dict[str, Kept]:
        """What was kept of the original's outputs, by split: a front verifies many networks against them."""
        return {}


def loaded_fields(loaded: Loaded) -> dict[str, Any]:
    """What of a job does not depend on its menus, by name."""
    return {field.name: getattr(loaded, field.name) for field in dataclasses.fields(Loaded)}


def load(asked: Request, data: Data, watcher: Progress) -> Loaded:
    """Load the network, check that it fits the data, and trace it.

    Raises:
        InputError: the network can't be loaded or traced, does not fit the data, or does not fit into memory.
    """
    device = torch_device(asked.config.device)
    module = placed(_load_model(asked.model, asked.config, data, watcher), torch.device("cpu"))
    for note in data.notes:
        watcher.note(note)
    _check_test_shape(data)
    inputs, labels = data.train.load(data.calibration_indices)
    reading = read(module, inputs, labels, data.classes, asked.config.task)
    data = _tell_task(reading, data, labels is not None, watcher)
    check_labels(asked, data)  # once more: those of the task may be no classes
    module = with_layers(module, inputs, reading.form)
    _check_device(module, inputs[:2], device)
    for name in unseparated(module):
        watcher.note(f"nn.MultiheadAttention {name} keeps its matrices in 32 bits: only its plain form gets labels")
    network = trace(module, inputs[:1])
    _tell_network(network, asked.config.model, data, watcher)
    folded = fold_batch_norms(module, network).cpu().float().eval()
    memory = asked.config.memory_bytes()
    check_memory(network, data, inputs[:1].nbytes, device, asked, watcher)
    return Loaded(
        model=module,
        base=module,
        folded=folded,
        teacher=folded,
        data=data,
        inputs=inputs,
        target=asked.target,
        device=device,
        network=network,
        reading=reading,
        memory=memory,
        search_outputs=cache(lambda: outputs_within(module, data.search()[0], network, device, memory)),
    )


def _tell_task(reading: Reading, data: Data, has_labels: bool, watcher: Progress) -> Data:
    """Tell which task was taken and why; the data without classes where the task is after something else.

    Nothing is told of classes where labels say so.
    """
    if reading.of_classes and (has_labels or not reading.reason):
        return data
    because = f" ({reading.reason})" if reading.reason else ""
    watcher.note(f"task: {reading.task.name}{because}; --task NAME names another")
    if reading.of_classes:
        return data
    metrics = find_metrics(reading.task.metrics)
    if has_labels and (package := missing_package(metrics)):
        names = ", ".join(metric.title for metric in metrics)
        watcher.note(f"{names} need the package {package}: pip install 'autocompress[metrics]'; left out until then")
    return dataclasses.replace(data, classes=())


def _check_device(module: nn.Module, inputs: Inputs, device: torch.device) -> None:
    """Raises InputError where the network can't run on the device, as where it keeps tensors that `to` does not move.

    Args:
        module: network on the CPU, which can run there.
        inputs: (n, …) samples.
        device: device that is asked for.
    """
    if device.type == "cpu":
        return
    try:
        with running(module, device) as run:
            run(inputs)
    except InputError:  # what `running` says itself
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"`model` must run on the device {device}, got the error: {reason_of(error)}; "
            "make its tensors on the input's device and register those that it keeps, or pass --device cpu."
        ) from error


def load_splits(asked: Request) -> Data:
    """The data, split. Raises InputError where it can't be read or is too little."""
    return asked.data if isinstance(asked.data, Data) else _splits(asked.data, asked.config)


def _splits(data: DataLike | None, options: NetworkOptions) -> Data:
    cut: dict[str, Any] = {
        "seed": options.seed,
        "search_samples": options.search_samples,
        "calibration_samples": options.calibration_samples,
    }
    if isinstance(data, tuple):
        train, test = data if isinstance(data[0], tuple) else (data, None)
        return from_tensors(train, test, mean=options.mean, std=options.std, **cut)
    return load_data(
        options.required_data(),
        image_size=options.image_size,
        mean=options.mean,
        std=options.std,
        data_args=options.data_args,
        tokenizer=options.tokenizer,
        max_tokens=options.max_tokens,
        audio_seconds=options.audio_seconds,
        **cut,
    )


def check_labels(asked: Request, data: Data) -> None:
    """Raises InputError where something needs labels that the data lacks: now rather than after the search."""
    if data.classes:
        return
    config = asked.config
    if config.finetune + config.l1_epochs and config.hard_weight and config.labels == "data":
        raise InputError(
            f"`hard_weight` needs labelled data, got {data.name} without labels; pass --labels teacher or leave it out."
        )
    if not isinstance(asked, SearchRequest):
        return
    if REWARDS[config.reward].needs_labels:
        raise InputError(f"`reward` {config.reward} needs labelled data, got {data.name} without labels; choose kl.")
    if asked.searcher.needs_labels:
        raise InputError(
            f"`method` {config.method} needs labelled data for its own reward, got {data.name} without labels; "
            "choose another method."
        )


def _load_model(model: ModelLike, options: NetworkOptions, data: Data, watcher: Progress) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    loaded = load_model(model, options.weights, options.model_args, len(data.classes) or None)
    if has_random_weights(model, options.weights):
        watcher.note(f"{model} has random weights; pass --weights FILE for trained ones")
    if gives_probabilities(loaded):
        watcher.note(
            f"{model} ends in a softmax, and its probabilities are compared as if they were logits, which tells plans "
            "apart less well; export the network without its last softmax"
        )
    return loaded


def _tell_network(network: Network, name: str, data: Data, watcher: Progress) -> None:
    parameters = sum(layer.parameters for layer in network.layers)
    samples = f"{len(data.search_indices)} search and {len(data.calibration_indices)} calibration samples"
    watcher.stage(
        f"network: {name}, {len(network.layers)} layers, {len(network.groups)} channel groups, "
        f"{parameters:,} weights; data: {data.name}, {samples}"
    )
    for operator, calls in network.unknown_operators.items():
        watcher.note(f"operator {operator} ({calls} calls) is in no cost table; its cost counts as 0")
    for module, reason in network.shared_weights.items():
        watcher.note(f"{module} stays in float32: {reason}")
    _tell_unread(network, watcher)


def _tell_unread(network: Network, watcher: Progress) -> None:
    """Note which layers have no channel groups because torch-pruning can't read the network, and why."""
    unread: dict[str, list[str]] = defaultdict(list)
    for layer in network.layers:
        if layer.fixed_reason.startswith(UNREADABLE):
            unread[layer.fixed_reason].append(layer.name)
    for reason, names in unread.items():
        layers = ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")
        watcher.note(
            f"channel groups are not offered for {layers}, which keep their widths and get bits only: {reason}"
        )


def _check_test_shape(data: Data) -> None:
    """The test split is measured at the very end: what can't be measured must not be searched. Reads no image file."""
    if isinstance(data.train, TensorSource) and isinstance(data.test, TensorSource):
        train, test = (_shape(source.inputs) for source in (data.train, data.test))
        if train != test:
            raise InputError(f"`data` must have test inputs of train's shape {train}, got {test} in {data.name}.")


def _shape(inputs: Inputs) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Shape of a sample; where there are several tensors, of each by its name."""
    fields = {field.name: field.shape for field in fields_of(inputs)}
    return fields.get(ONE, fields)
