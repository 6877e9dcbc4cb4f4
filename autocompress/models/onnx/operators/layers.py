"""Layers: convolutions, matrix products, embeddings, norms, recurrent networks: torch's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.constants import Constant
from autocompress.models.onnx.operators.padding import Pads, pads_of, with_pads
from autocompress.models.onnx.translation import Handler, Operation

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _conv(op: Operation) -> None:
    shape = op.shapes(1)[0]
    kernel, axes = shape[2:], len(shape) - 2
    _check_axes(axes)
    stride, dilation = _per_axis(op, "strides", axes), _per_axis(op, "dilations", axes)
    groups = int(op.attribute("group", 1))
    before, padding = with_pads(op, op.tensor(0), pads_of(op, kernel, stride, dilation))
    weight, bias = op.constant(1), op.constant(2)
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if weight is None or (op.has(2) and bias is None):
        op.emit(_CONVOLVE[axes], before, op.tensor(1), op.tensor(2) if op.has(2) else None, **settings)
        return

    def make() -> nn.Module:
        return _with_parameters(
            op, _CONVOLUTIONS[axes](shape[1] * groups, shape[0], kernel, bias=False, **settings), weight, bias
        )

    op.emit(op.layer(weight, (bias and bias.name, *settings.values()), make), before)


def _conv_transpose(op: Operation) -> None:
    weight, bias = op.required(1, "a weight"), op.required(2, "a bias") if op.has(2) else None
    shape = tuple(weight.tensor.shape)
    kernel, axes = shape[2:], len(shape) - 2
    _check_axes(axes)
    stride, dilation = _per_axis(op, "strides", axes), _per_axis(op, "dilations", axes)
    groups, extra = int(op.attribute("group", 1)), tuple(op.attribute("output_padding", (0,) * axes))
    pads, extra = _transposed_pads(op, kernel, stride, dilation, extra)
    even = pads.is_even and all(
        more < max(step, wide) for more, step, wide in zip(extra, stride, dilation, strict=True)
    )
    settings: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups}
    if even:
        settings |= {"padding": pads.before, "output_padding": extra}

    def make() -> nn.Module:
        module = _TRANSPOSED[axes](shape[0], shape[1] * groups, kernel, bias=False, **settings)
        return _with_parameters(op, module, weight, bias)

    path = op.layer(weight, (bias and bias.name, *settings.values()), make)
    if even:
        op.emit(path, op.tensor(0))
    else:
        full = op.step(path, op.tensor(0))
        op.emit(
            _cropped, full, before=pads.before, after=tuple(a - more for a, more in zip(pads.after, extra, strict=True))
        )


def _transposed_pads(
    op: Operation, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], extra: tuple[int, ...]
) -> tuple[Pads, tuple[int, ...]]:
    """What a transposed convolution cuts off, and what it adds at the end."""
    auto, wanted = op.attribute("auto_pad", "NOTSET"), op.attribute("output_shape")
    if auto in ("NOTSET", "VALID") and wanted is None:
        return pads_of(op, kernel, stride, dilation), extra
    sizes = op.shapes(0)[0][2:]
    if any(shape[2:] != sizes for shape in op.shapes(0)):
        raise Untranslatable("an output size that is fixed while the input's is not")
    target = list(wanted)[-len(sizes) :] if wanted is not None else [n * s for n, s in zip(sizes, stride, strict=True)]
    totals = [
        s * (n - 1) + more + (k - 1) * d + 1 - to
        for n, s, more, k, d, to in zip(sizes, stride, extra, kernel, dilation, target, strict=True)
    ]
    # ONNX: SAME_UPPER puts the odd one at the end, everything else at the start
    first = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
    return Pads(tuple(first), tuple(total - a for total, a in zip(totals, first, strict=True))), extra


def _cropped(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """x without the first and last positions of its last axes; where `after` is negative, zeros are added."""
    return F.pad(x, [-each for pair in zip(reversed(before), reversed(after), strict=True) for each in pair])


def _check_axes(axes: int) -> None:
    if axes not in _CONVOLUTIONS:
        raise Untranslatable(f"{axes} axes in space, where 1 to 3 are known")


def _per_axis(op: Operation, name: str, axes: int) -> tuple[int, ...]:
    return tuple(op.attribute(name) or (1,) * axes)


def _with_parameters(op: Operation, module: Any, weight: Constant, bias: Constant | None) -> nn.Module:
    """The module with its parameters; the same one for a constant that several modules have."""
    module.weight = op.own(weight)
    module.bias = op.own(bias) if bias is not None else None
    return module  # type: ignore[no-any-return]


# --- matrix products -------------------------------------------------------------------------------------------------


def linear(op: Operation, weight: Constant, bias: Tensor | None, names: Sequence[Any], *, turned: bool) -> None:
    """A product with a constant matrix as an `nn.Linear`.

    Args:
        op: node.
        weight: matrix.
        bias: (outputs,) bias, or None.
        names: what the bias is called, or whatever else tells layers with the same weight apart.
        turned: whether the matrix is (inputs, outputs), not (outputs, inputs).
    """
    rows, columns = weight.tensor.T.shape if turned else weight.tensor.shape

    def make() -> nn.Module:
        module: Any = nn.Linear(1, 1, bias=False)
        module.in_features, module.out_features = columns, rows
        module.weight = op.own(weight, turned=turned)
        module.bias = None if bias is None else op.translation.parameter(("bias", *names), bias)
        return module  # type: ignore[no-any-return]

    op.emit(op.layer(weight, ("linear", turned, *names), make), op.tensor(0))


def _gemm(op: Operation) -> None:
    """Gemm: α·A·B + β·C."""
    alpha, beta = float(op.attribute("alpha", 1.0)), float(op.attribute("beta", 1.0))
    weight, bias, turned = op.constant(1), op.constant(2), not op.attribute("transB", 0)
    rows = 0 if weight is None else weight.tensor.shape[1 if turned else 0]
    if weight is None or op.attribute("transA", 0) or alpha != 1.0 or not _is_bias(op, bias, rows):
        op.emit(
            _product, op.tensor(0), op.tensor(1), op.tensor(2) if op.has(2) else None,
            turns=(bool(op.attribute("transA", 0)), not turned), alpha=alpha, beta=beta,
        )  # fmt: skip
        return
    values = None if bias is None else (beta * bias.tensor).expand(1, rows).reshape(rows)
    linear(op, weight, values, (bias and bias.name, beta), turned=turned)


def _is_bias(op: Operation, bias: Constant | None, rows: int) -> bool:
    """Whether what a Gemm adds is one number for each column of the result, or nothing."""
    if bias is None:
        return not op.has(2)
    return bias.tensor.numel() in (1, rows) and bias.tensor.shape[-1:] in ((), (1,), (rows,))


def _product(a: Tensor, b: Tensor, c: Tensor | None, turns: tuple[bool, bool], alpha: float, beta: float) -> Tensor:
    product = alpha * torch.matmul(a.T if turns[0] else a, b.T if turns[1] else b)
    return product if c is None else product + beta * c


def _matmul(op: Operation) -> None:
    weight = op.constant(1)
    if weight is None or weight.tensor.ndim != 2 or op.constant(0) is not None:
        op.emit(torch.matmul, op.tensor(0), op.tensor(1))
        return
    bias = op.constant(2)  # `with_biases` adds it: ONNX's own MatMul has two inputs
    linear(op, weight, None if bias is None else bias.tensor.flatten(), (bias and bias.name,), turned=True)


def _einsum(op: Operation) -> None:
    equation = op.attribute("equation").replace(" ", "")
    op.emit(_summed, [op.tensor(index) for index in range(len(op.node.input))], equation=equation)


def _summed(tensors: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


# --- recurrent -------------------------------------------------------------------------------------------------------

# For torch's gates in order, the positions of ONNX's: LSTM i, f, g, o of i, o, f, c; GRU r, z, n of z, r, h.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_RECURRENT: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


def _recurrent(op: Operation) -> None:
    """LSTM, GRU and RNN of one layer, in one or both directions."""
    kind, weights, hidden = op.node.op_type, op.required(1, "weights"), int(op.attribute("hidden_size"))
    both = op.attribute("direction", "forward") == "bidirectional"
    _check_recurrent(op, 2 if both else 1)
    matrices = (weights, op.required(2, "weights"), op.required(3, "a bias") if op.has(3) else None)

    def make() -> nn.Module:
        module = _RECURRENT[kind](weights.tensor.shape[2], hidden, bias=op.has(3), bidirectional=both)
        for direction, suffix in enumerate(("", "_reverse")[: 2 if both else 1]):
            parts = {"weight_ih": matrices[0].tensor[direction], "weight_hh": matrices[1].tensor[direction]}
            if matrices[2] is not None:
                parts["bias_ih"], parts["bias_hh"] = matrices[2].tensor[direction].chunk(2)
            for name, part in parts.items():
                gates = part.chunk(len(_GATES[kind]))
                ordered = torch.cat([gates[gate] for gate in _GATES[kind]])
                getattr(module, f"{name}_l0{suffix}").data.copy_(ordered)
        return _Recurrent(module.requires_grad_(False))

    states = [op.tensor(index) for index in (5, 6) if op.has(index)]
    path = op.layer(weights, tuple(each and each.name for each in matrices), make)
    made = [f"{op.node.output[0] or 'y'}\n{index}" for index in range(3)]
    op.translation.step(op.shown(), path, [op.tensor(0), *states], made)
    for name, result in zip(op.node.output, made, strict=False):
        if name:
            op.translation.values[name] = op.translation.values[result]


def _check_recurrent(op: Operation, directions: int) -> None:
    kind = op.node.op_type
    usual = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[kind] * directions
    faults = {
        "direction reverse": op.attribute("direction", "forward") == "reverse",
        "layout 1": bool(op.attribute("layout", 0)),
        "activations of its own": op.attribute("activations", usual) != usual,
        "clip": op.attribute("clip") is not None,
        "input_forget": bool(op.attribute("input_forget", 0)),
        "linear_before_reset 0": kind == "GRU" and not op.attribute("linear_before_reset", 0),
        "peepholes": op.has(7) and bool(op.required(7, "peepholes").tensor.any()),
        "a state of the cell without one of the output": op.has(6) and not op.has(5),
        "a state of the output without one of the cell": kind == "LSTM" and op.has(5) and not op.has(6),
        "sequences of several lengths": op.has(4) and op.constant(4) is None,
    }
    for fault, holds in faults.items():
        if holds:
            raise Untranslatable(fault)


class _Recurrent(nn.Module):
    """One of torch's recurrent modules with ONNX's form of results: (T, directions, N, H) and the last states."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = tuple(state.to(x.dtype) for state in states)  # zeros that the file makes are float32
        given = states if isinstance(self.rnn, nn.LSTM) else (states[0] if states else None)
        y, last = self.rnn(x, given or None) if isinstance(given, tuple) else self.rnn(x, given)
        hidden, cell = last if isinstance(last, tuple) else (last, last)
        directions = hidden.shape[0]
        return y.unflatten(2, (directions, -1)).transpose(1, 2), hidden, cell  # (T, directions, N, H)


