"""Calibration: what layers' inputs look like (H) and how much their outputs matter (G).

A layer has inputs x (d,) and outputs y = W x + b at every output position. With x' = (x, 1), whose last entry
goes with the bias, and the gradient γ = d(-log p(c)) / dy for classes c that are drawn from the network's own
prediction p:

    H = E[ sum over positions of x' x'ᵀ ]     (d + 1, d + 1)
    G = E[ mean over positions of γ γᵀ ]      (rows, rows)

so that ½ tr(G ΔW H ΔWᵀ) is the expected KL divergence that a change ΔW causes, in nats. Why: for a small
change of a network's parameters θ, the divergence is ½ Δθᵀ F Δθ with the Fisher matrix F = E[∇ log p(c) ∇ log
p(c)ᵀ]. A layer's gradient is the sum of γ x'ᵀ over its positions. Taking γ and x' as independent, and
positions as uncorrelated, makes its block of F the Kronecker product of G and H (Martens & Grosse 2015; for
convolutions Grosse & Martens 2016, eq. 26 and theorem 1). Drawing c from p, not taking the labels, is what
makes F the Fisher matrix; so no labels are needed.
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

from autocompress.errors import InputError
from autocompress.network.structure import Layer, Network

_UNFOLDED_ELEMENTS = 16_000_000  # most elements of one layer's unfolded inputs in a batch: 64 MB in float32
_RANGE_SAMPLES = 65_536  # most values that are kept of a layer's inputs
_DRAWN_A_SAMPLE = 512  # values that are drawn of a layer's input for each calibration sample


@dataclass(frozen=True)
class Statistics:
    """What calibration found out about one layer.

    Attributes:
        second_moment: (g, d + 1, d + 1) float64 H, one matrix for each of a convolution's g groups.
        gradient_moment: (rows, rows) float64 G.
        channel_activation: (in_channels,) float32 mean absolute value of every input channel.
        input_sample: (n,) float32 values of the input, at most 65,536, ascending; the smallest and the
            largest that occurred are among them.
    """

    second_moment: Tensor
    gradient_moment: Tensor
    channel_activation: Tensor
    input_sample: Tensor


def calibrate(
    model: nn.Module,
    network: Network,
    inputs: Tensor,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Statistics]:
    """Every layer's statistics by its name: one pass forward and `draws` passes back for each batch.

    Args:
        model: network with its batch norms folded, in eval mode; its parameters need no gradients.
        network: its trace.
        inputs: (N, …) float32 calibration samples.
        draws: classes that are drawn for each sample, at least 1; more of them make G more exact.
        seed: seed of those draws.
        progress: observer that is called with (samples done, samples in all) after every batch.

    Raises:
        InputError: the network's outputs are not finite.
    """
    modules = dict(model.named_modules())
    collectors = {layer.name: _Collector(layer, modules[layer.name]) for layer in network.layers}
    generator = torch.Generator().manual_seed(seed)
    batch = batch_size(network.layers)
    for start in range(0, len(inputs), batch):
        with _Collecting(modules, collectors).listening(), torch.enable_grad():
            outputs = model(inputs[start : start + batch].requires_grad_())
            if not torch.isfinite(outputs).all():
                raise InputError("`weights` must give finite outputs, got NaN or infinity on the calibration data.")
            _backward(outputs, draws, generator)
        if progress is not None:
            progress(min(start + batch, len(inputs)), len(inputs))
    return {name: collector.finish(len(inputs), draws) for name, collector in collectors.items()}


def batch_size(layers: Iterable[Layer]) -> int:
    """Number of samples, 1 to 128, whose unfolded inputs take at most 64 MB in any one of the layers."""
    largest = max(layer.fan_in * layer.groups * layer.positions for layer in layers)
    return max(1, min(128, _UNFOLDED_ELEMENTS // largest))


def _backward(outputs: Tensor, draws: int, generator: torch.Generator) -> None:
    """Backpropagate -log p(c) for classes c drawn from the outputs' own probabilities, `draws` times."""
    logits = outputs.flatten(1)  # (N, K)
    probabilities = logits.detach().softmax(1)
    for draw in range(draws):
        drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]  # (N,)
        loss = F.cross_entropy(logits, drawn, reduction="sum")
        loss.backward(retain_graph=draw + 1 < draws)  # type: ignore[no-untyped-call]


