"""The observation of the environment: dimensionless numbers, so that a policy carries over to any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem import FloatArray, Labeling
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver

OBSERVATION_VERSION = 2
"""Version of the fields and their order; a policy is loaded only where it was trained on the same version."""

SHOWN = ("size", "macs", "bitops", "memory")
"""Resources that the observation shows, in its order. The masks meet budgets of others, which are not shown."""

KINDS = ("conv", "depthwise", "linear")
"""Kinds of layers, in the order of the observation's one-hot code."""

BITS_GRID = (2, 3, 4, 5, 6, 8)  # weight bits of the field `bits_errors`
SPARSITY_GRID = (0.25, 0.5, 0.75)  # sparsities of the field `sparsity_errors`
SMALLEST_ERROR = 1e-12  # nats; stands for 0 in logarithms


class Observation(NamedTuple):
    """The observation before layer l of L is labelled: 46 dimensionless numbers.

    Resources stand in the order size, macs, bitops, memory. The reference is the solver's labelling for the
    same budget, its loss E the expected loss of the whole network in nats.

    | index | field            | elements in order                       | unit                | low | high |
    | ----- | ---------------- | --------------------------------------- | ------------------- | --- | ---- |
    | 0-2   | kind             | conv, depthwise, linear                 | 1 for its kind      | 0   | 1    |
    | 3-6   | shares           | parameters, macs, bytes, bitops         | log10(share) / 6    | -1  | 0    |
    | 7     | position         | l                                       | l / L               | 0   | 1    |
    | 8-9   | widths           | weight columns, weight rows             | log2 / 16           | 0   | 1    |
    | 10-15 | bits_errors      | loss at 2, 3, 4, 5, 6, 8 weight bits    | log10(loss / E) / 6 | -1  | 1    |
    | 16-18 | sparsity_errors  | loss at sparsity 0.25, 0.5, 0.75        | log10(loss / E) / 6 | -1  | 1    |
    | 19    | chooses_sparsity | whether the menu has several sparsities | 0 or 1              | 0   | 1    |
    | 20-23 | spent            | resources that the labels so far take   | share of the limit  | 0   | 1    |
    | 24-27 | remaining        | resources that are left                 | 1 - spent           | 0   | 1    |
    | 28-31 | cheapest_rest    | resources that the rest needs at least  | share of the limit  | 0   | 1    |
    | 32-34 | previous_action  | the action executed before              | that of the action  | -1  | 1    |
    | 35-38 | budget           | limits                                  | limit / original    | 0   | 1    |
    | 39-41 | reference_label  | sparsity, weight bits, activation bits  | fraction, log2 / 5  | 0   | 1    |
    | 42-43 | reference_errors | the layer's pruning and quantization    | log10(part / E) / 6 | -1  | 0    |
    | 44    | reference_loss   | E in nats                               | log10(E) / 6        | -1  | 1    |
    | 45    | depth            | L                                       | log2(L) / 16        | 0   | 1    |

    Values beyond the bounds are clipped to them.

    - `shares`: shares of the network's total. Parameters and macs are the original's, bytes and bitops the
      reference's. `widths` are the original's.
    - `bits_errors`: expected loss of the unpruned layer of full rank at its highest activation bits. `sparsity_errors`:
      expected loss summed over all layers that read the owned group, at the highest bits; 0 where there is no
      sparsity to choose. Both are interpolated over the layer's menu, linearly in the logarithm, and flat
      beyond its ends.
    - `spent` holds what no label can change from the start; for memory it is the peak of the tensors that
      labelled layers read. With `price` actions no label is known before the end, and the reference stands
      for those so far.
    - Resources without a limit are measured against the original, and their `budget` is 1.
    - `previous_action`: (pruning, quantization, 0) for `price`; otherwise sparsity, weight bits and
      activation bits of the label, on the scale of `actions.menu_coordinates`. Zeros before the first action.
    - `reference_label`: sparsity as the fraction removed, and log2 / 5 of both bits.
    - `reference_errors`: expected losses of pruning the group that the layer owns, and of quantizing the
      layer, as in `problem.loss_parts`.
    - `reference_loss`: low where the budget is mild, high where it is strict.
    """

    kind: FloatArray
    shares: FloatArray
    position: FloatArray
    widths: FloatArray
    bits_errors: FloatArray
    sparsity_errors: FloatArray
    chooses_sparsity: FloatArray
    spent: FloatArray
    remaining: FloatArray
    cheapest_rest: FloatArray
    previous_action: FloatArray
    budget: FloatArray
    reference_label: FloatArray
    reference_errors: FloatArray
    reference_loss: FloatArray
    depth: FloatArray

    def vector(self) -> npt.NDArray[np.float32]:
        """(46,) float32 all fields in order, clipped to the bounds."""
        return np.clip(np.concatenate(self), LOW, HIGH).astype(np.float32)


