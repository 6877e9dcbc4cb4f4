"""Pointwise operators: arithmetic, comparisons, activations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.translation import Handler, Operation


def _simple(function: Callable[..., Any]) -> Handler:
    """The translation of an operator that is one torch function of all its inputs."""

    def handle(op: Operation) -> None:
        op.emit(function, *(op.operand(index) for index in range(len(op.node.input))))

    return handle


def _of_tensor(function: Callable[..., Any]) -> Handler:
    """The translation of an operator that is one torch function of one tensor."""

    def handle(op: Operation) -> None:
        op.emit(function, op.tensor(0))

    return handle


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _quotient(a: Any, b: Any) -> Any:
    """a / b; of integers rounded towards zero."""
    if any((isinstance(each, Tensor) and each.is_floating_point()) or isinstance(each, float) for each in (a, b)):
        return operator.truediv(a, b)
    return torch.div(_tensor(a, b), b, rounding_mode="trunc")


def _tensor(value: Any, like: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, value)


def _remainder(a: Any, b: Any) -> Any:
    return torch.remainder(a, b)


def _mod(op: Operation) -> None:
    op.emit(torch.fmod if op.attribute("fmod", 0) else _remainder, op.operand(0), op.operand(1))


def _power(a: Any, b: Any) -> Any:
    """aᵇ of a's type."""
    result = torch.pow(a, b)
    return result.to(a.dtype) if isinstance(a, Tensor) else result