class _Collector:
    """Sums of one layer's statistics over batches: its inputs, and the gradients at its outputs."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        self.layer = layer
        self.module = module
        columns = layer.fan_in + 1
        self.second_moment = torch.zeros(layer.groups, columns, columns, dtype=torch.float64)
        self.gradient_moment = torch.zeros(layer.rows, layer.rows, dtype=torch.float64)
        self.activation = torch.zeros(module.get_parameter("weight").shape[1] * layer.groups)
        self.values_per_channel = 0
        self.generator = torch.Generator().manual_seed(0)
        self.samples: list[Tensor] = []

    def see_input(self, x: Tensor, window: Window | None) -> None:
        """Add a batch of the operator's inputs, which a module that pads by itself has padded already."""
        columns = extended_columns(x, window)  # (g, M, d + 1)
        self.second_moment += (columns.mT @ columns).double()
        by_channel = x.movedim(x.ndim - 1 if self.layer.kind == "linear" else 1, 0).flatten(1)  # (channels, M)
        self.activation += by_channel.abs().sum(1)
        self.values_per_channel += by_channel.shape[1]
        # Drawn, not strided: a stride that divides the image's size would see the same few pixels of every
        # channel.
        drawn = torch.randint(x.numel(), (min(x.numel(), _DRAWN_A_SAMPLE * len(x)),), generator=self.generator)
        self.samples.append(torch.cat([x.flatten()[drawn], x.amin()[None], x.amax()[None]]))

    def see_gradient(self, gradient: Tensor) -> None:
        """Add a batch's gradients at the layer's outputs: (N, rows, …), (N, …, rows) of a linear layer."""
        if self.layer.kind == "linear":
            rows = gradient.reshape(len(gradient), -1, gradient.shape[-1]).mT  # (N, rows, T)
        else:
            rows = gradient.flatten(2)  # (N, rows, T)
        flat = rows.transpose(0, 1).flatten(1)  # (rows, N·T)
        # The layer's positions count those of all its runs, and where it sees the positions as samples, those
        # too.
        self.gradient_moment += (flat @ flat.T).double() / self.layer.positions

    def finish(self, count: int, draws: int) -> Statistics:
        """The statistics, from `count` samples with `draws` classes each."""
        sample = torch.cat(self.samples).sort().values
        if len(sample) > _RANGE_SAMPLES:
            sample = sample[torch.linspace(0, len(sample) - 1, _RANGE_SAMPLES, dtype=torch.float64).round().long()]
        order = weight_order(self.layer)
        return Statistics(
            self.second_moment[:, order][:, :, order] / count,
            self.gradient_moment / (count * draws),
            self.activation / self.values_per_channel,
            sample.float(),
        )


@dataclass(frozen=True)
class Window:
    """What a convolution sees at each output position. Sizes are (height, width); those of Conv1d are (1, width).

    Attributes:
        kernel: size of the kernel.
        stride: distance of neighbouring output positions.
        dilation: distance of neighbouring kernel positions.
        padding: zeros before and after each axis, the last axis first, as `F.pad` takes them.
        groups: groups of channels that are convolved apart.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Window:
        """The window of a call of `F.conv1d` or `F.conv2d` with these arguments."""
        axes = weight.ndim - 2
        kernel = tuple(weight.shape[2:])
        strides, dilations = (_sizes(sizes, axes) for sizes in (stride, dilation))
        sides = _sides(kernel, padding, dilations)
        flat = tuple(itertools.chain.from_iterable(reversed(sides)))
        return cls(_two(kernel), _two(strides), _two(dilations), flat, groups)


def window_of_module(module: nn.Module) -> Window | None:
    """The window of a Conv1d or Conv2d whose operator pads with zeros; None for a linear layer."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return None
    return Window.of(module.weight, module.stride, module.padding, module.dilation, module.groups)


