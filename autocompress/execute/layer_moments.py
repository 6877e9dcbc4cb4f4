"""Second moments of what a layer reads and of what it misses, from positions drawn in batches of samples.

A column is what the layer reads at one output position of one sample, with a 1 behind for the bias. For the prior W₀,
the miss is r = y - W₀ x̂, so that weights W leave the squared error E‖r - (W - W₀) x̂‖²: a sum of small numbers, where
that of y would be a difference of large ones.

Shapes: g groups of a convolution (1 elsewhere), k inputs of a row (fan-in), r rows of a group, n samples, p positions
drawn in each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.menus.algebra import add_gram_, centred, gram, mirror_
from autocompress.menus.coherence import Means
from autocompress.menus.listening import Window

PIECE_ELEMENTS = 16_000_000  # most elements of the columns that are made at once: 64 MB in float32


def drawn_positions(samples: int, positions: int, wanted: int, seed: int) -> Tensor:
    """(n, p) int64 output positions, drawn for each sample without replacement; all in order where p takes them all.

    Args:
        samples: number of samples, n.
        positions: output positions of one sample.
        wanted: positions to draw in each sample.
        seed: seed of the draw.
    """
    if wanted >= positions:
        return torch.arange(positions).expand(samples, positions)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, positions, generator=generator).topk(wanted, sorted=False).indices


def drawn_columns(x: Tensor, window: Window | None, drawn: Tensor, width: int) -> Tensor:
    """What the layer reads at the drawn positions: (g, n, p, k + 1), inputs in the weight's order, then a 1.

    Args:
        x: (n, C, …) inputs of a convolution; (n, positions, C) of a linear layer.
        window: window of the convolution; None: a linear layer.
        drawn: (n, p) output positions.
        width: output positions in a row of the image; 1 for a linear layer.
    """
    if window is None:
        columns = x.gather(1, drawn[..., None].expand(-1, -1, x.shape[2]))[None]  # (1, n, p, C)
    else:
        x = F.pad(x, window.padding)
        x = x[:, :, None] if x.ndim == 3 else x
        across = x.shape[3]
        corner = drawn // width * (window.stride[0] * across) + drawn % width * window.stride[1]  # (n, p)
        flat = x.flatten(2)  # (n, C, H W)
        seen = []
        for row, column in itertools.product(*map(range, window.kernel)):
            place = corner + row * window.dilation[0] * across + column * window.dilation[1]
            seen.append(flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1)))
        columns = torch.stack(seen, 2).unflatten(1, (window.groups, -1))  # (n, g, C / g, kernel, p)
        columns = columns.flatten(2, 3).permute(1, 0, 3, 2)  # (g, n, p, k)
    return torch.cat([columns, columns.new_ones(*columns.shape[:3], 1)], 3)


def drawn_outputs(y: Tensor, is_linear: bool, drawn: Tensor) -> Tensor:
    """The outputs at the drawn positions: (n, p, channels).

    Args:
        y: (n, channels, …) outputs of a convolution; (n, positions, channels) of a linear layer.
        is_linear: whether the layer is linear.
        drawn: (n, p) output positions.
    """
    if is_linear:
        return y.gather(1, drawn[..., None].expand(-1, -1, y.shape[2]))
    flat = y.flatten(2)
    return flat.gather(2, drawn[:, None].expand(-1, flat.shape[1], -1)).mT


def in_pieces(samples: int, elements_a_sample: int) -> list[slice]:
    """Slices of a batch whose columns take at most 64 MB each, or hold one sample.

    >>> in_pieces(5, 8_000_000)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, PIECE_ELEMENTS // max(1, elements_a_sample))
    return [slice(start, min(start + step, samples)) for start in range(0, samples, step)]


