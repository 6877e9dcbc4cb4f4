"""Renormalization: the layers of a compressed network get back the means and spreads of their outputs.

Every layer of a plan is fitted for itself, on the original's own inputs. Behind each other they lose more than they do
alone: features that are fitted from fewer inputs are fainter than the original's, those that are fitted to them fainter
still, and a network that is right in every layer may be wrong at its end. One pass over few unlabelled samples mends
most of that. Where it comes to a layer, every output channel is scaled and shifted to the mean and the standard
deviation that the original has there, before the layers behind it run:

    W'[r] = s[r] W[r],   b'[r] = mean₀[r] - s[r] (mean[r] - b[r]),   s[r] = spread₀[r] / spread[r]

with s within 0.8 to 1.25. These are the re-estimated batch norms of EagleEye (Li et al. 2020), written into the
weights, and the rescaling between merged networks of REPAIR (Jordan et al. 2023). Codes, sizes and times stay what they
are, as each row of codes has a scale and a bias anyway.

Few samples tell moments roughly, and every layer's chance would add to the others'. Original and compressed network see
the same samples, so what is left of their differences from sample to sample says how much of it is chance. That share
of the squares of a layer's corrections is taken off (a Wiener filter; James & Stein 1961), for what all its channels
have in common by itself.

Plans are compared with their layers renormalized, since what a user gets is. Of plans that remove many channels, the
order without it says little of the order that counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.evaluation.batches import placed, room_for
from autocompress.evaluation.number_format import in_format
from autocompress.memory import give_back_at_once
from autocompress.menus.renormalized import MOST_SCALED
from autocompress.network.structure import EMBEDDING, RECURRENT, Layer, Network
from autocompress.samples import Inputs, call

_MOST_SAMPLES = 128
_LARGE = 100_000_000  # bytes of activations, from which memory is given back before and after
_LEAST_SAMPLES = 32
_BYTES = 600_000_000  # of activations, which all samples hold together: one pass can't be cut into batches
_COLUMNS = 32_768  # samples x positions that tell a channel's moments well


def renormalizing_samples(network: Network) -> int:
    """Number of samples that networks are renormalized on: 128, of large images fewer, as these have many positions.

    Args:
        network: trace of the network.
    """
    return max(_LEAST_SAMPLES, min(_MOST_SAMPLES, _BYTES // max(1, network.activation_bytes)))


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of each of a layer's output channels, sample by sample, over positions.

    Attributes:
        means: (n, channels) float32 means over the positions of each sample.
        variances: (n, channels) float32 variances over the positions of each sample.
    """

    means: Tensor
    variances: Tensor

    @classmethod
    def of(cls, layer: Layer, outputs: Tensor) -> Moments:
        """The moments of a layer's outputs, with channels on its own axis; of many positions, those on a grid.

        Args:
            layer: structure of the layer.
            outputs: (n, …) outputs of one call, in any floating-point type.
        """
        axis = _channel_axis(layer, outputs)
        seen = outputs[_grid(outputs.shape, axis)].float()
        positions = [each for each in range(1, outputs.ndim) if each != axis]
        if not positions:
            return cls(seen, torch.zeros_like(seen))
        means = seen.mean(positions, keepdim=True)
        variances = (seen - means).square_().mean(positions)  # three times as fast as torch.var_mean
        return cls(means.flatten(1), variances)

    def of_rows(self, rows: Tensor) -> Moments:
        """Those of some channels."""
        return Moments(self.means[:, rows], self.variances[:, rows])

    def to(self, device: torch.device) -> Moments:
        """The same on a device."""
        return Moments(self.means.to(device), self.variances.to(device))

    def about(self, middle: Tensor) -> Tensor:
        """(n, channels) mean squared distance of each sample's outputs from `middle` (channels,)."""
        return self.variances + (self.means - middle).square()