def _sizes(sizes: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One size for each axis."""
    given = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return given * axes if len(given) == 1 else given


def _two(sizes: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of sizes along one axis or two."""
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


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


def extended_columns(x: Tensor, window: Window | None) -> Tensor:
    """The layer's inputs at every output position, with a 1 for the bias: (g, M, d + 1).

    M is samples times positions. The product with the weight's rows, in the same order of columns, is the
    layer's output at those positions.

    Columns of a convolution run by kernel position first and by channel second, so that whole runs of
    channels are copied; that is several times faster than `F.unfold`. `weight_order` puts them in the
    weight's order.

    Args:
        x: (N, …) inputs of the operator.
        window: window of a convolution; None for a linear layer.
    """
    if window is None:
        flat = x.reshape(1, -1, x.shape[-1])
        return torch.cat([flat, torch.ones(1, flat.shape[1], 1)], 2)
    x = F.pad(x, window.padding)
    x = (x[:, :, None] if x.ndim == 3 else x).permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.stride, window.dilation
    height = (x.shape[1] - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    width = (x.shape[2] - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    groups, per_group = window.groups, x.shape[3] // window.groups
    columns = torch.empty(groups, len(x), height, width, kernel_h * kernel_w * per_group + 1)
    columns[..., -1] = 1
    for position, (row, column) in enumerate(itertools.product(range(kernel_h), range(kernel_w))):
        top, left = row * dilation_h, column * dilation_w
        seen = x[  # (N, height, width, C): the pixel that each output position reads here
            :, top : top + (height - 1) * stride_h + 1 : stride_h, left : left + (width - 1) * stride_w + 1 : stride_w
        ]
        part = columns[..., position * per_group : (position + 1) * per_group]
        part.copy_(seen.unflatten(3, (groups, per_group)).permute(3, 0, 1, 2, 4))
    return columns.flatten(1, 3)


def weight_order(layer: Layer) -> Tensor:
    """Place (d + 1,) of every column of the flattened weight, bias last, among `extended_columns`."""
    if layer.kind == "linear":
        return torch.arange(layer.fan_in + 1)
    per_group = layer.weight_shape[1]
    order = torch.arange(layer.fan_in).view(-1, per_group).T.flatten()
    return torch.cat([order, torch.tensor([layer.fan_in])])


class _Collecting(TorchFunctionMode):
    """While entered, feeds collectors at the operators that multiply by their layers' weights.

    At the operator, not at the module: a module may pad its input first, as `padding_mode="circular"` and subclasses of
    Conv2d do.
    """

    def __init__(self, modules: Mapping[str, nn.Module], collectors: Mapping[str, _Collector]) -> None:
        super().__init__()
        self._modules, self._collectors = modules, collectors
        self._running: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Entered, and with hooks that say which layer runs; the hooks are gone afterwards."""
        handles = []
        try:
            for name in self._collectors:
                handles.append(self._modules[name].register_forward_pre_hook(partial(self._begin, name)))
                handles.append(self._modules[name].register_forward_hook(self._end))
            with self:
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
        if self._running and func in _OPERATORS:
            given = inspect.signature(_OPERATORS[func]).bind(*args, **(kwargs or {})).arguments
            if given["weight"] is self._modules[self._running[-1]].weight:
                self._collect(self._collectors[self._running[-1]], given, output)
        return output

    def _collect(self, collector: _Collector, given: dict[str, Any], output: Tensor) -> None:
        x, weight = given.pop("input"), given.pop("weight")
        given.pop("bias", None)
        collector.see_input(x.detach(), None if weight.ndim == 2 else Window.of(weight, **given))
        # A tensor hook sees the gradient of this value even where an in-place ReLU overwrites it later.
        output.register_hook(lambda gradient: collector.see_gradient(gradient.detach()))


def _linear(input: Any, weight: Any, bias: Any = None) -> None:
    """The arguments of `F.linear`, by name."""


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> None:
    """The arguments of `F.conv1d` and `F.conv2d`, by name."""


_OPERATORS = {F.linear: _linear, F.conv1d: _convolution, F.conv2d: _convolution}
"""What a layer's forward pass calls, as PyTorch's own modules and their subclasses do."""
