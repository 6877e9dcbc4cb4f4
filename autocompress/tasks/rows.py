"""Rows: what outputs say, as logits (N, P, K): P rows of every sample, over K classes.

Two networks are compared by the divergence of class probabilities, KL(softmax r ‖ softmax r'), averaged over rows.

*Logits of classes* are such rows. Of many positions, a fixed set is drawn; of positions that a mask marks as padding,
none.

*Numbers* become such rows. A number z in units of its spread, read with a normal error of one spread, is a normal
distribution around z; on a grid of points c one spread apart its logits are

    r_c = z c - c² / 2,          and          KL(softmax r ‖ softmax r') = ½ (z - z')²

up to one part in 10^8 (the grid's step is one standard deviation, and Poisson's formula has the rest): the Gaussian
divergence, and nothing above has to know that there are no classes. D numbers are D rows, or, where D is large, a few
random sums of all of them: with independent signs g_i, E[(Σ g_i x_i)²] = Σ x_i².

*Directions* of unit length u are numbers with spread 1: ½ ‖u - u'‖² = 1 - cos(u, u').
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import InputError
from autocompress.tasks.outputs import Outputs

_MOST_ROWS = 64  # of a sample …
_MOST_LOGITS = 16_384  # … whose rows have so many logits in all; one row always counts
_SUMS = 16  # random sums of more numbers than that
_MOST_NUMBERS = 16_384  # numbers that enter the sums
_TAIL = 6  # spreads that the grid goes on beyond the numbers of the original
_FARTHEST = 120  # spreads from the mean where the grid ends in any case
_LEAST_SPREAD = 0.1  # of one of many numbers, in typical spreads: what hardly moves must not weigh without bound
_CONSTANT = 1e-4  # spread of a number that counts as constant, as a share of its size
_NOTHING = -1e4  # logit of a class that is no class


@dataclass(frozen=True, eq=False)
class _Held:
    """Tensors that follow the outputs to their device; copies are kept, as rows are taken at every pass."""

    _copies: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def _at(self, tensor: Tensor, device: torch.device) -> Tensor:
        key = (id(tensor), device)
        if key not in self._copies:
            self._copies[key] = tensor.to(device)
        return self._copies[key]


@dataclass(frozen=True, eq=False)
class Classes(_Held):
    """Rows of an output that holds logits of classes at M positions.

    Attributes:
        output: number of the output.
        axis: axis of the classes: 1, or -1 for the last.
        positions: (P,) numbers of the positions that are taken; where a mask says which are valid, P in all are taken
            from the valid ones, evenly spread.
        mask: number of the input that is 0 at padding, (N, M); None: all positions are valid.
    """

    output: int
    axis: int
    positions: Tensor
    mask: int | None = None

    def __call__(self, outputs: Outputs, inputs: tuple[Tensor, ...]) -> Tensor:
        """Rows (N, P, K)."""
        logits = outputs[self.output].float().movedim(self.axis, -1)
        flat = logits.reshape(len(logits), -1, logits.shape[-1])  # (N, M, K)
        if self.mask is None:
            return flat[:, self._at(self.positions, flat.device)]
        taken = valid_positions(inputs[self.mask], len(self.positions)).to(flat.device)
        return flat.gather(1, taken[:, :, None].expand(-1, -1, flat.shape[2]))


def valid_positions(mask: Tensor, count: int) -> Tensor:
    """(N, count) numbers of valid positions, evenly spread over the valid ones of each sample.

    >>> valid_positions(torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]), 2)
    tensor([[1, 3],
            [1, 2]])

    Args:
        mask: (N, M), 0 at padding; a sample without any valid position is taken as if all were valid.
        count: number of positions.
    """
    valid = mask != 0
    valid = valid | ~valid.any(1, keepdim=True)
    order = torch.sort((~valid).to(torch.uint8), dim=1, stable=True).indices  # the valid ones first, in order
    share = (torch.arange(count, device=mask.device) + 0.5) / count  # (P,)
    found: Tensor = order.gather(1, (valid.sum(1, keepdim=True) * share).long())
    return found


def classes(outputs: Outputs, output: int, axis: int, mask: int | None = None) -> Classes:
    """Rows of an output that holds logits (N, K, …) or (N, …, K).

    Args:
        outputs: outputs of the original on some samples; only their shapes count.
        output: number of the output.
        axis: axis of the classes, 1 or -1.
        mask: number of the input that is 0 at padding; None: all positions are valid.
    """
    logits = outputs[output].movedim(axis, -1)
    positions, width = math.prod(logits.shape[1:-1]), logits.shape[-1]
    count = max(1, min(positions, _MOST_ROWS, _MOST_LOGITS // width))
    drawn = torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:count].sort().values
    return Classes(output, axis, drawn, mask)


@dataclass(frozen=True, eq=False)
class Numbers(_Held):
    """Rows of an output that holds D numbers.

    Attributes:
        output: number of the output.
        centre: (D,) numbers that are taken from them.
        scale: (D,) numbers that they are then divided by.
        chosen: (C,) numbers of those that enter the rows.
        signs: (C, P) weights of the sums that are taken of them; None: P = C, each is a row. The mean over P of the
            squared sums is, on average over signs, that of the squared numbers, or of directions their sum.
        grid: (K,) points of the grid, one apart.
        directions: whether numbers on the last axis are first brought to length 1, and their positions share a mean.
        mask: number of the input that is 0 at padding, for directions at M positions; None: all positions are valid.
    """

    output: int
    centre: Tensor
    scale: Tensor
    chosen: Tensor
    signs: Tensor | None
    grid: Tensor
    directions: bool = False
    mask: int | None = None

    def __call__(self, outputs: Outputs, inputs: tuple[Tensor, ...]) -> Tensor:
        """Rows (N, P, K)."""
        sums = self.sums(outputs, inputs)
        grid = self._at(self.grid, sums.device)
        return sums[:, :, None] * grid - grid.square() / 2

    def sums(self, outputs: Outputs, inputs: tuple[Tensor, ...]) -> Tensor:
        """(N, P) numbers in units of their spread, or sums of them."""
        x = outputs[self.output].float()
        if self.directions:
            x = _directions(x, None if self.mask is None else inputs[self.mask])
        x, device = x.reshape(len(x), -1), x.device
        x = (x - self._at(self.centre, device)) / self._at(self.scale, device)
        x = x[:, self._at(self.chosen, device)]
        mixed: Tensor = x if self.signs is None else x @ self._at(self.signs, device)
        return mixed


def _directions(x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, …, D) of length 1 along the last axis, over √M for M positions, padding left out."""
    unit: Tensor = F.normalize(x, dim=-1)
    if mask is None:
        return unit / math.sqrt(unit.shape[1:-1].numel())
    valid = (mask != 0).to(unit)[..., None]  # (N, T, 1)
    return unit * valid / valid.sum(1, keepdim=True).clamp(min=1).sqrt()