@dataclass(frozen=True, eq=False)
class Affine:
    """What becomes of a layer's outputs y, channel by channel: scale * y + shift.

    Attributes:
        scale: (channels,) float32, within 0.8 to 1.25.
        shift: (channels,) float32; zeros where the layer has no bias.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def identity(cls, channels: int) -> Affine:
        """What leaves the outputs of so many channels as they are, to the bit."""
        return cls(torch.ones(channels), torch.zeros(channels))

    @classmethod
    def between(cls, current: Moments, wanted: Moments, has_bias: bool) -> Affine:
        """What gives outputs the moments that are wanted, as far as samples tell and scales go.

        Constant outputs keep their scale.

        Args:
            current: moments of the outputs as they are.
            wanted: moments that they should have, on the same samples.
            has_bias: whether means can be changed; else spreads are root mean squares.
        """
        mean, wanted_mean = (each.means.mean(0) * has_bias for each in (current, wanted))
        parts, wanted_parts = current.about(mean), wanted.about(wanted_mean)  # (n, channels)
        variance, wanted_variance = parts.mean(0), wanted_parts.mean(0)
        varies = (variance > 0) & (wanted_variance > 0)
        logarithms = torch.where(varies, (wanted_parts / wanted_variance - parts / variance) / 2, 0.0)
        ratio = torch.where(varies, (wanted_variance / variance).log() / 2, 0.0)
        scale = (_common(ratio, logarithms) + _certain(ratio - ratio.mean(), _centred(logarithms))).exp()
        scale = scale.clamp(1 / MOST_SCALED, MOST_SCALED)
        unit = torch.where(wanted_variance > 0, wanted_variance.sqrt(), 1.0)
        missed = (wanted.means - current.means) * has_bias / unit
        return cls(scale, mean + unit * _certain(missed.mean(0), missed) - scale * mean)

    def cpu(self) -> Affine:
        """The same on the CPU."""
        return Affine(self.scale.cpu(), self.shift.cpu())

    def among(self, channels: int, rows: Tensor) -> Affine:
        """The same among more channels, of which all others stay as they are.

        Args:
            channels: number of all channels.
            rows: (k,) int64 channels that this is for.
        """
        found = Affine.identity(channels)
        found.scale[rows], found.shift[rows] = self.scale, self.shift
        return found

    def weight(self, weight: Tensor) -> Tensor:
        """A weight (channels, …) that gives the changed outputs, in its own type."""
        return (weight * self.scale.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)

    def bias(self, bias: Tensor) -> Tensor:
        """A bias (channels,) that gives the changed outputs, in its own type."""
        return (bias * self.scale + self.shift).to(bias.dtype)

    def outputs_(self, outputs: Tensor, axis: int) -> Tensor:
        """Change outputs in place, with the channels on an axis of theirs."""
        shape = [-1 if each == axis else 1 for each in range(outputs.ndim)]
        return outputs.mul_(self.scale.view(shape).to(outputs)).add_(self.shift.view(shape).to(outputs))


class Renormalizer:
    """Renormalizes compressed networks, one after the other.

    Layers that run several times keep their weights, since no single run can say what is best for all; so do recurrent
    layers and embeddings, whose outputs no module gives.

    Args:
        folded: original network with its norms folded, float32; it is not changed.
        network: trace of the network.
        inputs: (N, …) unlabelled samples; the first `renormalizing_samples` of them are used.
        device: device that the original is run on. Default: the CPU.

    Attributes:
        device: the same.
    """

    def __init__(self, folded: nn.Module, network: Network, inputs: Inputs, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._inputs = inputs[: renormalizing_samples(network)]
        self._is_large = len(self._inputs) * network.activation_bytes >= _LARGE
        self._in_format: dict[tuple[str, torch.dtype], Inputs] = {}
        self._layers = {layer.name: layer for layer in network.layers if layer.kind not in (EMBEDDING, RECURRENT)}
        self._wanted = self._moments(placed(folded, self.device))

    def apply_(self, model: nn.Module, rows: Mapping[str, Tensor], keeping: Collection[str] = ()) -> dict[str, Affine]:
        """Renormalize a network in place.

        Args:
            model: compressed network in eval mode, in any floating-point type and on any device.
            rows: (k,) int64 output channels that are left, by name of the layer.
            keeping: names of layers that keep their weights.

        Returns:
            What became of each layer's outputs by name, float32 on the device of the model.
        """
        found: dict[str, Affine] = {}

        def renormalize(name: str, module: Any, _: object, outputs: Tensor) -> Tensor | None:
            layer, wanted = self._layers[name], self._wanted[name].of_rows(rows[name]).to(outputs.device)
            if outputs.shape[_channel_axis(layer, outputs)] != wanted.means.shape[1]:
                return None  # zeros stand in for a removed branch
            affine = Affine.between(Moments.of(layer, outputs), wanted, layer.has_bias)
            module.weight.data = affine.weight(module.weight.data)
            if layer.has_bias:
                module.bias.data = affine.bias(module.bias.data)
            found[name] = affine
            return affine.outputs_(outputs, _channel_axis(layer, outputs))

        self._run(model, [name for name in self._wanted if name not in keeping], renormalize)
        return found

    def _moments(self, folded: nn.Module) -> dict[str, Moments]:
        """The original's moments by name of the layer, of those that run once."""
        found: dict[str, Moments] = {}
        runs: Counter[str] = Counter()

        def record(name: str, module: Any, _: object, outputs: Tensor) -> None:
            runs[name] += 1
            found[name] = Moments.of(self._layers[name], outputs).to(torch.device("cpu"))

        self._run(folded, self._layers, record)
        return {name: moments for name, moments in found.items() if runs[name] == 1}

    def _run(self, model: nn.Module, names: Iterable[str], hook: Callable[..., Tensor | None]) -> None:
        """Run a network on all samples at once, with a hook (name, module, args, outputs) behind some layers."""
        handles = [model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in names]
        if self._is_large:
            give_back_at_once()
        try:
            with torch.no_grad(), room_for("the samples that plans are renormalized on", self.device):
                call(model, self._inputs_for(next(model.parameters())))
        finally:
            for handle in handles:
                handle.remove()
            if self._is_large:
                give_back_at_once()

    def _inputs_for(self, parameter: Tensor) -> Inputs:
        """The samples in the format of a network; kept, as plan after plan is run on them."""
        key = (str(parameter.device), parameter.dtype)
        if key not in self._in_format:
            self._in_format[key] = in_format(self._inputs, parameter.device, parameter.dtype)
        return self._in_format[key]


