"""Calibration: what layers' inputs look like (H) and how much their outputs matter (G).

A layer has inputs x (d,) and outputs y = W x + b at every output position. With x' = (x, 1), whose last entry
goes with the bias, and the gradient γ = d log p / dy of the network's log-probabilities under the random signs of
`fisher`:

    H = E[ sum over positions of x' x'ᵀ ]     (d + 1, d + 1)
    G = E[ mean over positions of γ γᵀ ]      (rows, rows)

so that ½ tr(G ΔW H ΔWᵀ) is the expected KL divergence that a change ΔW causes, in nats. Why: for a small
change of a network's parameters θ, the divergence is ½ Δθᵀ F Δθ with the Fisher matrix F. A layer's gradient is the
sum of γ x'ᵀ over its positions. Taking γ and x' as independent, and positions as uncorrelated, makes its block of F the
Kronecker product of G and H (Martens & Grosse 2015; for convolutions Grosse & Martens 2016, eq. 26 and theorem 1). No
labels are needed. How far positions of one sample do act together is measured, and H counts it (`coherence`).

H and G say how weights are made. What a label costs is judged without those assumptions, and on other samples
(`judging`).

**Enough, not all.** A moment of n unknowns needs some tens of columns for each of them. So columns are drawn from the
positions of all samples, and a 112 x 112 map costs no more than a 14 x 14 one.

**Shrinkage.** Where samples are few beside the fan-in, as behind a global pool, the covariance of the inputs has
correlations that are chance, and a fit would use them. So they are shrunk towards the diagonal. The share of their
squares that chance explains would be best for the covariance itself (Ledoit & Wolf 2004; for this target Schäfer &
Strimmer 2005, table 1, target D); how far chance reaches is seen from how much the moment differs between blocks of
samples, since positions of one sample are alike. Fits need the strong correlations, which shrinking weakens as much as
the chance ones: they are best with a quarter of that share. (EfficientNet-Lite0, 333 samples, judged on others: the
classifier's 1,280 inputs at 4 bits lose 0.0063 nats without, 0.0046 with a quarter, 0.0042 with all of it; at 2 bits
0.126, 0.13 and 0.178; with half of its inputs removed 0.362, 0.352 and 0.408.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.memory import bound_on, give_back
from autocompress.menus.algebra import add_gram_, covariance, mirror_
from autocompress.menus.coherence import Coherence
from autocompress.menus.columns import at_positions, count_positions, extended_columns, weight_order
from autocompress.menus.fisher import gradient_samples, random_functions
from autocompress.menus.listening import Call, Listening, on_gradient
from autocompress.menus.lookups import LookupCollector
from autocompress.menus.statistics import Statistics
from autocompress.network.structure import EMBEDDING, Layer, Network
from autocompress.samples import Inputs, call

_HELD_BYTES = {"cpu": 256_000_000, "cuda": 4_000_000_000}  # most bytes of a batch's activations
COPIES = 3  # of each layer's output: itself, what activations and norms behind it keep, and its gradient
_RANGE_SAMPLES = 65_536  # most values that are kept of a layer's inputs
_DRAWN_A_SAMPLE = 512  # values that are drawn of a layer's input for each calibration sample
_LEAST_COLUMNS = 32_768  # columns that a moment is taken from, where there are as many …
_COLUMNS_AN_UNKNOWN = 32  # … or so many for each input of the layer
MOST_INPUTS = 8_192  # of a layer whose moment is kept whole: the square of this is 256 MB
_SHARE = 0.25  # of the share of chance, by which correlations are shrunk
_BLOCKS = 8  # blocks of samples, at least, between which a moment's chance is seen


def calibrate(
    model: nn.Module,
    network: Network,
    inputs: Inputs,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Statistics]:
    """Every layer's statistics by its name: one pass forward and, on the first samples, `draws` passes back.

    Args:
        model: network with its batch norms folded, in eval mode; its parameters need no gradients. It is run on its
            own device.
        network: its trace.
        inputs: (N, …) calibration samples.
        draws: random functions of each sample's outputs, at least 1; more of them make G more exact.
        seed: seed of those functions.
        progress: observer that is called with (samples done, samples in all) after every batch.

    Returns:
        The statistics, on the CPU.

    Raises:
        InputError: the network's outputs are not finite.
    """
    modules, device = dict(model.named_modules()), next(model.parameters()).device
    collectors = {layer.name: _collector(layer, modules[layer.name], len(inputs)) for layer in network.layers}
    generator = torch.Generator().manual_seed(seed)
    batch, block = batch_size(network.layers, device), -(-len(inputs) // _BLOCKS)
    with_gradients = gradient_samples(network.layer_macs, len(inputs))
    done = 0
    for samples in inputs.split(block):
        for taken in samples.split(batch):
            backward = done < with_gradients
            count = len(taken)
            see = partial(_see, collectors, count)
            listening = Listening(modules, collectors, see, graph=backward)
            with listening.listening(), torch.set_grad_enabled(backward):
                outputs = call(model, taken.to(device))
            if not torch.isfinite(outputs).all():
                raise InputError("`weights` must give finite outputs, got NaN or infinity on the calibration data.")
            if backward:
                _backward(random_functions(outputs, draws, generator), collectors.values(), count)
            for collector in collectors.values():
                collector.end_batch()
            done += count
            give_back()
            if progress is not None:
                progress(done, len(inputs))
        for collector in collectors.values():
            collector.end_block(len(samples))
    return {name: collector.finish(len(inputs)) for name, collector in collectors.items()}


def batch_size(layers: Iterable[Layer], device: torch.device) -> int:
    """Number of samples, 1 to 128, whose activations take at most 256 MB, or 4 GB on a GPU, to go forward and back."""
    return max(1, min(128, bound_on(device.type, _HELD_BYTES) // (COPIES * output_bytes(layers))))


def output_bytes(layers: Iterable[Layer]) -> int:
    """Bytes of the float32 outputs of all layers in all their calls, for one sample.

    Counted by positions: a linear layer's operator may see the tokens of all samples as samples, and its output's shape
    says nothing of them.
    """
    return sum(4 * layer.positions * layer.width for layer in layers)


def means_bytes(network: Network) -> int:
    """Bytes of the means of all layers' inputs that are held of one sample until calibration ends (`Coherence`).

    Args:
        network: trace of the network.
    """
    return sum(4 * layer.groups * (layer.fan_in + 1) for layer in network.layers if layer.kind != EMBEDDING)


def largest_moment(network: Network) -> int:
    """Number of entries of the largest H that is kept whole; 1 where there is none.

    Args:
        network: trace of the network.
    """
    kept_whole = [layer for layer in network.layers if layer.fan_in <= MOST_INPUTS]
    return max((layer.groups * (layer.fan_in + 1) ** 2 for layer in kept_whole), default=1)


def _see(collectors: Mapping[str, _Collector | LookupCollector], samples: int, heard: Call, output: Tensor) -> None:
    """Add a call of a layer in a batch of so many samples."""
    collectors[heard.name].see(heard, output, samples)


def _backward(functions: list[Tensor], collectors: Collection[_Collector | LookupCollector], samples: int) -> None:
    """Backpropagate the functions of so many samples one after the other."""
    for index, function in enumerate(functions, 1):
        function.backward(retain_graph=index < len(functions))  # type: ignore[no-untyped-call]
        for collector in collectors:
            collector.end_function(samples)


def _collector(layer: Layer, module: nn.Module, samples: int) -> _Collector | LookupCollector:
    if layer.kind == EMBEDDING:
        return LookupCollector(layer, module)
    return _Collector(layer, module, samples)


class _Collector:
    """Sums of one layer's statistics over batches: its inputs, and the gradients at its outputs.

    Args:
        layer: structure of the layer.
        module: the layer itself.
        samples: number of samples in all.
    """

    def __init__(self, layer: Layer, module: nn.Module, samples: int) -> None:
        self.layer = layer
        weight = module.get_parameter("weight")
        columns = layer.fan_in + 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=weight.device)

        self.columns_a_sample = max(_LEAST_COLUMNS, _COLUMNS_AN_UNKNOWN * columns) / samples
        self.gradients_a_sample = max(_LEAST_COLUMNS, _COLUMNS_AN_UNKNOWN * layer.rows) / samples
        self.is_diagonal = layer.fan_in > MOST_INPUTS
        self.second_moment = zeros(layer.groups, 1 if self.is_diagonal else columns, columns)
        self.of_block = torch.zeros_like(self.second_moment)
        self.chance = _Chance()
        self.coherence = Coherence()
        self.gradient_moment = zeros(layer.rows, layer.rows)
        self.gradients = 0  # samples times functions
        self.activation = zeros(weight.shape[1] * layer.groups)
        self.values_per_channel = 0
        self.generator = torch.Generator().manual_seed(0)
        self.samples: list[Tensor] = []

    def see(self, call: Call, output: Tensor, samples: int) -> None:
        """Add a call in a batch of so many samples: its input now, its gradients when they come."""
        self._see_input(call, samples)
        if output.requires_grad:
            on_gradient(output, partial(self._see_gradient, samples))

    def _see_input(self, call: Call, samples: int) -> None:
        x, count = call.x.float(), count_positions(call.x, call.window)
        columns = extended_columns(x, call.window, self._drawn(count, self.columns_a_sample * len(x), x.device))
        standing_for = count / columns.shape[1]  # positions for each that was drawn
        if self.is_diagonal:
            self.of_block += columns.square().sum(1, keepdim=True) * standing_for
        else:
            add_gram_(self.of_block, columns, standing_for)
        self.coherence.see_input(x, call.window, samples)
        axis = -1 if self.layer.has_channels_last else 1
        pixels = self._drawn(x.numel() // x.shape[axis], self.columns_a_sample * len(x), x.device)
        taken = at_positions(x, axis, pixels)  # (M, channels)
        self.activation += taken.abs().sum(0)
        self.values_per_channel += len(taken)
        # Drawn, not strided: a stride that divides the image's size would see the same few pixels of every
        # channel.
        values = torch.randint(x.numel(), (min(x.numel(), _DRAWN_A_SAMPLE * len(x)),), generator=self.generator)
        self.samples.append(torch.cat([x.reshape(-1)[values.to(x.device)], *map(torch.atleast_1d, x.aminmax())]))

    def _see_gradient(self, samples: int, gradient: Tensor) -> None:
        """Add a batch's gradients at the layer's outputs: (N, rows, …), (N, …, rows) of a linear layer."""
        axis = -1 if self.layer.has_channels_last else 1
        count = gradient.numel() // gradient.shape[axis]
        drawn = self._drawn(count, self.gradients_a_sample * len(gradient), gradient.device)
        taken = at_positions(gradient, axis, drawn).float()  # (M, rows)
        # The layer's positions count those of all its runs, and where it sees the positions as samples, those
        # too.
        self.gradient_moment += (taken.T @ taken) * (count / len(taken) / self.layer.positions)
        self.coherence.see_gradient(gradient.movedim(axis, -1), samples)

    def _drawn(self, count: int, most: float, device: torch.device) -> Tensor | None:
        """Positions that are drawn of `count`; None where that is all, since no more than `most` are wanted."""
        wanted = max(1, round(most))
        return None if count <= wanted else torch.randint(count, (wanted,), generator=self.generator).to(device)

    def end_function(self, samples: int) -> None:
        """The gradients of a function of so many samples are all seen."""
        self.gradients += samples
        self.coherence.end_function()

    def end_batch(self) -> None:
        """A batch is over."""
        self.coherence.end_batch()

    def end_block(self, samples: int) -> None:
        """A block of so many samples is over."""
        if not self.is_diagonal:
            mirror_(self.of_block)
            self.chance.see(self.of_block / samples)
        self.second_moment += self.of_block
        self.of_block.zero_()

    def finish(self, count: int) -> Statistics:
        """The statistics, from `count` samples."""
        sample = torch.cat(self.samples).cpu().sort().values
        if len(sample) > _RANGE_SAMPLES:
            sample = sample[torch.linspace(0, len(sample) - 1, _RANGE_SAMPLES, dtype=torch.float64).round().long()]
        order, moment = weight_order(self.layer), self.second_moment / count
        return Statistics(
            _ordered((moment + self.coherence.added(moment)).cpu(), order),
            (self.gradient_moment / self.gradients).cpu(),
            (self.activation / self.values_per_channel).cpu(),
            sample.float(),
            torch.tensor(self.chance.shrinkage()),
            torch.tensor(self.coherence.share),
        )


def _ordered(moment: Tensor, order: Tensor) -> Tensor:
    """A moment, or its diagonal, with its columns in another order."""
    return moment[:, :, order] if moment.shape[1] == 1 else moment[:, order][:, :, order]


class _Chance:
    """How much of the correlations between a layer's inputs may be chance, from blocks of samples.

    With the covariances C_b of B blocks, whose mean is C, it is a quarter of the share of chance in the squares,

        Σ Var(C_ij) / Σ C_ij²   over i ≠ j,   Var(C_ij) = Σ_b (C_b,ij - C_ij)² / (B (B - 1)),

    and Σ_b (C_b,ij - C_ij)² = Σ_b C_b,ij² - B C_ij²: one sum of matrices, and one of numbers.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self.summed: Tensor | float = 0.0
        self.squares = 0.0

    def see(self, moment: Tensor) -> None:
        """Add the second moment (g, d + 1, d + 1) of one block of samples."""
        of_block = covariance(moment)
        self.blocks += 1
        self.summed = self.summed + of_block
        self.squares += _off_diagonal_squares(of_block)

    def shrinkage(self) -> float:
        """The share to shrink by, 0 to 0.25; 0 where there is but one block."""
        if self.blocks < 2:
            return 0.0
        assert isinstance(self.summed, Tensor), "a block was seen"
        squares = _off_diagonal_squares(self.summed / self.blocks)
        variance = (self.squares - self.blocks * squares) / (self.blocks * (self.blocks - 1))
        return _SHARE * min(1.0, max(0.0, variance / squares)) if squares > 0 else 0.0


def shrunk(moment: Tensor, shrinkage: float) -> Tensor:
    """The second moment (g, d + 1, d + 1), the bias last, with its inputs' covariances times 1 - `shrinkage`.

    The means and the variances stay.
    """
    if not shrinkage:
        return moment
    change = -shrinkage * covariance(moment)
    change.diagonal(dim1=-2, dim2=-1).zero_()
    result = moment.clone()
    result[:, :-1, :-1] += change
    return result


def _off_diagonal_squares(matrix: Tensor) -> float:
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return float(matrix.square().sum(dtype=torch.float64) - diagonal.square().sum(dtype=torch.float64))
