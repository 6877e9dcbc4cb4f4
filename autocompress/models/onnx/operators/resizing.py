"""Resize and Upsample: torch's own interpolation where it computes the same, else one axis after the other."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.translation import Handler, Operation

_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "cubic": "cubic"}
_TORCH_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Resampling:
    """How values between positions are found.

    Attributes:
        mode: `nearest`, `linear` or `cubic`.
        coordinates: ONNX's `coordinate_transformation_mode`.
        rounding: ONNX's `nearest_mode`.
        cubic: coefficient of cubic interpolation.
        antialias: whether a smaller result is smoothed.
    """

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    antialias: bool


def _resize(op: Operation) -> None:
    mode = op.attribute("mode", "nearest")
    if mode not in _MODES:
        raise Untranslatable(f"mode {mode}")
    is_first_version = op.opset < 11  # Upsample, and Resize of opset 10
    coordinates = "asymmetric" if is_first_version else op.attribute("coordinate_transformation_mode", "half_pixel")
    how = Resampling(
        _MODES[mode],
        coordinates,
        "floor" if is_first_version else op.attribute("nearest_mode", "round_prefer_floor"),
        float(op.attribute("cubic_coeff_a", -0.75)),
        bool(op.attribute("antialias", 0)),
    )
    _check(op, how)
    scales_at, sizes_at = (1, 9) if is_first_version else (2, 3)
    scales = [float(each) for each in op.attributes["scales"]] if "scales" in op.attributes else None
    if scales is None and op.has(scales_at) and op.shapes(scales_at)[0] != (0,):
        scales = op.numbers(scales_at)
    axes = op.attribute("axes") or range(op.rank(0))
    axes = tuple(axis % op.rank(0) for axis in axes)
    if scales is not None:
        op.emit(resampled, op.tensor(0), scales, None, axes=axes, how=how)
    elif op.has(sizes_at):
        op.emit(resampled, op.tensor(0), None, op.numbers(sizes_at), axes=_resized(op, sizes_at, axes), how=how)
    else:
        raise Untranslatable("neither scales nor sizes")


def _resized(op: Operation, index: int, axes: Sequence[int]) -> tuple[int | None, ...]:
    """The axes, and None for each that stays as it is: a file that says so by its size says it for one batch only."""
    numbers = op.numbers(index)
    trials = [numbers] if isinstance(numbers, list) else op.value(index).trials
    pairs = list(zip(trials, op.shapes(0), strict=False))  # sizes that are fixed are those of the first trial
    return tuple(
        None if all(sizes[place] == shape[axis] for sizes, shape in pairs) else axis for place, axis in enumerate(axes)
    )


def _check(op: Operation, how: Resampling) -> None:
    known = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn")
    if how.coordinates not in known:
        raise Untranslatable(f"coordinate_transformation_mode {how.coordinates}")
    if op.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Untranslatable("keep_aspect_ratio_policy")
    if op.attribute("exclude_outside", 0):
        raise Untranslatable("exclude_outside 1")


def resampled(
    x: Tensor, scales: Sequence[float] | None, sizes: Sequence[int] | None, axes: Sequence[int | None], how: Resampling
) -> Tensor:
    """x of another size.

    Args:
        x: (N, C, …) tensor.
        scales: factor of each of the axes, or None.
        sizes: new size of each of the axes, where there are no scales.
        axes: axes that scales and sizes are about; None: one that stays.
        how: how values between positions are found.
    """
    wanted: dict[int, tuple[int, float]] = {}  # by axis: its new size, and that over the old one
    for place, axis in enumerate(axes):
        if axis is None or (scales is not None and scales[place] == 1):
            continue
        if scales is not None:
            wanted[axis] = (math.floor(x.shape[axis] * scales[place]), float(scales[place]))
        elif sizes is not None:
            wanted[axis] = (sizes[place], sizes[place] / x.shape[axis])
    if not wanted:
        return x.clone()
    if min(wanted) > 1 and (how.mode == "cubic" or how.antialias or _is_torchs(x, wanted, how)):
        return _by_torch(x, wanted, how)
    if how.mode == "cubic" or how.antialias:
        raise RuntimeError("cubic or antialiased resizing of channels")
    return functools.reduce(lambda y, axis: _along(y, axis, *wanted[axis], how), sorted(wanted), x)


def _is_torchs(x: Tensor, wanted: dict[int, tuple[int, float]], how: Resampling) -> bool:
    """Whether torch's own interpolation gives the same numbers."""
    space = x.ndim - 2
    if how.mode == "nearest":
        whole = all(scale == int(scale) for _, scale in wanted.values())
        first = how.coordinates == "asymmetric" and how.rounding == "floor"
        return space in (1, 2, 3) and whole and (first or (how.coordinates == "half_pixel" and "round" in how.rounding))
    exact = all(size == x.shape[axis] * scale for axis, (size, scale) in wanted.items())
    return (
        space in _TORCH_LINEAR
        and exact
        and how.coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners")
        and all(size > 1 for size, _ in wanted.values())
    )


def _by_torch(x: Tensor, wanted: dict[int, tuple[int, float]], how: Resampling) -> Tensor:
    space = x.ndim - 2
    size = [wanted[axis][0] if axis in wanted else x.shape[axis] for axis in range(2, x.ndim)]
    if how.mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    corners = how.coordinates == "align_corners"
    if how.mode == "cubic":
        if how.cubic != -0.75 or space != 2 or how.coordinates == "asymmetric":
            raise RuntimeError("cubic interpolation with other coefficients or coordinates than torch's")
        return F.interpolate(x, size=size, mode="bicubic", align_corners=corners, antialias=how.antialias)
    mode = _TORCH_LINEAR[space]
    return F.interpolate(x, size=size, mode=mode, align_corners=corners, antialias=how.antialias)


def _along(x: Tensor, axis: int, size: int, scale: float, how: Resampling) -> Tensor:
    """x of another size along one axis."""
    length = x.shape[axis]
    at = _positions(length, size, scale, how.coordinates)  # (size,)
    if how.mode == "nearest":
        return x.index_select(axis, _rounded(at, how.rounding).clamp(0, length - 1).to(x.device))
    at = at.clamp(0, length - 1)
    low = at.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    share = (at - low).to(x.dtype).to(x.device).reshape([-1 if each == axis else 1 for each in range(x.ndim)])
    return x.index_select(axis, low.to(x.device)) * (1 - share) + x.index_select(axis, high.to(x.device)) * share


def _positions(length: int, size: int, scale: float, coordinates: str) -> Tensor:
    """(size,) positions in the input of every position of the result."""
    index = torch.arange(size, dtype=torch.float64)
    if coordinates == "asymmetric":
        return index / scale
    if coordinates == "align_corners":
        return index * ((length - 1) / (size - 1)) if size > 1 else index * 0
    if coordinates == "tf_half_pixel_for_nn":
        return (index + 0.5) / scale
    if coordinates == "pytorch_half_pixel" and size == 1:
        return index * 0
    return (index + 0.5) / scale - 0.5


def _rounded(at: Tensor, rounding: str) -> Tensor:
    rules: dict[str, Any] = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_ceil": _half_up,
        "round_prefer_floor": _half_down,
    }
    rounded: Tensor = rules[rounding](at)
    return rounded.long()


def _half_up(at: Tensor) -> Tensor:
    return torch.floor(at + 0.5)


def _half_down(at: Tensor) -> Tensor:
    return torch.ceil(at - 0.5)


RESIZING: dict[str, Handler] = {"Resize": _resize, "Upsample": _resize}
