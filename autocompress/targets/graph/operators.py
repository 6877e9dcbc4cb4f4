"""The operators that a graph in a file may name. A file can never call anything else.

Loading a file must not run what its author likes: `os.system` is a name like any other. So a name is looked up in one
table of Python functions (`FUNCTIONS`) and among ATen operators, of which those pass whose schema says that they only
compute (`_is_harmless`): no text but a mode, no file, no tensor changed.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from autocompress.targets.graph.lowering import round_activation

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{function.__name__}": function
        for function in (
            operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.neg,
            operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.getitem,
        )
    },
    **{f"math.{function.__name__}": function for function in (math.ceil, math.floor, math.trunc)},
    **{
        f"torch.{function.__name__}": function
        for function in (torch.sym_max, torch.sym_min, torch.sym_int, torch.sym_float, torch.sym_not, torch.sym_sum)
    },
}  # fmt: skip
"""Python functions by name that torch.export leaves in graphs: arithmetic on the free batch size, and `getitem`, which
picks one of an operator's several results."""

_NAMES = {function: name for name, function in FUNCTIONS.items()}
_NAMESPACES = ("aten", round_activation._namespace)
_OPERATOR = re.compile(rf"({'|'.join(_NAMESPACES)})\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")
_VALUES = frozenset({"Tensor", "int", "float", "bool", "number"})
_ARGUMENTS = _VALUES | {"str", "Device", "Generator"}  # a generator has no form in a file: it stays None
_TEXTS = frozenset(
    {"approximate", "assert_msg", "equation", "indexing", "interpolation", "mode", "norm", "padding", "padding_side"}
    | {"reduce", "rounding_mode", "side"}
)
_WITHOUT_RESULT = ("_assert_", "sym_constrain_range")


def operator_name(function: object) -> str | None:
    """The name that a file gives a function: `aten.relu.default`; None where a file may not hold it."""
    if isinstance(function, OpOverload):
        name = f"{function.namespace}.{function._opname}.{function._overloadname}"
        return name if find_operator(name) is function else None
    return _NAMES.get(function) if callable(function) else None


def find_operator(name: str) -> Callable[..., Any] | None:
    """The function that has a name in files; None where there is none or a file may not hold it.

    >>> find_operator("aten.relu.default"), find_operator("os.system"), find_operator("aten.from_file.default")
    (<OpOverload(op='aten.relu', overload='default')>, None, None)
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    parts = _OPERATOR.fullmatch(name)
    if parts is None:
        return None
    packet = getattr(getattr(torch.ops, parts[1]), parts[2], None)
    found = getattr(packet, parts[3], None) if isinstance(packet, OpOverloadPacket) else None
    return found if isinstance(found, OpOverload) and _is_harmless(found) else None


def takes(function: Callable[..., Any], positional: int, named: Collection[str]) -> bool:
    """Whether a function can be called with these arguments.

    Args:
        function: ATen operator, or one of `FUNCTIONS`.
        positional: number of arguments by position.
        named: names of the other arguments.
    """
    schema = getattr(function, "_schema", None)
    if schema is None:
        return not named and positional == len(inspect.signature(function).parameters)
    by_position = [each.name for each in schema.arguments if not each.kwarg_only]
    needed = {each.name for each in schema.arguments if not each.has_default_value()}
    open_names = {each.name for each in schema.arguments} - set(by_position[:positional])
    return positional <= len(by_position) and open_names.issuperset(named) and not (needed & open_names) - set(named)


def _is_harmless(found: OpOverload) -> bool:
    """Whether an operator only computes with tensors and numbers, and changes nothing."""
    schema = found._schema
    arguments = schema.arguments
    return (
        not schema.is_mutable
        and all(_base(each.type) in _ARGUMENTS for each in arguments)
        and all(each.name in _TEXTS for each in arguments if _base(each.type) == "str")
        and all(_base(each.type) in _VALUES for each in schema.returns)
        and (bool(schema.returns) or found._opname.startswith(_WITHOUT_RESULT))
    )


def _base(kind: object) -> str:
    """The innermost type of a schema's type: Tensor of Optional[List[Tensor]]."""
    return re.sub(r"(Optional|List)\[|\]", "", str(kind))
