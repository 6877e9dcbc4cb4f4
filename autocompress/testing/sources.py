"""Checks of what comes in: sources of data, and networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.data.registry import DATA_SOURCES, load_data, source_of_function
from autocompress.models.registry import MODELS, Model, load_model
from autocompress.network import trace
from autocompress.network.interface import outputs_by_name
from autocompress.samples import content, fields_of, tensors_of
from autocompress.testing.contract import require

_NAME = "autocompress.testing"


def check_data(load: Callable[..., Any], place: str = "", **arguments: Any) -> None:
    """Check a source of data by loading it as a search would.

    It must have at least three training samples; inputs must be finite float32 tensors (N, …) of one shape, labels
    int64 (N,) that are indices into the class names; the same indices must give the same samples.

    Args:
        load: as for `autocompress.register_data`.
        place: place in a spec, the part behind the colon.
        **arguments: keyword arguments, as those of `--data-args`.

    Raises:
        ContractError: a rule is broken.
        InputError: what `load` returns is not of the form that `autocompress.register_data` names.
    """
    DATA_SOURCES.register(_NAME, source_of_function(_NAME, load))
    try:
        data = load_data(f"{_NAME}:{place}", data_args=arguments)
    finally:
        DATA_SOURCES.unregister(_NAME)
    inputs, labels = data.search()
    for tensor in tensors_of(inputs):
        numbers = not tensor.is_floating_point() or tensor.dtype == torch.float32
        require(numbers, "Inputs must be float32 once they are normalised, or whole numbers", tensor.dtype)
        require(bool(torch.isfinite(tensor).all()), "Inputs must be finite", "NaN or infinity")
    if labels is not None:
        count = len(data.classes)
        require(labels.dtype == torch.int64, "Labels must be int64", labels.dtype)
        within = bool(((labels >= 0) & (labels < count)).all())
        require(within, f"Labels must be from 0 to {count - 1}", f"{int(labels.min())} to {int(labels.max())}")
    again, _ = data.search()
    same = list(content(inputs)) == list(content(again))
    require(same, "The same indices must give the same samples", "others")
    calibration, _ = data.calibration()
    shapes = [[field.shape for field in fields_of(each)] for each in (inputs, calibration)]
    require(shapes[0] == shapes[1], "All samples must have one shape", shapes)


def check_model(build: Callable[..., nn.Module], inputs: Tensor, **arguments: Any) -> None:
    """Check a network by building and tracing it as a search would.

    It must be a module that takes `inputs` and returns tensors (N, …) of numbers, such as logits (N, classes), finite
    and the same again; must have the same weights whenever it is built; and must have at least one layer that can be
    labelled.

    Args:
        build: as for `autocompress.register_model`.
        inputs: (N, …) float32, at least two samples.
        **arguments: keyword arguments, as those of `--model-args`.

    Raises:
        ContractError: a rule is broken.
        InputError: the network can't be traced.
    """
    MODELS.register(_NAME, Model(build))
    try:
        model, twin = (load_model(_NAME, model_args=arguments) for _ in range(2))
    finally:
        MODELS.unregister(_NAME)
    with evaluating(model), evaluating(twin):
        outputs, again, others = (outputs_by_name(each, inputs) for each in (model, model, twin))
    for name, output in outputs.items():
        is_batch = output.ndim > 0 and len(output) == len(inputs)
        require(is_batch, f"A network must return outputs ({len(inputs)}, …)", tuple(output.shape))
        require(bool(torch.isfinite(output).all()), "Outputs must be finite", "NaN or infinity")
        same, alike = (torch.equal(output, each[name]) for each in (again, others))
        require(same, "Outputs must be the same for the same inputs in eval mode", "others")
        require(alike, "A network must have the same weights whenever it is built", "others")
    trace(model, inputs)  # raises InputError where there is no layer to label
