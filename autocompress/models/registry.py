"""Models by spec string: the registry of networks, and the function that makes the one that a spec names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from autocompress.data.callables import call, call_with
from autocompress.errors import InputError, unknown_name
from autocompress.models.cifar_resnet import DEPTHS, CifarResNet
from autocompress.models.digits_net import DIGITS_WEIGHTS, DigitsNet
from autocompress.models.hugging_face import load_hugging_face
from autocompress.models.weights import load_weights_, special_form
from autocompress.registry import Registry


@dataclass(frozen=True)
class Model:
    """A network by name.

    Attributes:
        build: function that makes the network from the keyword arguments of `model_args`.
        weights: path of the network's own weights, or None.
        needs_weights: whether the user has to give weights, as the network has none of its own.
        takes_classes: whether `num_classes`, the width of the output, is the only argument of `build`.
    """

    build: Callable[..., nn.Module]
    weights: Path | None = None
    needs_weights: bool = False
    takes_classes: bool = False


MODELS: Registry[Model] = Registry(
    "model",
    {
        "digits": Model(DigitsNet, weights=DIGITS_WEIGHTS, takes_classes=True),
        **{
            f"resnet{depth}": Model(partial(CifarResNet, depth), needs_weights=True, takes_classes=True)
            for depth in DEPTHS
        },
    },
)

_LOADING = ("weights", "weights_backbone", "checkpoint_path", "cache_dir")  # arguments that download or unpickle
ONNX = ".onnx"  # how the path of an ONNX file ends
_CALLABLES = ("package.module:callable", "file.py:callable")


def load_model(
    spec: str,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """The network that `spec` names, in eval mode, on the CPU. Nothing is ever downloaded.

    Args:
        spec: `digits`, `resnet20`/`32`/`44`/`56`/`110` (CIFAR), `torchvision:NAME`, `timm:NAME`, `hf:FOLDER`, the path
            of an ONNX file that ends in `.onnx`, `package.module:callable` or `file.py:callable`.
        weights: path of a `.safetensors`, `.pt` or `.pth` file. `digits` has its own weights; the CIFAR
            ResNets need a file. Without one, networks of torchvision and timm get random weights (always the
            same), and callables keep the weights that they return. An ONNX file holds its own.
        model_args: keyword arguments of the model; an ONNX file has none.
        num_classes: width of the output, for every spec but callables, which take theirs from `model_args`, and ONNX
            files.

    Raises:
        InputError: an unknown name, arguments that don't fit, weights that are missing, corrupt, NaN or
            don't match, or an ONNX file that can't be translated.
    """
    arguments = dict(model_args or {})
    if is_onnx(spec):
        _check_alone(spec, weights, arguments)
    weights = _own_weights(spec, weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = _build(spec, arguments, num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` must give a torch.nn.Module, got {type(model).__name__} from {spec}.")
    if weights is not None:
        load_weights_(model, weights)
    _check_finite(model, spec)
    return model.eval()


def check_spec(spec: str) -> None:
    """Raise InputError where `spec` has no form that `load_model` knows."""
    if ":" not in spec and spec not in MODELS and not is_onnx(spec):
        raise unknown_name(
            "model", spec, [*MODELS, "torchvision:NAME", "timm:NAME", "hf:FOLDER", f"FILE{ONNX}", *_CALLABLES]
        )


def is_onnx(spec: str) -> bool:
    """Whether `spec` is the path of an ONNX file.

    >>> [is_onnx(spec) for spec in ("digits", "nets.py:small", "runs/net.onnx")]
    [False, False, True]
    """
    return spec.lower().endswith(ONNX)


def names_function(spec: str) -> bool:
    """Whether `spec` names a function of somebody's own, not a network of the registry or of a package of networks.

    >>> [names_function(spec) for spec in ("digits", "timm:resnet18", "nets.py:small", "c:/nets/small.onnx")]
    [False, False, True, False]
    """
    source, colon, _ = spec.partition(":")
    return bool(colon) and source not in _ZOOS and not is_onnx(spec)


def has_random_weights(spec: str, weights: str | Path | None) -> bool:
    """Whether `load_model` gives an untrained network for `spec` and `weights`."""
    return weights is None and spec.startswith(("torchvision:", "timm:"))


def gives_probabilities(model: nn.Module) -> bool:
    """Whether a network is known to end in a softmax, as classifiers from Keras do: outputs here are logits.

    Args:
        model: network, of which only those from ONNX files tell.
    """
    return bool(getattr(model, "gives_probabilities", False))


def _own_weights(spec: str, weights: str | Path | None) -> str | Path | None:
    """The given weights, else the model's own, else None. Raises InputError where it needs some."""
    if weights is not None or spec not in MODELS:
        return weights
    if MODELS[spec].needs_weights:
        raise InputError(f"`weights` must be given for {spec}, which has none of its own; pass --weights FILE.")
    return MODELS[spec].weights