def _least(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return torch.clamp(a, max=b) if isinstance(a, Tensor) else torch.clamp(b, max=a)


def _greatest(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return torch.clamp(a, min=b) if isinstance(a, Tensor) else torch.clamp(b, min=a)


def _folded(function: Callable[..., Any]) -> Handler:
    """The translation of an operator of any number of inputs, two by two."""

    def handle(op: Operation) -> None:
        *before, last = (op.operand(index) for index in range(len(op.node.input)))
        if not before:
            op.pass_on()
            return
        result = before[0]
        for each in before[1:]:
            result = op.step(function, result, each)
        op.emit(function, result, last)

    return handle


def _mean(op: Operation) -> None:
    total = op.tensor(0)
    for index in range(1, len(op.node.input)):
        total = op.step(operator.add, total, op.tensor(index))
    op.emit(operator.truediv, total, len(op.node.input))


def _where(op: Operation) -> None:
    op.emit(torch.where, op.tensor(0), op.operand(1), op.operand(2))


def _cast(op: Operation) -> None:
    op.emit(_to, op.tensor(0), dtype=_dtype(int(op.attribute("to"))))


def _cast_like(op: Operation) -> None:
    op.emit(_to_type_of, op.tensor(0), op.tensor(1))


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x of another kind of number; all floating-point numbers are of the network's own width."""
    return x if x.is_floating_point() and dtype.is_floating_point else x.to(dtype)


def _to_type_of(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype)


def _dtype(number: int) -> torch.dtype:
    """torch's type for one of ONNX's; floating-point numbers of any width are float32."""
    from onnx import TensorProto

    kinds: dict[int, torch.dtype] = {
        TensorProto.BOOL: torch.bool, TensorProto.INT8: torch.int8, TensorProto.INT16: torch.int16,
        TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64, TensorProto.UINT8: torch.uint8,
        TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float32, TensorProto.BFLOAT16: torch.float32,
        TensorProto.DOUBLE: torch.float32,
    }  # fmt: skip
    if number not in kinds:
        raise Untranslatable(f"the type {TensorProto.DataType.Name(number)}")
    return kinds[number]


def _clip(op: Operation) -> None:
    bounds = [
        op.attribute(name, op.operand(index) if op.has(index) else None) for index, name in ((1, "min"), (2, "max"))
    ]
    if bounds == [None, None]:
        op.emit(torch.clone, op.tensor(0))
        return
    op.emit(torch.clamp, op.tensor(0), *bounds)


# --- activations -----------------------------------------------------------------------------------------------------


def _elu(op: Operation) -> None:
    op.emit(F.elu, op.tensor(0), float(op.attribute("alpha", 1.0)))


def _celu(op: Operation) -> None:
    op.emit(F.celu, op.tensor(0), float(op.attribute("alpha", 1.0)))


def _selu(op: Operation) -> None:
    alpha, gamma = op.attribute("alpha", 1.67326319217681884765625), op.attribute("gamma", 1.05070102214813232421875)
    op.emit(_scaled_elu, op.tensor(0), alpha=float(alpha), gamma=float(gamma))


def _scaled_elu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * F.elu(x, alpha)


def _leaky_relu(op: Operation) -> None:
    op.emit(F.leaky_relu, op.tensor(0), float(op.attribute("alpha", 0.01)))


def _thresholded_relu(op: Operation) -> None:
    op.emit(F.threshold, op.tensor(0), float(op.attribute("alpha", 1.0)), 0.0)


def _prelu(op: Operation) -> None:
    """PRelu: torch's own module where there is one slope for each channel, or one in all."""
    slope = op.constant(1)
    shape = tuple(slope.tensor.shape) if slope is not None else ()
    per_channel = op.rank(0) >= 2 and len(shape) == op.rank(0) - 1 and shape[0] == slope_size(shape)
    if slope is None or not (per_channel or slope.tensor.numel() == 1):
        op.emit(_sloped, op.tensor(0), op.tensor(1))
        return
    values = slope.tensor.flatten()

    def make() -> nn.Module:
        module = nn.PReLU(len(values))
        module.weight = op.translation.parameter((slope.name, "flat"), values)
        return module

    op.emit(op.layer(slope, ("prelu",), make), op.tensor(0))


def slope_size(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    return int(torch.Size(shape).numel())


def _sloped(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _hard_sigmoid(op: Operation) -> None:
    alpha, beta = float(op.attribute("alpha", 0.2)), float(op.attribute("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        op.emit(F.hardsigmoid, op.tensor(0))
    else:
        op.emit(_clamped_line, op.tensor(0), alpha=alpha, beta=beta)


def _clamped_line(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _gelu(op: Operation) -> None:
    op.emit(F.gelu, op.tensor(0), approximate=op.attribute("approximate", "none"))


def _swish(op: Operation) -> None:
    alpha = float(op.attribute("alpha", 1.0))
    if alpha == 1.0:
        op.emit(F.silu, op.tensor(0))
    else:
        op.emit(_scaled_swish, op.tensor(0), alpha=alpha)


def _scaled_swish(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _softmax(function: Callable[..., Any]) -> Handler:
    """Softmax along an axis; before opset 13, along that axis and all behind it as one."""

    def handle(op: Operation) -> None:
        if op.opset >= 13:
            op.emit(function, op.tensor(0), dim=op.axis(0, -1))
            return
        axis = op.axis(0, 1)
        if axis == op.rank(0) - 1:
            op.emit(function, op.tensor(0), dim=axis)
        else:
            op.emit(_over_rest, op.tensor(0), function=function, axis=axis)

    return handle


def _over_rest(x: Tensor, function: Callable[..., Tensor], axis: int) -> Tensor:
    return function(x.flatten(axis), dim=axis).reshape(x.shape)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log,
    "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sign": torch.sign, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "IsNaN": torch.isnan,
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
    "Softplus": _softplus, "Softsign": F.softsign,
}  # fmt: skip
POINTWISE: dict[str, Handler] = {
    "Add": _simple(operator.add), "Sub": _simple(operator.sub), "Mul": _simple(operator.mul),
    "Div": _simple(_quotient), "Pow": _simple(_power), "Mod": _mod, "Sum": _folded(operator.add), "Mean": _mean,
    "Min": _folded(_least), "Max": _folded(_greatest),
    "Equal": _simple(operator.eq), "Greater": _simple(operator.gt), "Less": _simple(operator.lt),
    "GreaterOrEqual": _simple(operator.ge), "LessOrEqual": _simple(operator.le),
    "And": _simple(operator.and_), "Or": _simple(operator.or_), "Xor": _simple(operator.xor),
    "Not": _of_tensor(torch.logical_not), "Where": _where, "Cast": _cast, "CastLike": _cast_like, "Clip": _clip,
    **{name: _of_tensor(function) for name, function in _UNARY.items()},
    "Elu": _elu, "Celu": _celu, "Selu": _selu, "LeakyRelu": _leaky_relu, "ThresholdedRelu": _thresholded_relu,
    "PRelu": _prelu, "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "Swish": _swish,
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
}  # fmt: skip
