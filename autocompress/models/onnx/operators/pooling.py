"""Pools and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.operators.padding import pads_of, with_pads
from autocompress.models.onnx.translation import Handler, Operation

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def _window(op: Operation) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and dilation of a pool."""
    kernel = list(op.attribute("kernel_shape"))
    if len(kernel) not in _MAX:
        raise Untranslatable(f"{len(kernel)} axes in space, where 1 to 3 are known")
    return (
        kernel,
        list(op.attribute("strides") or [1] * len(kernel)),
        list(op.attribute("dilations") or [1] * len(kernel)),
    )


def _max_pool(op: Operation) -> None:
    kernel, stride, dilation = _window(op)
    if op.has_output(1):
        raise Untranslatable("the indices as its second output")
    pads = pads_of(op, kernel, stride, dilation)
    x, padding = with_pads(op, op.tensor(0), pads, float("-inf"), at_most=[size // 2 for size in kernel])
    ceil = bool(op.attribute("ceil_mode", 0))
    op.emit(_MAX[len(kernel)], x, kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil)


def _average_pool(op: Operation) -> None:
    kernel, stride, dilation = _window(op)
    if any(each != 1 for each in dilation):
        raise Untranslatable("dilations")
    axes, ceil, counts_pads = (
        len(kernel),
        bool(op.attribute("ceil_mode", 0)),
        bool(op.attribute("count_include_pad", 0)),
    )
    pads = pads_of(op, kernel, stride, dilation)
    settings: dict[str, Any] = {"stride": stride, "ceil_mode": ceil}
    most = [size // 2 for size in kernel]
    x, padding = with_pads(op, op.tensor(0), pads, at_most=most)
    if counts_pads or x == op.tensor(0):
        op.emit(_AVERAGE[axes], x, kernel, padding=padding, count_include_pad=counts_pads, **settings)
    else:  # the mean of the positions that are no padding: the mean of all, over the share of those
        share, _ = with_pads(op, op.step(_ones_like, op.tensor(0)), pads, at_most=most)
        total = op.step(_AVERAGE[axes], x, kernel, **settings)
        op.emit(torch.div, total, op.step(_AVERAGE[axes], share, kernel, **settings))


def _ones_like(x: Tensor) -> Tensor:
    """(1, 1, …) ones in the space of x."""
    return x.new_ones((1, 1, *x.shape[2:]))


def _lp_pool(op: Operation) -> None:
    kernel, stride, dilation = _window(op)
    p, pads = int(op.attribute("p", 2)), pads_of(op, kernel, stride, dilation)
    if any(each != 1 for each in dilation) or op.attribute("ceil_mode", 0):
        raise Untranslatable("dilations or ceil_mode")
    x, padding = with_pads(op, op.tensor(0), pads)
    powers = op.step(_absolute_power, x, p=p)
    mean = op.step(_AVERAGE[len(kernel)], powers, kernel, stride=stride, padding=padding)
    op.emit(_root_of_mean, mean, p=p, count=int(torch.Size(kernel).numel()))


def _absolute_power(x: Tensor, p: int) -> Tensor:
    return x.abs() ** p


def _root_of_mean(mean: Tensor, p: int, count: int) -> Tensor:
    return (mean * count) ** (1 / p)


def _global_average(op: Operation) -> None:
    axes = op.rank(0) - 2
    if axes in _ADAPTIVE:
        op.emit(_ADAPTIVE[axes], op.tensor(0), (1,) * axes)
    else:
        op.emit(torch.mean, op.tensor(0), dim=list(range(2, op.rank(0))), keepdim=True)


def _global_max(op: Operation) -> None:
    op.emit(torch.amax, op.tensor(0), dim=list(range(2, op.rank(0))), keepdim=True)


# --- reductions ------------------------------------------------------------------------------------------------------


def _reduce(function: Callable[..., Any]) -> Handler:
    """The translation of a reduction; axes are an attribute or an input, all of them where there are none."""

    def handle(op: Operation) -> None:
        axes = op.integers("axes", 1)
        if not axes and op.attribute("noop_with_empty_axes", 0):
            op.emit(torch.clone, op.tensor(0))
            return
        dims = [axis % op.rank(0) for axis in axes] if axes else list(range(op.rank(0)))
        op.emit(function, op.tensor(0), dim=dims, keepdim=bool(op.attribute("keepdims", 1)))

    return handle


def _sum(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.sum(x, dim=dim, keepdim=keepdim, dtype=x.dtype)


def _mean(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.mean(x, dim=dim, keepdim=keepdim)


def _product(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(dim, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keepdim, dtype=x.dtype)
    return x


def _l1(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.sum(torch.abs(x), dim=dim, keepdim=keepdim)


def _l2(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    return norm


def _sum_of_squares(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.sum(torch.square(x), dim=dim, keepdim=keepdim)


def _log_of_sum(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.log(torch.sum(x, dim=dim, keepdim=keepdim))


def _extreme(function: Callable[..., Tensor]) -> Handler:
    """ArgMax and ArgMin."""

    def handle(op: Operation) -> None:
        if op.attribute("select_last_index", 0):
            raise Untranslatable("select_last_index 1")
        op.emit(function, op.tensor(0), dim=op.axis(0, 0), keepdim=bool(op.attribute("keepdims", 1)))

    return handle


def _top_k(op: Operation) -> None:
    count = [op.attribute("k")] if "k" in op.attributes else op.numbers(1)
    op.emit(
        _largest, op.tensor(0), count, axis=op.axis(0, -1), largest=bool(op.attribute("largest", 1)),
        is_sorted=bool(op.attribute("sorted", 1)),
    )  # fmt: skip


def _largest(x: Tensor, count: list[int], axis: int, largest: bool, is_sorted: bool) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, count[0], dim=axis, largest=largest, sorted=is_sorted)
    return values, indices


def _cumulative_sum(op: Operation) -> None:
    axis = int(op.required(1, "an axis").tensor.item()) % op.rank(0)
    op.emit(
        _summed_up, op.tensor(0), axis=axis, exclusive=bool(op.attribute("exclusive", 0)),
        reverse=bool(op.attribute("reverse", 0)),
    )  # fmt: skip


def _summed_up(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    given = x.flip(axis) if reverse else x
    total = given.cumsum(axis)
    total = total - given if exclusive else total
    return total.flip(axis) if reverse else total


POOLING: dict[str, Handler] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "ReduceMean": _reduce(_mean),
    "ReduceSum": _reduce(_sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(_l1),
    "ReduceL2": _reduce(_l2),
    "ReduceSumSquare": _reduce(_sum_of_squares),
    "ReduceLogSum": _reduce(_log_of_sum),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "TopK": _top_k,
    "CumSum": _cumulative_sum,
}
