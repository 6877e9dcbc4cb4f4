"""The second step of training a policy: the zoo, small networks that are trained from scratch and kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.checked_tensors import load_checked, save_checked
from autocompress.data import Data
from autocompress.data.pixels import Normalization
from autocompress.data.sources import TensorSource
from autocompress.data.training import TrainingBatches, trained_on
from autocompress.errors import InputError
from autocompress.evaluation import DTYPES
from autocompress.files import writing
from autocompress.models.registry import load_model
from autocompress.models.weights import load_weights_
from autocompress.policy_training.recipe import ZooNetwork
from autocompress.samples import Inputs, tensors_of

_CLIP = 2.0  # largest norm of the gradient: MLP-Mixers need a bound
_SMOOTHING = 0.1  # label smoothing
_WARM_UP = 0.2  # share of all steps in which the learning rate rises
_VERSION = 1  # version of `train_`: weights that another version trained are trained anew


def weights_file(network: ZooNetwork, data: Data, folder: Path) -> Path:
    """Path of a network's weights; its name holds a digest of everything that the weights depend on.

    Args:
        network: network of the zoo.
        data: data that the network is trained on.
        folder: folder of all weights of the zoo.
    """
    recipe = {**network.model_dump(mode="json", exclude={"family"}), "name": "", "data": data.fingerprint}
    digest = hashlib.sha256(json.dumps([_VERSION, recipe], sort_keys=True).encode()).hexdigest()
    return folder / f"{network.name}-{digest[:12]}.safetensors"


def trained(
    network: ZooNetwork, data: Data, folder: Path, number_formats: MutableMapping[str, Any] | None = None
) -> nn.Module:
    """The network with its weights, in eval mode; it is trained if `folder` holds no weights whose checksum matches.

    Args:
        network: network of the zoo.
        data: data that the network is trained on.
        folder: folder of all weights of the zoo; created if it does not exist.
        number_formats: dtypes that were picked by measurement, by name. If the network's is missing, it is
            measured and added. Default: an empty mapping.

    Raises:
        InputError: the model or its arguments are wrong, or the data has no labels.
    """
    if not data.classes:
        raise InputError(f"`data` must have labels to train {network.name}, got {data.name} without.")
    file = weights_file(network, data, folder)
    model = load_model(network.model, None, network.model_args)
    if load_checked(file, file.stem) is not None:
        load_weights_(model, file)
        with suppress(OSError):  # another user's
            os.utime(file)  # the cache keeps what was used last
        return model.eval()
    train_(model, data, network, number_formats=number_formats)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_checked(file, model.state_dict(), file.stem)
    return model.eval()


def train_(
    model: nn.Module,
    data: Data,
    network: ZooNetwork,
    batch_size: int = 128,
    number_formats: MutableMapping[str, Any] | None = None,
) -> None:
    """Train a network in place, with one cycle of the learning rate (Smith & Topin 2019).

    Args:
        model: model with its initial weights.
        data: data with labels.
        network: settings of the training.
        batch_size: number of samples in a step.
        number_formats: dtypes that were picked by measurement, by name. If the network's is missing, it is
            measured and added. Default: an empty mapping.
    """
    batches = TrainingBatches(data, trained_on(data), batch_size, network.augmentation, network.seed)
    total = max(1, round(network.epochs * batches.steps_per_epoch))
    optimizer = _optimizer(model, network.learning_rate)
    warm_up = _WARM_UP if total * _WARM_UP > 1 else 0.0  # in one step the learning rate can't rise
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.learning_rate, total, pct_start=warm_up)
    number_formats, pick = {} if number_formats is None else number_formats, f"training {network.name}"
    if pick not in number_formats:
        number_formats[pick] = _fastest_dtype(model, _images(next(iter(batches.steps(0, 1)))[0]))
    dtype = DTYPES[number_formats[pick]]
    model.train()
    for inputs, labels in batches.steps(0, total):
        assert labels is not None, "the data has classes"
        loss = F.cross_entropy(_forward(model, _images(inputs), dtype), labels, label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
    model.eval()


def in_memory(data: Data) -> Data:
    """The same data with all training inputs decoded: small networks train faster than images are decoded."""
    parts = [data.train.load(piece.tolist()) for piece in torch.arange(len(data.train)).split(4096)]
    labels = torch.cat([part for _, part in parts if part is not None]) if data.classes else None
    source = TensorSource(torch.cat([_images(part) for part, _ in parts]), labels, Normalization(None, None))
    return replace(data, train=source)


def _images(inputs: Inputs) -> Tensor:
    """The only tensor of the inputs: the zoo's networks take one."""
    (tensor,) = tensors_of(inputs)
    return tensor


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum for networks with batch norm, AdamW for all others."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.05)


def _forward(model: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits (N, K) in float32 for inputs (N, ...), computed in `dtype`."""
    inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits: Tensor = model(inputs)
    return logits.float()


def _fastest_dtype(model: nn.Module, inputs: Tensor) -> str:
    """The dtype in which training is faster: depthwise convolutions are slower in bfloat16."""
    seconds = {}
    for dtype in ("float32", "bfloat16"):
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            _forward(model, inputs, DTYPES[dtype]).sum().backward()  # type: ignore[no-untyped-call]
            seconds[dtype] = time.perf_counter() - started
    model.zero_grad()
    return min(seconds, key=lambda dtype: seconds[dtype])