def numbers(outputs: Outputs, output: int) -> Numbers:
    """Rows of an output that holds numbers, each in units of its spread over the samples.

    The divergence is ½ Δ² in these units, averaged over the numbers. In maps (N, C, H, W), numbers of a channel share a
    spread.

    Raises:
        InputError: the numbers are the same for all samples.
    """
    maps = outputs[output].float()
    x = maps.reshape(len(maps), -1)
    centre, spread = x.mean(0), x.std(0, correction=0)  # (D,)
    if maps.ndim > 3:
        by_channel = maps.transpose(0, 1).flatten(1)  # (C, N · positions)
        positions = math.prod(maps.shape[2:])
        centre, spread = (
            each.repeat_interleave(positions) for each in (by_channel.mean(1), by_channel.std(1, correction=0))
        )
    typical = spread.square().mean().sqrt()
    if not bool(typical > 0):
        raise InputError(
            f"`model` must give numbers that differ between the samples, got {float(x[0, 0]):g} for all {len(x)}."
        )
    chosen, signs = _sums(x.shape[1])
    if signs is None:  # a few numbers have a unit each, and a spread that may be any
        size = x.square().mean(0).sqrt()
        scale = torch.where(spread > _CONSTANT * size, spread, torch.maximum(size, typical))
    else:
        scale = spread.clamp(min=float(_LEAST_SPREAD * typical))
    if signs is not None:
        signs = signs / len(chosen) ** 0.5
    return _with_grid(Numbers(output, centre, scale, chosen, signs, torch.zeros(1)), outputs, ())


def directions(outputs: Outputs, inputs: tuple[Tensor, ...], output: int, mask: int | None = None) -> Numbers:
    """Rows of an output that holds vectors of which only the direction counts; the divergence is 1 - cosine.

    Args:
        outputs: outputs of the original on some samples, (N, …, D).
        inputs: the inputs that they belong to.
        output: number of the output.
        mask: number of the input that is 0 at padding; None: all positions are valid.
    """
    x = outputs[output]
    count = math.prod(x.shape[1:])
    chosen, signs = _sums(count)
    signs = count**0.5 * torch.eye(count) if signs is None else signs * (count / len(chosen)) ** 0.5
    ones, zeros = torch.ones(count), torch.zeros(count)
    return _with_grid(Numbers(output, zeros, ones, chosen, signs, torch.zeros(1), True, mask), outputs, inputs)


def _sums(count: int) -> tuple[Tensor, Tensor | None]:
    """Which of `count` numbers enter the rows, and the signs (C, P) of their sums; None: each is a row of its own."""
    if count <= _SUMS:
        return torch.arange(count), None
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(count, generator=generator)[:_MOST_NUMBERS].sort().values
    return chosen, torch.randint(0, 2, (len(chosen), _SUMS), generator=generator).float() * 2 - 1


def _with_grid(rows: Numbers, outputs: Outputs, inputs: tuple[Tensor, ...]) -> Numbers:
    """With the grid that the original's numbers ask for."""
    found = rows.sums(outputs, inputs)
    low = max(-_FARTHEST, math.floor(float(found.min())) - _TAIL)
    high = min(_FARTHEST, math.ceil(float(found.max())) + _TAIL)
    grid = torch.arange(min(low, high - 1), max(low + 1, high) + 1, dtype=torch.float32)
    return replace(rows, grid=grid)


@dataclass(frozen=True, eq=False)
class Several:
    """Rows of several outputs, each of which counts as much as the others.

    Attributes:
        parts: rows of every output.
    """

    parts: Sequence[Classes | Numbers]

    def __call__(self, outputs: Outputs, inputs: tuple[Tensor, ...]) -> Tensor:
        """Rows (N, P, K): those of the outputs one after the other, repeated where an output has fewer."""
        found = [part(outputs, inputs) for part in self.parts]
        count, width = max(each.shape[1] for each in found), max(each.shape[2] for each in found)
        full = []
        for each in found:
            repeated = each[:, torch.arange(count, device=each.device) % each.shape[1]]
            full.append(F.pad(repeated, (0, width - each.shape[2]), value=_NOTHING))
        return torch.cat(full, 1)
