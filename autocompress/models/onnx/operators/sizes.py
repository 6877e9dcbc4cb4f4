"""Arithmetic on sizes: what exporters compute with `Shape`, as Python numbers, so that no size is frozen.

Values made of sizes are numbers or flat lists of numbers. They stay so as long as these operators compute them; any
other operator gets them as a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.network import Read
from autocompress.models.onnx.translation import Handler, Operation


def shape(op: Operation) -> None:
    """Shape, of a tensor: a list of its sizes. How many sizes there are in a list is known, so that is a constant."""
    if op.is_host(0):
        op.make_constant(torch.tensor(op.shapes(0)[0], dtype=torch.int64))
        return
    op.emit(_sizes, op.tensor(0), op.attribute("start", 0), op.attribute("end"))


def size(op: Operation) -> None:
    """Size, of a tensor: the number of its elements."""
    op.emit(_elements, op.tensor(0))


def _sizes(x: Tensor, start: int, end: int | None) -> list[int]:
    return list(x.shape)[start:end]


def _elements(x: Tensor) -> int:
    return math.prod(x.shape)


def _each(function: Callable[..., Any], *values: Any) -> Any:
    """A function of numbers, applied to numbers and lists, which broadcast."""
    lengths = {len(value) for value in values if isinstance(value, list)} - {1}
    if not any(isinstance(value, list) for value in values):
        return function(*values)
    length = max(lengths, default=1)
    spread = [value * length if isinstance(value, list) and len(value) == 1 else value for value in values]
    columns = [value if isinstance(value, list) else [value] * length for value in spread]
    return [function(*row) for row in zip(*columns, strict=True)]


def _divide(a: Any, b: Any) -> Any:
    """Integers round towards zero; sizes are not negative, so that is down."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return a // b if _is_positive(a) and b > 0 else int(a / b)


def _is_positive(a: Any) -> bool:
    return not isinstance(a, int) or a >= 0


def _where(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _power(a: Any, b: Any) -> Any:
    return a**b


def _floor(a: Any) -> float:
    return float(math.floor(a))


def _ceil(a: Any) -> float:
    return float(math.ceil(a))


def _not(a: Any) -> bool:
    return not a


def _and(a: Any, b: Any) -> bool:
    return bool(a and b)


def _or(a: Any, b: Any) -> bool:
    return bool(a or b)


_POINTWISE: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": _divide, "Mod": operator.mod, "Pow": _power,
    "Neg": operator.neg, "Abs": abs, "Sqrt": math.sqrt, "Min": min, "Max": max,
    "Equal": operator.eq, "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le, "Floor": _floor, "Ceil": _ceil, "Where": _where, "Not": _not, "And": _and, "Or": _or,
}  # fmt: skip


def _join(*parts: Any) -> list[Any]:
    return [each for part in parts for each in (part if isinstance(part, list) else [part])]


def _pick(values: Any, indices: Any) -> Any:
    if isinstance(indices, list):
        return [values[index] for index in indices]
    return values[indices]


def _part(values: list[Any], starts: Any, ends: Any, steps: Any) -> list[Any]:
    return values[slice(_number(starts), _number(ends), _number(steps))]


def _number(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _product(values: Any) -> Any:
    return math.prod(values)


def _keep(function: Callable[[Any], Any], values: Any) -> list[Any]:
    return [function(values)]


def _integer(value: Any) -> Any:
    return _each(_to_int, value)


def _to_int(value: Any) -> Any:
    return int(value) if isinstance(value, float | bool) else value


def _to_float(value: Any) -> float:
    return float(value)


def _pointwise(op: Operation) -> None:
    if op.node.op_type in ("Min", "Max") and len(op.node.input) == 1:
        op.pass_on()
        return
    op.emit(_each, _POINTWISE[op.node.op_type], *_given(op))


def _given(op: Operation) -> list[Any]:
    """All inputs as numbers."""
    return [op.numbers(index) for index in range(len(op.node.input)) if op.has(index)]


def _cast(op: Operation) -> None:
    from onnx import TensorProto

    kind = op.attribute("to")
    if kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
        op.emit(_each, _to_float, op.numbers(0))
    elif kind == TensorProto.BOOL:
        op.emit(_each, bool, op.numbers(0))
    else:
        op.emit(_integer, op.numbers(0))


def _slice(op: Operation) -> None:
    if "starts" in op.attributes:
        op.emit(_part, op.numbers(0), list(op.attribute("starts")), list(op.attribute("ends")), 1)
        return
    steps = op.numbers(4) if op.has(4) else 1
    op.emit(_part, op.numbers(0), op.numbers(1), op.numbers(2), steps)


def _squeeze(op: Operation) -> None:
    if op.rank(0):
        op.emit(_number, op.numbers(0))
    else:
        op.pass_on()


def _unsqueeze(op: Operation) -> None:
    if op.rank(0):
        raise Untranslatable("sizes in a matrix")
    op.emit(_as_list, op.numbers(0))


def _reduce(op: Operation) -> None:
    functions: dict[str, Callable[..., Any]] = {
        "ReduceProd": _product,
        "ReduceSum": sum,
        "ReduceMax": max,
        "ReduceMin": min,
    }
    function = functions[op.node.op_type]
    if op.attribute("keepdims", 1):
        op.emit(_keep, function, op.numbers(0))
    else:
        op.emit(function, op.numbers(0))


def _reshape(op: Operation) -> None:
    target = op.numbers(1)
    if isinstance(target, Read) or len(target) > 1:
        raise Untranslatable("sizes in a matrix")
    op.emit(_as_list if target else _number, op.numbers(0))


def _gather(op: Operation) -> None:
    op.emit(_pick, op.numbers(0), op.numbers(1))


def _concat(op: Operation) -> None:
    op.emit(_join, *_given(op))


def _identity(op: Operation) -> None:
    op.pass_on()


HOST: dict[str, Handler] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    "Cast": _cast,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Identity": _identity,
    "Gather": _gather,
    "Concat": _concat,
}


def is_arithmetic(op: Operation) -> bool:
    """Whether a node computes with sizes only: each input is made of sizes or a short constant, and one of sizes."""
    if op.node.op_type not in HOST:
        return False
    indices = [index for index in range(len(op.node.input)) if op.has(index)]
    hosts = [index for index in indices if op.is_host(index)]
    small = [index for index in indices if (found := op.constant(index)) is not None and found.tensor.ndim <= 1]
    if op.node.op_type in ("Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity") and 0 not in hosts:
        # the sizes are positions there, of a constant: only a short list of integers is one of sizes, too
        return False
    return bool(hosts) and len(hosts) + len(small) == len(indices)
