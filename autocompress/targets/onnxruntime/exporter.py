"""From a lowered graph to ONNX operators, through `torch.onnx`, with a placeholder for every weight that is packed.

The exporter can't write packed integers, and its optimizer changes what it is given: it merges equal initializers and
computes operators of constants. A weight must survive both, and must be found again afterwards. So it goes through
as `DequantizeLinear(codes, scale)` with a placeholder for either:

- `scale` is found by its *name*, `autocompress_stored_7` for the 7th layer. Its content only keeps it from being
  merged: NaNs whose payload is the layer's number, which no other tensor of a network that computes numbers has.
- `codes` are zeros in the weight's shape. Those of several layers may be merged: nobody looks for them.

A table whose rows are looked up goes through as Gather(codes, rows) · Gather(scale, rows), with the same placeholders.

The optimizer computes no DequantizeLinear of constants, as that would make integers floats again.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.errors import ExportError
from autocompress.execute.compressed import LayerWeights
from autocompress.network.exported import free_axes, takes_any_length
from autocompress.network.verification import first_line
from autocompress.samples import Field
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.graph.rounding_points import ROUND_ACTIVATION
from autocompress.targets.onnxruntime.norms import write_norms_out_
from autocompress.targets.onnxruntime.recurrent import long_short_to_onnx, recurrence_to_onnx, replace_recurrent_
from autocompress.targets.onnxruntime.translations import kept_translations

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OPSET = 21  # version of ONNX's operators: the first with INT4
PLACEHOLDER = "autocompress_stored_"  # how the names of all placeholders begin; a scale's goes on with a number
_QUIET_NAN = 0x7FC00000  # bits of a float32 NaN; its lowest 22 are free
_ATEN = torch.ops.aten
_SAME = {_ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor, _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor}
"""Operators that the exporter would decompose whole programs for, and those that it knows, which compute the same."""


@torch.library.custom_op("autocompress::stored_weight", mutates_args=())
def stored_weight(codes: Tensor, scale: Tensor) -> Tensor:
    """Operator that stands for a weight until the file holds it: codes · scale.

    Args:
        codes: (rows, …) int8 in the weight's shape.
        scale: (rows,) float32.
    """
    return codes * scale.view(-1, *[1] * (codes.ndim - 1))


@stored_weight.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op("autocompress::stored_lookup", mutates_args=())
def stored_lookup(codes: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    """Operator that stands for looking rows up in a table until the file holds it: codes[rows] · scale[rows].

    Args:
        codes: (V, d) int8.
        scale: (V,) float32.
        rows: (…) int64 numbers of rows.
    """
    return codes[rows] * scale[rows][..., None]


@stored_lookup.register_fake
def _(codes: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    return scale.new_empty((*rows.shape, codes.shape[1]))


@torch.library.custom_op("autocompress::global_average", mutates_args=())
def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 1, 1): the one kind of mean that runtimes have an integer kernel for."""
    return x.mean((2, 3), keepdim=True)


@global_average.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 1, 1))


# --- before: placeholders --------------------------------------------------------------------------------------------


def with_placeholders(lowered: Lowered) -> fx.GraphModule:
    """A copy of the graph with a placeholder for every weight below 32 bits.

    Every global mean is one operator there, and norms are written out (`norms`).
    """
    from torch.fx.passes.shape_prop import ShapeProp

    module = fx.GraphModule(lowered.graph, copy.deepcopy(lowered.graph.graph))
    ShapeProp(module).propagate(*(field.zeros(2) for field in lowered.inputs))
    write_norms_out_(module)
    numbers = {f"{name}.weight": number for number, name in enumerate(lowered.layers)}

    def stored_matrix(weight: fx.Node) -> fx.Node | None:
        name = str(weight.target)
        layer = lowered.layers.get(name.removesuffix(".weight"))
        return None if layer is None or layer.bits == 32 else _stored(module, layer, numbers[name])

    replace_recurrent_(module, stored_matrix)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and node.target in numbers:
            layer = lowered.layers[str(node.target).removesuffix(".weight")]
            if layer.bits != 32:
                _replace_weight_(module, node, layer, numbers[str(node.target)])
        elif node.target in _SAME:
            node.target = _SAME[node.target]
        elif _is_global_average(node):
            with module.graph.inserting_before(node):
                pooled = module.graph.call_function(torch.ops.autocompress.global_average.default, (node.args[0],))
            node.replace_all_uses_with(pooled)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _stored(module: fx.GraphModule, layer: LayerWeights, number: int) -> fx.Node:
    """A node that stands for a layer's weight, where the graph inserts nodes now."""
    return module.graph.call_function(torch.ops.autocompress.stored_weight.default, _parts(module, layer, number))