def _certain(found: Tensor, samples: Tensor) -> Tensor:
    """Values (channels,) times the share of their squares that is no chance, that of all channels together.

    Args:
        found: (channels,) averages over samples, or functions of such.
        samples: (n, channels) what each sample adds to n times the average, up to a constant.
    """
    if len(samples) < 2:
        return torch.zeros_like(found)
    chance, square = samples.var(0).sum() / len(samples), found.square().sum()
    return found * torch.where(square > 0, 1 - chance / square, 0.0).clamp(min=0)


def _common(found: Tensor, samples: Tensor) -> Tensor:
    """What all channels have in common, the same for each, as far as it is no chance (`_certain`)."""
    return _certain(found.mean()[None], samples.mean(1, keepdim=True)).expand(len(found))


def _centred(samples: Tensor) -> Tensor:
    return samples - samples.mean(1, keepdim=True)


def _grid(shape: Sequence[int], channel_axis: int) -> tuple[slice, ...]:
    """Slices of outputs (n, …) that leave all channels of all samples, at about `_COLUMNS` positions in all or fewer.

    Steps are odd, so that a pattern with a period of 2, as behind strided layers, is seen as it is.

    >>> _grid((64, 32, 112, 112), 1)[2:], _grid((64, 32, 7, 7), 1)[2:], _grid((64, 4096, 32), 2)[1]
    ((slice(2, None, 5), slice(2, None, 5)), (slice(0, None, 1), slice(0, None, 1)), slice(4, None, 9))
    """
    axes = [axis for axis in range(1, len(shape)) if axis != channel_axis]
    columns = shape[0] * math.prod(shape[axis] for axis in axes)
    step = math.ceil((columns / _COLUMNS) ** (1 / max(1, len(axes)))) // 2 * 2 + 1 if columns > _COLUMNS else 1
    return tuple(slice(step // 2, None, step) if axis in axes else slice(None) for axis in range(len(shape)))


def _channel_axis(layer: Layer, outputs: Tensor) -> int:
    return outputs.ndim - 1 if layer.has_channels_last else 1