def _bounds(signed: float, share: float, log_share: float) -> FloatArray:
    """(46,) lower or upper bounds, from that of signed numbers, of shares, and of logarithms of shares."""
    return np.concatenate(
        Observation(
            kind=np.full(len(KINDS), share),
            shares=np.full(4, log_share),
            position=np.full(1, share),
            widths=np.full(2, share),
            bits_errors=np.full(len(BITS_GRID), signed),
            sparsity_errors=np.full(len(SPARSITY_GRID), signed),
            chooses_sparsity=np.full(1, share),
            spent=np.full(len(SHOWN), share),
            remaining=np.full(len(SHOWN), share),
            cheapest_rest=np.full(len(SHOWN), share),
            previous_action=np.full(3, signed),
            budget=np.full(len(SHOWN), share),
            reference_label=np.full(3, share),
            reference_errors=np.full(2, log_share),
            reference_loss=np.full(1, signed),
            depth=np.full(1, share),
        )
    )


LOW: FloatArray = _bounds(signed=-1.0, share=0.0, log_share=-1.0)
"""(46,) lower bounds of the observation."""

HIGH: FloatArray = _bounds(signed=1.0, share=1.0, log_share=0.0)
"""(46,) upper bounds of the observation."""


class Observer:
    """Builder of observations for one budget; all that does not change within an episode is computed once.

    Args:
        solver: solver of the problem under its budget.
        reference: the solver's labelling at price action 0.
    """

    def __init__(self, solver: Solver, reference: Labeling) -> None:
        self._tables, self._reference = solver.tables, reference
        original = solver.problem.original()
        self._limits = np.array([solver.limits.get(name, original[name]) for name in SHOWN], dtype=np.float64)
        self._limits = np.maximum(self._limits, 1.0)
        self._budget = self._limits / np.maximum([original[name] for name in SHOWN], 1)
        self._budget[[name not in solver.limits for name in SHOWN]] = 1.0
        total = max(solver.error(reference), SMALLEST_ERROR)
        self._kind = np.array([[layer.kind == kind for kind in KINDS] for layer in solver.problem.layers], dtype=float)
        self._features = static_features(solver, reference)
        self._reference_loss = _log_error(np.array([total]), 1.0)
        self._depth = np.log2([self._tables.layer_count]) / 16
        self._expected: dict[int, tuple[FloatArray, FloatArray]] = {}

    def observe(self, step: int, so_far: Labeling, previous_action: FloatArray) -> Observation:
        """The observation after `step` layers were labelled.

        Args:
            step: number of labelled layers, 0 to L. At L the episode is over, and the last layer is shown
                again.
            so_far: labels, of which the first `step` count.
            previous_action: (3,) coordinates of the last executed action, in [-1, 1].
        """
        layer = min(step, self._tables.layer_count - 1)
        spent, rest = self._progress(step, so_far)
        return Observation(
            kind=self._kind[layer],
            shares=self._features.shares[layer],
            position=np.array([step / self._tables.layer_count]),
            widths=self._features.widths[layer],
            bits_errors=self._features.bits_errors[layer],
            sparsity_errors=self._features.sparsity_errors[layer],
            chooses_sparsity=np.array([float(self._tables.counts[layer, 0] > 1)]),
            spent=spent,
            remaining=1.0 - spent,
            cheapest_rest=rest,
            previous_action=previous_action,
            budget=self._budget,
            reference_label=self._features.reference_label[layer],
            reference_errors=self._features.reference_errors[layer],
            reference_loss=self._reference_loss,
            depth=self._depth,
        )

    def _progress(self, step: int, so_far: Labeling) -> tuple[FloatArray, FloatArray]:
        """(4,) shares of the limits: spent so far, and needed by the cheapest rest."""
        if so_far is self._reference and step in self._expected:
            return self._expected[step]
        spent, least = progress(self._tables, so_far, step)
        shares = spent / self._limits, np.maximum(least - spent, 0.0) / self._limits
        if so_far is self._reference:
            self._expected[step] = shares
        return shares