def _parts(module: fx.GraphModule, layer: LayerWeights, number: int) -> tuple[fx.Node, fx.Node]:
    """Nodes of the placeholders for a layer's codes and scale, where the graph inserts nodes now."""
    codes, scale = f"{PLACEHOLDER}codes_{number}", f"{PLACEHOLDER}{number}"
    module.register_buffer(codes, torch.zeros(layer.values.shape, dtype=torch.int8))
    module.register_buffer(scale, _numbered_nans(len(layer.values), number))
    return module.graph.get_attr(codes), module.graph.get_attr(scale)


def _replace_weight_(module: fx.GraphModule, node: fx.Node, layer: LayerWeights, number: int) -> None:
    with module.graph.inserting_before(node):
        parts = _parts(module, layer, number)
    for user in [user for user in node.users if user.target is _ATEN.embedding.default]:
        with module.graph.inserting_before(user):
            looked_up = module.graph.call_function(torch.ops.autocompress.stored_lookup.default, (*parts, user.args[1]))
        user.replace_all_uses_with(looked_up)
        module.graph.erase_node(user)
    if not node.users:
        # Two tables' codes must not be merged: what looks them up would be merged too.
        module.get_buffer(str(parts[0].target)).flatten()[:2] = torch.tensor(divmod(number, 100), dtype=torch.int8)
        return
    with module.graph.inserting_before(node):
        stored = module.graph.call_function(torch.ops.autocompress.stored_weight.default, parts)
    node.replace_all_uses_with(stored)


def _numbered_nans(rows: int, number: int) -> Tensor:
    """(rows,) float32 NaNs with a payload of their own: equal to those of no other number, byte for byte."""
    return torch.full((rows,), _QUIET_NAN + 1 + number, dtype=torch.int32).view(torch.float32)


def _is_global_average(node: fx.Node) -> bool:
    """Whether the node is a mean over all of H and W that keeps both axes, of (N, C, H, W)."""
    if node.target is _ATEN.adaptive_avg_pool2d.default:
        return list(node.args[1]) == [1, 1] and _rank(node) == 4  # type: ignore[arg-type]
    keeps = len(node.args) > 2 and bool(node.args[2])
    if node.target is not _ATEN.mean.dim or not keeps or _rank(node) != 4:
        return False
    return sorted(axis % 4 for axis in node.args[1]) == [2, 3]  # type: ignore[union-attr,operator]


def _rank(node: fx.Node) -> int:
    return len(node.meta["tensor_meta"].shape)


# --- through torch.onnx ----------------------------------------------------------------------------------------------