def _check_alone(spec: str, weights: str | Path | None, arguments: Mapping[str, Any]) -> None:
    """Raise InputError where something is given beside an ONNX file that it has itself."""
    if weights is not None:
        raise InputError(f"`weights` must not be given for {spec}, which holds its own, got {weights}; leave it out.")
    if arguments:
        given = ", ".join(sorted(arguments))
        raise InputError(f"`model_args` must not be given for {spec}, an ONNX file, got {given}; leave them out.")


def _build(spec: str, arguments: dict[str, Any], num_classes: int | None) -> Any:
    """The network that `spec` names, without weights from a file; a callable may return anything."""
    if is_onnx(spec):
        from autocompress.models.onnx import load_onnx  # which imports onnx and onnxruntime

        return load_onnx(spec)
    if names_function(spec):
        return call("model", spec, arguments)
    source, colon, name = spec.partition(":")
    check_spec(spec)
    if not colon and not MODELS[spec].takes_classes:
        return call_with("model", spec, MODELS[spec].build, arguments)
    if num_classes is not None and arguments.setdefault("num_classes", num_classes) != num_classes:
        raise InputError(
            f"`num_classes` must agree with `model_args`, got {num_classes} and {arguments['num_classes']}."
        )
    if colon:
        return _ZOOS[source](name, arguments)
    unknown = set(arguments) - {"num_classes"}
    if unknown:
        raise InputError(f"`model_args` of {spec} must be num_classes only, got {', '.join(sorted(unknown))}.")
    return MODELS[spec].build(**arguments)


def _torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of torchvision of that name, with random weights: one that classifies or segments images."""
    models = _import_zoo("torchvision").models
    classifiers, segmenters = (models.list_models(module=each) for each in (models, models.segmentation))
    if name not in classifiers + segmenters:
        raise _unknown_in_zoo("torchvision", name, classifiers + segmenters)
    # Segmenters would take the weights of their backbone from the network.
    nothing: dict[str, None] = {"weights": None, **({"weights_backbone": None} if name in segmenters else {})}
    return _create("torchvision", name, partial(models.get_model, name, **nothing), arguments)


def _timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of timm of that name, with random weights."""
    timm = _import_zoo("timm")
    if not timm.is_model(name):
        raise _unknown_in_zoo("timm", name, timm.list_models())
    return _create("timm", name, partial(timm.create_model, name, pretrained=False), arguments)


_ZOOS: Mapping[str, Callable[[str, Mapping[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": load_hugging_face,
}


def _unknown_in_zoo(zoo: str, name: str, names: Sequence[str]) -> InputError:
    """The error for a name that a zoo does not have; it names the three most similar ones."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return InputError(f"`model` {zoo}:NAME must be one of its {len(names)}, such as {', '.join(near)}, got {name!r}.")


def _create(zoo: str, name: str, create: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network that `create` makes. Raises InputError where the arguments don't fit it or ask for weights."""
    loading = [name for name in arguments if name in _LOADING or name.startswith("pretrained")]
    if loading:
        raise InputError(
            f"`model_args` of {zoo}:{name} must not load weights, got {', '.join(loading)}: nothing is downloaded, and "
            "a checkpoint may hold code; pass --weights FILE."
        )
    try:
        return create(**arguments)
    except TypeError as error:
        raise InputError(f"`model_args` must fit {zoo}:{name}, got {', '.join(sorted(arguments))}: {error}.") from error


def _import_zoo(name: str) -> ModuleType:
    """The package of that name. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"`model` {name}:NAME needs the package {name}, got none; run pip install 'autocompress[vision]'."
        ) from error


def _check_finite(model: nn.Module, spec: str) -> None:
    """Raise InputError where a weight or buffer holds NaN or infinity, or is of a form that can't be looked at."""
    for name, tensor in model.state_dict().items():
        form = special_form(tensor) or (str(tensor.dtype) if str(tensor.dtype).startswith("torch.float8") else "")
        if form:
            raise InputError(f"`model` must have plain tensors such as float32, got {name} of {spec}, which is {form}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"`model` must have finite weights, got NaN or infinity in {name} of {spec}.")