# --- norms -----------------------------------------------------------------------------------------------------------

_BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _batch_norm(op: Operation) -> None:
    if op.attribute("training_mode", 0):
        raise Untranslatable("training_mode 1; export the network in eval mode")
    weight, bias, mean, variance = (op.required(index, "statistics or weights") for index in range(1, 5))
    if op.rank(0) not in _BATCH_NORMS:
        raise Untranslatable(f"an input of {op.rank(0)} axes, where 2 to 5 are known")
    epsilon, momentum = float(op.attribute("epsilon", 1e-5)), float(op.attribute("momentum", 0.9))

    def make() -> nn.Module:
        module = _BATCH_NORMS[op.rank(0)](len(weight.tensor), eps=epsilon, momentum=1 - momentum)
        module.running_mean.copy_(mean.tensor)
        module.running_var.copy_(variance.tensor)
        return _with_parameters(op, module, weight, bias)

    op.emit(op.layer(weight, (bias.name, mean.name, variance.name, op.rank(0), epsilon), make), op.tensor(0))


def _instance_norm(op: Operation) -> None:
    weight, bias = op.required(1, "a scale"), op.required(2, "a bias")
    if op.rank(0) not in _INSTANCE_NORMS:
        raise Untranslatable(f"an input of {op.rank(0)} axes, where 3 to 5 are known")
    epsilon = float(op.attribute("epsilon", 1e-5))

    def make() -> nn.Module:
        return _with_parameters(
            op, _INSTANCE_NORMS[op.rank(0)](len(weight.tensor), eps=epsilon, affine=True), weight, bias
        )

    op.emit(op.layer(weight, (bias.name, op.rank(0), epsilon), make), op.tensor(0))