def exported(module: fx.GraphModule, inputs: Sequence[Field], outputs: Sequence[str]) -> ModelProto:
    """The ONNX graph of a module from `with_placeholders`.

    Args:
        module: graph with placeholders.
        inputs: form of every tensor that it takes.
        outputs: names of what it gives.

    Raises:
        ExportError: the network has an operator that ONNX doesn't.
    """
    translations: dict[Any, Any] = {
        ROUND_ACTIVATION: _rounding,
        torch.ops.autocompress.stored_weight.default: _weight,
        torch.ops.autocompress.stored_lookup.default: _lookup,
        torch.ops.autocompress.global_average.default: _average,
        torch.ops.autocompress.recurrence.default: recurrence_to_onnx,
        torch.ops.autocompress.long_short.default: long_short_to_onnx,
    }
    example = tuple(field.zeros(2) for field in inputs)
    dynamic = free_axes(module, len(example), any_length=takes_any_length(module))
    try:
        with _quiet(), kept_translations(), torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=dynamic)
            _decompose_where_that_changes_something_(program)
            written = torch.onnx.export(
                program,
                input_names=[field.name for field in inputs],
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=True,
                custom_translation_table=translations,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"`model` must have operators that ONNX has, got {_operator(error)}.") from error
    except _optimizer_failure() as error:  # its passes rewrite graphs of thousands of nodes, and some fail
        raise ExportError(
            f"`model` must be a network that ONNX's optimizer can rewrite, got the error: {_innermost(error)}"
        ) from error
    assert written is not None
    proto: ModelProto = written.model_proto
    assert not proto.functions, "the exporter inlines its functions"
    return proto


def _decompose_where_that_changes_something_(program: torch.export.ExportedProgram) -> None:
    """Let the exporter take a program as it is that has no operator to decompose.

    It would trace the program anew, which takes a third to a half of the time of writing a file.
    """
    decompose: Callable[..., torch.export.ExportedProgram] = program.run_decompositions
    operators = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OperatorBase)]
    are_plain = all(isinstance(each, torch._ops.OpOverload) and not each._schema.is_mutable for each in operators)

    def run(table: Any = None) -> torch.export.ExportedProgram:
        is_done = are_plain and table is not None and not any(each in table for each in operators)
        return program if is_done else decompose(table)

    program.run_decompositions = run  # type: ignore[method-assign, assignment]


def _rounding(x: Any, scale: float, zero: int, bits: int) -> Any:
    """QuantizeLinear: q = clamp(round(x / scale) + zero, 0, 255); DequantizeLinear: (q - zero) · scale."""
    from onnxscript import ir, opset21

    onnx: Any = opset21
    step = onnx.Constant(value=ir.tensor(np.array(scale, np.float32)))
    code = onnx.Constant(value=ir.tensor(np.array(zero, np.uint8)))  # its type makes q uint8
    return onnx.DequantizeLinear(onnx.QuantizeLinear(x, step, code), step, code)


def _weight(codes: Any, scale: Any) -> Any:
    from onnxscript import opset21

    onnx: Any = opset21
    return onnx.DequantizeLinear(codes, scale, axis=0)


def _lookup(codes: Any, scale: Any, rows: Any) -> Any:
    """Rows are looked up as codes: dequantizing the whole table would take its size in float32 at every run."""
    from onnxscript import ir, opset21

    onnx: Any = opset21
    last = onnx.Constant(value=ir.tensor(np.array([-1], np.int64)))
    found = onnx.Cast(onnx.Gather(codes, rows), to=1)  # 1: float32
    return onnx.Mul(found, onnx.Unsqueeze(onnx.Gather(scale, rows), last))


def _average(x: Any) -> Any:
    from onnxscript import opset21

    onnx: Any = opset21
    return onnx.GlobalAveragePool(x)


def _operator(error: BaseException) -> str:
    """The operator that an exporter's error is about, else what its innermost cause says."""
    found = re.search(r"op='([\w.]+)'", f"{error} {_cause(error)}")
    return found[1] if found else _innermost(error)


def _cause(error: BaseException) -> BaseException:
    """The first of the errors that led to this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _innermost(error: BaseException) -> str:
    """What the innermost cause of an error says, in one line."""
    return first_line(_cause(error))  # type: ignore[arg-type]


def _optimizer_failure() -> type[Exception]:
    """What the optimizer's passes raise."""
    from onnx_ir.passes import PassError

    return PassError


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice to its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def inline_constants_(graph: GraphProto) -> None:
    """Make initializers of Constant nodes, so that every constant of the graph is found in one place."""
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
