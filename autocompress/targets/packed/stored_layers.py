"""One layer's tensors in a packed file: checked when written and when read."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.execute.compressed import LayerWeights
from autocompress.menus.activations import ActivationRange
from autocompress.menus.rounding import code_range
from autocompress.plan import FIRST, SECOND, Label, Plan
from autocompress.targets.packed.bits import FLOATS, decode_weight, encode_weight

_PARTS = ("weight", "weight_scale", "bias", "input_range")


def layer_tensors(name: str, layer: LayerWeights, label: Label, granularity: str) -> dict[str, Tensor]:
    """A layer's tensors as a file holds them, by tensor name.

    Args:
        name: name of the layer.
        layer: finished layer.
        label: label that the layer was made by.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

    Raises:
        InputError: the layer is not what its label says, or breaks a rule of `check_layer`.
    """
    try:
        _check_label(layer, label, granularity)
        check_layer(layer)
        tensors = {"weight": encode_weight(layer, granularity)}
    except InputError as error:
        raise InputError(f"`layers` can't be packed at {name}: {error}.") from None
    if layer.scale is not None:
        tensors["weight_scale"] = layer.scale
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    if layer.input_range is not None:
        tensors["input_range"] = torch.tensor([layer.input_range.scale, layer.input_range.zero], dtype=torch.float32)
    return {f"{name}.{part}": tensor.detach().clone().contiguous() for part, tensor in tensors.items()}


def own_sparsity(label: Label, granularity: str) -> float:
    """The fraction of single weights that a label removes: 0 with `channel`, where whole channels leave the shape.

    Args:
        label: label of the layer.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.
    """
    return 0.0 if granularity == "channel" else label.sparsity


def _check_label(layer: LayerWeights, label: Label, granularity: str) -> None:
    range_bits = 32 if layer.input_range is None else layer.input_range.bits
    claimed = (own_sparsity(label, granularity), label.weight_bits, label.activation_bits)
    if (layer.sparsity, layer.bits, range_bits) != claimed:
        raise InputError(f"it must be as its label says, {label}, got {(layer.sparsity, layer.bits, range_bits)}")
    if layer.input_range is not None and not _is_float32(layer.input_range.scale):
        raise InputError(f"its input's scale must be a float32 number, got {layer.input_range.scale!r}")


def _is_float32(value: float) -> bool:
    return float(torch.tensor(value, dtype=torch.float32)) == value


def check_layer(layer: LayerWeights) -> None:
    """Refuse a layer whose codes, scales, bias or range are not what its bits say.

    Args:
        layer: layer to be checked.

    Raises:
        InputError: the layer breaks a rule; the message is the end of a sentence: "it must …, got …".
    """
    rows = len(layer.values)
    if layer.bits in FLOATS:
        if layer.scale is not None or layer.values.dtype != torch.float32:
            raise InputError(f"it must be float32 without a scale at {layer.bits} bits, got {layer.values.dtype}")
        if not torch.equal(layer.values.to(FLOATS[layer.bits]).float(), layer.values):
            raise InputError(f"its weights must be {FLOATS[layer.bits]} numbers, got others")
    else:
        _check_codes(layer)
    for what, tensor in (("scale", layer.scale), ("bias", layer.bias)):
        if tensor is not None and (tensor.shape != (rows,) or tensor.dtype != torch.float32):
            raise InputError(f"its {what} must be {rows} float32 numbers, got {list(tensor.shape)} {tensor.dtype}")
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise InputError(f"its {what} must be finite, got other numbers")
    if layer.scale is not None and not bool((layer.scale > 0).all()):
        raise InputError(f"its scale must be > 0, got {float(layer.scale.min())}")
    if layer.input_range is not None:
        _check_range(layer.input_range)


def _check_codes(layer: LayerWeights) -> None:
    low, high = code_range(layer.bits)
    if layer.scale is None or layer.values.dtype != torch.int8:
        raise InputError(f"it must be int8 codes with a scale at {layer.bits} bits, got {layer.values.dtype}")
    if layer.values.numel() and not low <= int(layer.values.min()) <= int(layer.values.max()) <= high:
        raise InputError(
            f"its codes must be {low} to {high}, got {int(layer.values.min())} to {int(layer.values.max())}"
        )
    if layer.bits == 1 and layer.sparsity == 0 and bool((layer.values == 0).any()):
        raise InputError("its codes must be -1 and 1, got 0")


def _check_range(found: ActivationRange) -> None:
    if not (math.isfinite(found.scale) and found.scale > 0):
        raise InputError(f"its input's scale must be finite and > 0, got {found.scale}")
    if not 0 <= found.zero < 2**found.bits:
        raise InputError(f"its input's zero point must be 0 to {2**found.bits - 1}, got {found.zero}")


def take_layer_(
    tensors: dict[str, Tensor], name: str, label: Label, shape: tuple[int, ...], granularity: str
) -> LayerWeights:
    """A layer from the tensors of a file.

    Args:
        tensors: tensors of the file by name; the layer's are taken out.
        name: name of the layer.
        label: label of the layer.
        shape: shape of the layer's weight.
        granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

    Raises:
        InputError: a tensor is missing, or is not what the label and the shape say.
    """
    own = {part: tensors.pop(f"{name}.{part}", None) for part in _PARTS}
    weight = own["weight"]
    if weight is None:
        raise InputError(f"The file must hold {name}.weight, got nothing of that name.")
    if not all(type(bits) is int for bits in (label.weight_bits, label.activation_bits)):
        raise InputError(f"The label of layer {name} must have whole numbers of bits, got {label}.")
    sparsity = own_sparsity(label, granularity)
    try:
        layer = LayerWeights(
            values=decode_weight(weight, shape, label.weight_bits, sparsity, granularity),
            scale=own["weight_scale"],
            bias=own["bias"],
            bits=label.weight_bits,
            sparsity=sparsity,
            input_range=_range(own["input_range"], label.activation_bits),
        )
        check_layer(layer)
    except InputError as error:
        raise InputError(f"The weights of {name} are damaged: {error}.") from None
    return layer


def check_ranks(layers: Mapping[str, LayerWeights], plan: Plan) -> None:
    """Refuse factors of another rank than the plan says.

    Args:
        layers: finished layers by name.
        plan: labels that the network was made by.

    Raises:
        InputError: a first factor has not `rank` rows, a second one not `rank` columns, or single weights are removed.
    """
    for name, label in plan.labels.items():
        if not label.rank:
            continue
        if plan.granularity != "channel":
            raise InputError(
                f"The rank of layer {name} must be 0 with granularity {plan.granularity}, got {label.rank}."
            )
        shapes = [list(layers[f"{name}.{part}"].values.shape) for part in (FIRST, SECOND)]
        if shapes[0][:1] != [label.rank] or shapes[1][1:2] != [label.rank]:
            raise InputError(
                f"The factors of layer {name} must have rank {label.rank}, got {shapes[0]} and {shapes[1]}."
            )


def _range(stored: Tensor | None, bits: int) -> ActivationRange | None:
    """The range of an input from its (2,) tensor; None at 32 bits, where there must be none.

    >>> _range(torch.tensor([0.5, 3.0]), 4)  # codes 0 … 15 stand for -1.5 … 6.0 in steps of 0.5
    ActivationRange(bits=4, scale=0.5, zero=3, noise=nan)
    """
    if (stored is None) != (bits == 32):
        raise InputError(f"it must {'not ' if bits == 32 else ''}have a range of its input at {bits} bits")
    if stored is None:
        return None
    if stored.shape != (2,) or stored.dtype != torch.float32:
        raise InputError(f"its input's range must be 2 float32 numbers, got {list(stored.shape)} {stored.dtype}")
    scale, zero = stored.tolist()
    if not zero.is_integer():
        raise InputError(f"its input's zero point must be a whole number, got {zero}")
    return ActivationRange(bits, scale, int(zero), math.nan)