@dataclass
class Sums:
    """Sums over columns, in float64, to which batches add until they are `completed`.

    Attributes:
        moment: (g, k + 1, k + 1) sum of x̂ x̂ᵀ; until then only what is on and above its diagonal counts.
        cross: (g, r, k + 1) sum of r x̂ᵀ, with the miss r.
        square: (g, r, r) sum of r rᵀ.
        columns: number of columns; that of `coherent` sums counts the means of samples too.
        samples: number of samples.
        means: (g, n, k + 1 + r) of the batches that were added: the means over each sample's p columns of x̂ and r,
            times √p. Of an entry with one column there are none.
    """

    moment: Tensor
    cross: Tensor
    square: Tensor
    columns: float = 0
    samples: int = 0
    means: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, groups: int, rows: int, columns: int, device: torch.device) -> Sums:
        """Nothing yet.

        Args:
            groups: g.
            rows: r.
            columns: k + 1.
            device: device of the columns.
        """

        def zeros(height: int, width: int) -> Tensor:
            return torch.zeros(groups, height, width, dtype=torch.float64, device=device)

        return cls(zeros(columns, columns), zeros(rows, columns), zeros(rows, rows))

    def add_(self, x: Tensor, miss: Tensor) -> None:
        """Add some samples.

        Args:
            x: (g, n, p, k + 1) float32 columns.
            miss: (g, n, p, r) float32 misses.
        """
        if x.shape[1] == 0:
            return
        flat, misses = x.flatten(1, 2), miss.flatten(1, 2)
        add_gram_(self.moment, flat)
        self.cross += misses.mT @ flat
        self.square += gram(misses)
        self.columns += flat.shape[1]
        self.samples += x.shape[1]
        if x.shape[2] > 1:
            self.means.append(torch.cat([x.mean(2), miss.mean(2)], 2) * x.shape[2] ** 0.5)

    @classmethod
    def total(cls, parts: Sequence[Sums]) -> Sums:
        """The sums over all columns of several, at least one."""
        first, *others = parts
        return cls(
            sum((part.moment for part in others), first.moment),
            sum((part.cross for part in others), first.cross),
            sum((part.square for part in others), first.square),
            sum(part.columns for part in parts),
            sum(part.samples for part in parts),
            [mean for part in parts for mean in part.means],
        )

    def completed(self) -> Sums:
        """The same with all samples added, on the CPU."""
        mirror_(self.moment)
        means = [torch.cat(self.means, 1).cpu().double()] if self.means else []
        return replace(self, moment=self.moment.cpu(), cross=self.cross.cpu(), square=self.square.cpu(), means=means)

    def seen_means(self) -> Means:
        """How the means of x̂ over samples vary beside its columns; of completed sums that have means."""
        rows, moment = torch.cat(self.means, 1)[..., : self.moment.shape[1]], self.moment / self.samples
        z, ones = rows - rows.mean(1, keepdim=True), moment[..., -1:]
        return Means.of(z, z.mT @ z / z.shape[1], centred(moment, ones, ones))

    def coherent(self, share: float, seen: Means) -> Sums:
        """The sums with those of the samples' means added, shrunk: errors that act together count for more.

        They count κ (1 - k / n) times, as there are n of them, and k unknowns to fit: with few samples a fit would make
        up for every mean by heart.

        Args:
            share: κ (1 - k / n), with κ of `menus.coherence`.
            seen: How the means vary, of these or of more samples.
        """
        if not self.means or share <= 0:
            return replace(self, means=[])
        rows = torch.cat(self.means, 1)  # (g, n, k + 1 + r)
        middle = rows.mean(1, keepdim=True)
        of_means, z = rows.shape[1] * middle.mT @ middle, rows - middle
        between = z.mT @ z
        inputs, misses = (slice(0, self.moment.shape[1]), slice(self.moment.shape[1], None))
        ones, summed = self.moment[..., -1:], self.cross[..., -1:]  # Σ x̂ and Σ r

        def added(moment: Tensor, left: slice, right: slice, within: Tensor) -> Tensor:
            return moment + share * (of_means[:, left, right] + seen.shrunk(between[:, left, right], within))

        return Sums(
            added(self.moment, inputs, inputs, centred(self.moment, ones, ones)),
            added(self.cross, misses, inputs, centred(self.cross, summed, ones)),
            added(self.square, misses, misses, self.square - summed @ summed.mT / self.columns),
            self.columns * (1 + share),
            self.samples,
        )

    def loss(self, change: Tensor, gradient_moment: Tensor) -> float:
        """Expected loss of what weights W still miss: ½ tr(G e eᵀ) nats, e = r - (W - W₀) x̂, summed over columns.

        Args:
            change: (g, r, k + 1) float64 W - W₀.
            gradient_moment: (g, r, r) float64 G of the layer's outputs.
        """
        weighed = gradient_moment @ change  # (g, r, k + 1); tr(G D Cᵀ) is the sum of (G D) ∘ C
        mended = (weighed * (change @ self.moment - 2 * self.cross)).sum()
        return max(0.0, 0.5 * float((gradient_moment * self.square).sum() + mended))