def _layer_norm(op: Operation) -> None:
    if op.has_output(1) or op.has_output(2):
        raise Untranslatable("its second or third output")
    weight, bias, axis = op.required(1, "a scale"), op.required(2, "a bias") if op.has(2) else None, op.axis(0, -1)
    shape, epsilon = op.shapes(0)[0][axis:], float(op.attribute("epsilon", 1e-5))
    if any(each[axis:] != shape for each in op.shapes(0)) or weight.tensor.shape != shape:
        raise Untranslatable("sizes that differ from its scale's")

    def make() -> nn.Module:
        return _with_parameters(op, nn.LayerNorm(shape, eps=epsilon), weight, bias)

    op.emit(op.layer(weight, (bias and bias.name, epsilon, *shape), make), op.tensor(0))


def _rms_norm(op: Operation) -> None:
    weight, axis = op.required(1, "a scale"), op.axis(0, -1)
    shape, epsilon = op.shapes(0)[0][axis:], float(op.attribute("epsilon", 1e-5))
    if weight.tensor.shape != shape:
        raise Untranslatable("sizes that differ from its scale's")

    def make() -> nn.Module:
        module = nn.RMSNorm(shape, eps=epsilon)
        module.weight = op.own(weight)
        return module

    op.emit(op.layer(weight, (epsilon, *shape), make), op.tensor(0))


