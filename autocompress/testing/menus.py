"""Checks of what makes menus: pruning criteria and quantizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.menus.criteria import ChannelCriterion, Consumer, ElementContext, ElementCriterion
from autocompress.menus.quantizers import RoundingFunction
from autocompress.menus.rounding import Rounded, Rounding, code_range
from autocompress.testing.contract import gradient_moment, normal, require, second_moment, seeded

_WIDTHS = (1, 6, 130)  # channels of a group
_MASKED = 0.5


def check_criterion(channels: ChannelCriterion, elements: ElementCriterion | None = None) -> None:
    """Check a pruning criterion on groups of 1, 6 and 130 channels that two layers read, and on single weights.

    The order must be a permutation (n,) int64 of the group's channels, the scores finite and (r, d); both must depend
    on their arguments and the generator alone, and leave the arguments as they are.

    Args:
        channels: as for `autocompress.register_criterion`.
        elements: as for `autocompress.register_criterion`.

    Raises:
        ContractError: a rule is broken.
    """
    for width in _WIDTHS:
        consumers = [_consumer(width, 2, 4, seed=1, extra=3), _consumer(width, 1, 3, seed=2)]
        before = [tensor.clone() for consumer in consumers for tensor in vars(consumer).values()]
        order = channels(consumers, seeded(5))
        require(isinstance(order, Tensor), "A criterion must return a tensor", type(order).__name__)
        form = f"{order.dtype} of shape {tuple(order.shape)}"
        require(order.dtype == torch.int64 and order.shape == (width,), f"The order must be int64 ({width},)", form)
        is_permutation = order.sort().values.tolist() == list(range(width))
        require(is_permutation, f"The order must hold each of the channels 0 to {width - 1} once", order.tolist())
        again = channels(consumers, seeded(5))
        require(torch.equal(order, again), "The order must be the same for the same generator", again.tolist())
        after = [tensor for consumer in consumers for tensor in vars(consumer).values()]
        _require_unchanged(before, after, "consumers")
    if elements is not None:
        _check_elements(elements)


def _check_elements(elements: ElementCriterion) -> None:
    context = _element_context(4, 6)
    before = [tensor.clone() for tensor in vars(context).values()]
    score = elements(context, seeded(5))
    require(score.shape == (4, 6), "The scores must have the weight's shape (4, 6)", tuple(score.shape))
    require(bool(torch.isfinite(score).all()), "The scores must be finite", score.tolist())
    again = elements(context, seeded(5))
    require(torch.equal(score, again), "The scores must be the same for the same generator", again.tolist())
    _require_unchanged(before, list(vars(context).values()), "context")


def check_quantizer(rounding: RoundingFunction, bits: tuple[int, ...] | None = None) -> None:
    """Check a quantizer on two groups of three rows, dense and with pruned weights, at every bit-width.

    Codes must be int8 within the range of their bit-width and 0 where a weight is pruned, scales above 0, biases
    finite; a row of zeros must stay 0; what is given must stay as it is; one width must not change another's result.

    Args:
        rounding: as for `autocompress.register_quantizer`.
        bits: as for `autocompress.register_quantizer`.

    Raises:
        ContractError: a rule is broken.
    """
    widths = list(bits or range(1, 9))
    for is_masked in (False, True):
        given = _rounding(is_masked)
        before = [given.weight.clone(), given.second_moment.clone()]
        found = rounding(given, widths)
        _require_unchanged(before, [given.weight, given.second_moment], "rounding")
        require(len(found) == len(widths), f"There must be one result for each of {widths}", len(found))
        for width, rounded in zip(widths, found, strict=True):
            _check_rounded(given, rounded, width)
            (alone,) = rounding(given, [width])
            is_same = torch.equal(alone.codes, rounded.codes) and torch.equal(alone.scale, rounded.scale)
            require(is_same, f"The result at {width} bits must not depend on the other widths", "another one")


def _check_rounded(given: Rounding, rounded: Rounded, bits: int) -> None:
    shape = given.weight[..., :-1].shape  # (g, r, d)
    at = f"at {bits} bits"
    require(rounded.codes.dtype == torch.int8, f"Codes must be int8 {at}", rounded.codes.dtype)
    shapes = [tuple(each.shape) for each in (rounded.codes, rounded.scale, rounded.bias)]
    wanted = [tuple(shape), tuple(shape[:2]), tuple(shape[:2])]
    require(shapes == wanted, f"Codes, scale and bias must have the shapes {wanted} {at}", shapes)
    low, high = code_range(bits)
    ends = int(rounded.codes.min()), int(rounded.codes.max())
    require(
        low <= ends[0] and ends[1] <= high, f"Codes must lie within {low} to {high} {at}", f"{ends[0]} to {ends[1]}"
    )
    require(float(rounded.scale.min()) > 0, f"Scales must be above 0 {at}", float(rounded.scale.min()))
    require(bool(torch.isfinite(rounded.bias).all()), f"Biases must be finite {at}", rounded.bias.tolist())
    if given.mask is not None:
        kept = int((rounded.codes[~given.mask] != 0).sum())
        require(kept == 0, f"Pruned weights must get the code 0 {at}", f"{kept} others")
    zero_row = (rounded.codes * rounded.scale[..., None])[0, 1].abs().max()
    require(float(zero_row) < 1e-9, f"A row of zeros must stay 0 {at}", float(zero_row))


def _require_unchanged(before: Sequence[Tensor], after: Sequence[Tensor], what: str) -> None:
    changed = sum(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    require(changed == 0, f"The {what} must stay as they are", f"{changed} changed tensors")


def _consumer(channels: int, taps: int, rows: int, seed: int, extra: int = 0) -> Consumer:
    """A layer that reads `channels` of the group, each in `taps` columns, and `extra` columns besides."""
    columns = channels * taps + extra
    return Consumer(
        weight=normal(rows, columns + 1, seed=seed),
        second_moment=second_moment(columns, seed),
        gradient_moment=gradient_moment(rows, seed),
        columns=torch.randperm(columns, generator=seeded(seed))[: channels * taps].view(channels, taps),
        activation=normal(channels, seed=seed).abs(),
    )


def _element_context(rows: int, columns: int) -> ElementContext:
    moment = second_moment(columns, seed=0)
    return ElementContext(
        weight=normal(rows, columns, seed=3),
        inverse_diagonal=torch.linalg.inv(moment).diagonal()[:-1].repeat(rows, 1),
        moment_diagonal=moment.diagonal()[:-1].repeat(rows, 1),
        gradient_diagonal=gradient_moment(rows, seed=0).diagonal(),
    )


def _rounding(is_masked: bool, columns: int = 100) -> Rounding:
    """Two groups of three rows on correlated inputs; the second row is all 0."""
    weight = normal(2, 3, columns + 1, seed=7)
    mask = normal(2, 3, columns, seed=8) > 0 if is_masked else None
    if mask is not None:
        weight[..., :-1] *= mask
    weight[0, 1] = 0
    return Rounding(weight, torch.stack([second_moment(columns, seed=1), second_moment(columns, seed=2)]), mask)