class StaticFeatures(NamedTuple):
    """Features of all layers that no label changes; units and order as in `Observation`.

    Attributes:
        shares: (L, 4) shares of parameters, macs, bytes and bitops.
        widths: (L, 2) weight columns and weight rows.
        bits_errors: (L, 6) expected losses at the bits of `BITS_GRID`.
        sparsity_errors: (L, 3) expected losses at the sparsities of `SPARSITY_GRID`.
        reference_label: (L, 3) the reference's label.
        reference_errors: (L, 2) its expected losses of pruning and rounding.
    """

    shares: FloatArray
    widths: FloatArray
    bits_errors: FloatArray
    sparsity_errors: FloatArray
    reference_label: FloatArray
    reference_errors: FloatArray


def static_features(solver: Solver, reference: Labeling) -> StaticFeatures:
    """The features of all layers that no label changes.

    Args:
        solver: solver of the problem under its budget.
        reference: the solver's labelling at price action 0.
    """
    tables, total = solver.tables, max(solver.error(reference), SMALLEST_ERROR)
    return StaticFeatures(
        _shares(tables, reference),
        np.log2(np.maximum(tables.problem.costs.widths(original_kept(tables)), 1)).T / 16,
        _bits_errors(tables, total),
        _sparsity_errors(tables, total),
        _reference_label(tables, reference),
        _log_error(LossParts(solver.problem, tables)(reference), total),
    )


