"""Listening to a network: every call of the operators that multiply by its layers' weights.

At the operator, not at the module: a module may pad its input first, as `padding_mode="circular"` and subclasses of
Conv2d do. Fused operators are written out meanwhile (`network.written_out`): every step of a recurrent layer is a call
of each of its matrices, and a transposed convolution is a convolution.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.network.written_out import as_convolutions, step_by_step


@dataclass(frozen=True)
class Window:
    """What a convolution sees at each output position.

    Sizes are (height, width), or (depth, height, width) of a Conv3d; those of a Conv1d are (1, width).

    Attributes:
        kernel: size of the kernel.
        stride: distance of neighbouring output positions.
        dilation: distance of neighbouring kernel positions.
        padding: zeros before and after each axis, the last axis first, as `F.pad` takes them.
        groups: groups of channels that are convolved apart.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    @property
    def is_single(self) -> bool:
        """Whether every output position sees one input position of all channels, and every one of them."""
        is_pointwise = all(size == 1 for size in (*self.kernel, *self.stride))
        return is_pointwise and not any(self.padding) and self.groups == 1

    @classmethod
    def of(
        cls,
        weight: Tensor,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Window:
        """The window of a call of `F.conv1d`, `F.conv2d` or `F.conv3d` with these arguments."""
        axes = weight.ndim - 2
        kernel = tuple(weight.shape[2:])
        strides, dilations = (_sizes(sizes, axes) for sizes in (stride, dilation))
        sides = _sides(kernel, padding, dilations)
        flat = tuple(itertools.chain.from_iterable(reversed(sides)))
        return cls(_two_at_least(kernel), _two_at_least(strides), _two_at_least(dilations), flat, groups)


def window_of_module(module: nn.Module) -> Window | None:
    """The window of a Conv1d or Conv2d whose operator pads with zeros; None for a linear layer."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return None
    return Window.of(module.weight, module.stride, module.padding, module.dilation, module.groups)


def _sizes(sizes: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One size for each axis."""
    given = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return given * axes if len(given) == 1 else given


def _two_at_least(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """(1, width) of a size along one axis; sizes along more axes as they are."""
    return (1, *sizes) if len(sizes) == 1 else sizes


def _sides(
    kernel: tuple[int, ...], padding: int | str | Sequence[int], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Zeros (before, after) each axis."""
    if padding == "valid":
        return [(0, 0) for _ in kernel]
    if isinstance(padding, str):  # same: PyTorch puts the odd one behind
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(size, size) for size in _sizes(padding, len(kernel))]


@dataclass(frozen=True)
class Call:
    """One call of an operator that multiplies by a layer's weight.

    Attributes:
        name: name of the layer.
        x: input (N, …) of the operator, detached; a module that pads by itself has padded it already. Of an embedding
            the rows that are looked up.
        window: window of a convolution; None for a linear layer and for an embedding.
        again: function that runs the operator on another input with the same weight, without the bias.
    """

    name: str
    x: Tensor
    window: Window | None
    again: Callable[[Tensor], Tensor]


def on_gradient(output: Tensor, see: Callable[[Tensor], None]) -> None:
    """Call a function with the gradient at a layer's output, as soon as it is known.

    The gradient is 0 wherever it is not finite, as behind the root of a 0, which has no derivative: a spectrum's
    magnitudes of silence are such roots, and one of them would make every moment and every effect NaN. What lies before
    the output gets the same finite gradient.

    Args:
        output: the layer's output, part of the autograd graph.
        see: function of a gradient of the output's shape.
    """

    def hook(given: Tensor) -> Tensor:
        gradient = torch.nan_to_num(given.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        see(gradient)
        return gradient

    output.register_hook(hook)


class Listening(TorchFunctionMode):
    """While entered by `listening`, tells of every call.

    Args:
        modules: modules of the network by name.
        names: names of the layers to listen to.
        hear: function that is called with every call and the operator's output, a part of the autograd graph where
            gradients are recorded. A tensor hook that it sets on the output sees the gradient of this value even where
            an in-place activation overwrites it later. It must not refer to the output: nobody would free either.
        graph: whether the outputs are made part of the autograd graph where nothing before them is.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        names: Iterable[str],
        hear: Callable[[Call, Tensor], None],
        *,
        graph: bool,
    ) -> None:
        super().__init__()
        self._modules, self._names, self._hear, self._graph = modules, list(names), hear, graph
        self._running: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Entered, and with hooks that say which layer runs; the hooks are gone afterwards."""
        handles = []
        try:
            for name in self._names:
                handles.append(self._modules[name].register_forward_pre_hook(partial(self._begin, name)))
                handles.append(self._modules[name].register_forward_hook(self._end))
            with self, step_by_step(), as_convolutions():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str, *_: Any) -> None:
        self._running.append(name)

    def _end(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._running or func not in _OPERATORS:
            return output
        given = inspect.signature(_OPERATORS[func]).bind(*args, **(kwargs or {})).arguments
        name = self._running[-1]
        if given["weight"] is not self._modules[name].weight:
            return output
        heard = output
        if self._graph and not output.requires_grad:  # nothing before it needs a gradient: the graph begins here
            heard = output.detach().requires_grad_()
            output = heard.clone()  # an in-place activation may follow, which a leaf does not bear
        self._hear(_call(name, func, given), heard)
        return output


def _call(name: str, func: Any, given: dict[str, Any]) -> Call:
    x, weight = given.pop("input").detach(), given.pop("weight").detach()
    given.pop("bias", None)
    window = None if weight.ndim == 2 else Window.of(weight, **given)
    return Call(name, x, window, lambda other: func(other, weight, **given))


def _linear(input: Any, weight: Any, bias: Any = None) -> None:
    """The arguments of `F.linear`, by name."""


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> None:
    """The arguments of `F.conv1d`, `F.conv2d` and `F.conv3d`, by name."""


def _embedding(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: Any = 2.0,
    scale_grad_by_freq: Any = False, sparse: Any = False,
) -> None:  # fmt: skip
    """The arguments of `F.embedding`, by name."""


_OPERATORS: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.embedding: _embedding,
}
"""What a layer's forward pass calls, as PyTorch's own modules and their subclasses do."""