def _group_norm(op: Operation) -> None:
    """GroupNormalization: scale and bias by channel, before opset 21 by group."""
    weight, bias, groups = op.required(1, "a scale"), op.required(2, "a bias"), int(op.attribute("num_groups"))
    channels, epsilon = op.shapes(0)[0][1], float(op.attribute("epsilon", 1e-5))

    def make() -> nn.Module:
        module = nn.GroupNorm(groups, channels, eps=epsilon)
        module.weight, module.bias = (
            op.translation.parameter(
                (each.name, "by channel"), each.tensor.repeat_interleave(channels // len(each.tensor))
            )
            for each in (weight, bias)
        )
        return module

    op.emit(op.layer(weight, (bias.name, groups, channels, epsilon), make), op.tensor(0))


def _lp_normalization(op: Operation) -> None:
    op.emit(_divided_by_norm, op.tensor(0), p=int(op.attribute("p", 2)), axis=op.axis(0, -1))


def _divided_by_norm(x: Tensor, p: int, axis: int) -> Tensor:
    return F.normalize(x, p=float(p), dim=axis, eps=0.0)


def _lrn(op: Operation) -> None:
    size = int(op.attribute("size"))
    if size % 2 == 0:
        raise Untranslatable("an even size")
    op.emit(
        F.local_response_norm, op.tensor(0), size, float(op.attribute("alpha", 1e-4)),
        float(op.attribute("beta", 0.75)), float(op.attribute("bias", 1.0)),
    )  # fmt: skip


LAYERS: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_normalization,
    "LRN": _lrn,
}