def progress(
    tables: Tables, so_far: Labeling, decided: int, names: Sequence[str] = SHOWN
) -> tuple[FloatArray, FloatArray]:
    """Amounts of all resources that the first labels take, and that the whole network needs at least.

    Undecided groups count with their fewest channels, undecided layers with their cheapest bits.

    Args:
        tables: padded menus of the problem.
        so_far: labels, of which the first `decided` count.
        decided: number of labelled layers, 0 to L.
        names: resources to count. Default: `SHOWN`.

    Returns:
        (R,) amounts spent, and (R,) least amounts of all layers together, in the order of `names`; 0 for a resource
        that the cost model does not know.
    """
    costs, rows = tables.problem.costs, np.arange(decided)
    sparsity = np.concatenate([so_far.sparsity[:decided], tables.kept.argmin(1)[decided:]])
    kept = tables.kept_channels(sparsity)
    fan_in, out = costs.widths(kept)
    activations = np.concatenate(
        [tables.activation_bits[rows, so_far.activation_bits[:decided]], tables.activation_bits.min(1)[decided:]]
    )
    before = costs.of_layers(
        rows,
        fan_in[:decided],
        out[:decided],
        tables.weight_bits[rows, so_far.weight_bits[:decided]],
        activations[:decided],
        tables.sparsities[rows, so_far.sparsity[:decided]],
        tables.ranks[rows, so_far.weight_bits[:decided]],
    )
    after = tables.option_costs(fan_in[decided:], out[decided:], slice(decided, None))
    spent = {name: int(before[name].sum() + costs.fixed(name, kept)) for name in costs.additive}
    least = {name: spent[name] + int(after[name].min((1, 2, 3)).sum()) for name in costs.additive}
    least["memory"] = int(costs.memory(kept, activations))
    is_read = costs.tensor_readers[:, :decided].any(1)
    bits = np.where(costs.tensor_readers[:, :decided], activations[:decided], 0).max(1, initial=0)
    tensor_bytes = -(-(costs.tensor_const + kept @ costs.tensor_coef.T) * bits // 8) * is_read
    spent["memory"] = int((costs.alive.astype(np.int64) @ tensor_bytes).max(initial=0))
    found = [[float(amounts.get(name, 0)) for name in names] for amounts in (spent, least)]
    return np.array(found[0]), np.array(found[1])


def original_kept(tables: Tables) -> npt.NDArray[np.int64]:
    """(G,) channels of every group in the original."""
    return tables.problem.costs.group_width


def _log_share(amounts: FloatArray) -> FloatArray:
    """(L,) log10 / 6 of the layers' shares of a total, at least -1, from amounts (L,)."""
    shares = amounts / max(float(amounts.sum()), 1.0)
    return np.asarray(np.log10(np.maximum(shares, 1e-6)) / 6)


def _shares(tables: Tables, reference: Labeling) -> FloatArray:
    """(L, 4) the field `shares` of all layers."""
    costs, rows = tables.problem.costs, np.arange(tables.layer_count)
    fan_in, out = costs.widths(original_kept(tables))
    kept_fan_in, kept_out = costs.widths(tables.kept_channels(reference.sparsity))
    labelled = costs.of_layers(
        rows,
        kept_fan_in,
        kept_out,
        tables.weight_bits[rows, reference.weight_bits],
        tables.activation_bits[rows, reference.activation_bits],
        tables.sparsities[rows, reference.sparsity],
        tables.ranks[rows, reference.weight_bits],
    )
    weights = fan_in * out
    columns = (weights, weights * costs.positions, labelled["size"], labelled["bitops"])
    return np.stack([_log_share(column.astype(np.float64)) for column in columns], axis=1)


def _log_error(errors: FloatArray, total: float) -> FloatArray:
    """log10(loss / total) / 6 of expected losses of any shape, in nats."""
    return np.asarray(np.log10(np.maximum(errors, SMALLEST_ERROR) / total) / 6)


def _bits_errors(tables: Tables, total: float) -> FloatArray:
    """(L, 6) the field `bits_errors` of all layers: unpruned, at the highest activation bits."""
    curves = _log_error(tables.errors[:, 0, :, -1], total)
    whole = [ranks == 0 for ranks in tables.ranks]  # low ranks have no place on a grid of bits
    rows = zip(tables.weight_bits, curves, whole, strict=True)
    return np.stack([np.interp(BITS_GRID, bits[each], curve[each]) for bits, curve, each in rows])


def _sparsity_errors(tables: Tables, total: float) -> FloatArray:
    """(L, 3) the field `sparsity_errors` of all layers: losses at all readers, at the highest bits."""
    curves = _log_error(tables.errors_by_owner(), total)
    grid = [np.interp(SPARSITY_GRID, menu, curve) for menu, curve in zip(tables.sparsities, curves, strict=True)]
    return np.where(tables.counts[:, :1] > 1, np.stack(grid), 0.0)


def _reference_label(tables: Tables, reference: Labeling) -> FloatArray:
    """(L, 3) the field `reference_label` of all layers."""
    rows = np.arange(tables.layer_count)
    return np.stack(
        [
            tables.sparsities[rows, reference.sparsity],
            np.log2(tables.weight_bits[rows, reference.weight_bits]) / 5,
            np.log2(tables.activation_bits[rows, reference.activation_bits]) / 5,
        ],
        axis=1,
    )
