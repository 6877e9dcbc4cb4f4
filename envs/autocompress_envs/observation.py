"""What the agent sees before it labels a layer: dimensionless numbers, so that a policy carries over to any network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.problem.numbers import FloatArray, Labeling, layer_resources
from autocompress_envs.problem.tables import ADDITIVE, RESOURCES, Tables
from autocompress_envs.solver.pricing import Pricer

OBSERVATION_VERSION = 2
KINDS = ("conv", "depthwise", "linear")
BITS_GRID = (2, 3, 4, 5, 6, 8)
SPARSITY_GRID = (0.25, 0.5, 0.75)
SMALLEST_ERROR = 1e-12  # nats; stands for 0 in logarithms


class Observation(NamedTuple):
    """The observation before labelling layer l of L. Resources stand in the order size, macs, bitops, memory.

    | index | field             | meaning                                                              | bounds   |
    | ----- | ----------------- | -------------------------------------------------------------------- | -------- |
    | 0-2   | kind              | one-hot: conv, depthwise, linear                                     | [0, 1]   |
    | 3-6   | shares            | log10 / 6 of the layer's share of parameters and macs of the         | [-1, 0]  |
    |       |                   | original, of bytes and bitops under the reference labels             |          |
    | 7     | position          | l / L                                                                | [0, 1]   |
    | 8-9   | widths            | log2 / 16 of the original's weight columns and rows                  | [0, 1]   |
    | 10-15 | bits_errors       | log10 / 6 of the layer's error at 2, 3, 4, 5, 6, 8 bits, relative to | [-1, 1]  |
    |       |                   | the error of the reference labels of the whole network               |          |
    | 16-18 | sparsity_errors   | the same at sparsity 0.25, 0.5, 0.75, summed over all layers that    | [-1, 1]  |
    |       |                   | read the group; 0 where the layer has no sparsity to choose          |          |
    | 19    | chooses_sparsity  | 1 where the layer has a sparsity to choose (owns a group)            | [0, 1]   |
    | 20-23 | spent             | share of every limit that the labels so far use                      | [0, 1]   |
    | 24-27 | remaining         | 1 - spent                                                            | [0, 1]   |
    | 28-31 | cheapest_rest     | share of every limit that the rest needs at least                    | [0, 1]   |
    | 32-34 | previous_action   | the action executed at the layer before (see below)                  | [-1, 1]  |
    | 35-38 | budget            | limit / original, 1 for resources without a limit                    | [0, 1]   |
    | 39-41 | reference_label   | sparsity, log2(weight bits) / 5, log2(activation bits) / 5           | [0, 1]   |
    | 42-43 | reference_errors  | log10 / 6 of the share of the reference labels' error that the layer | [-1, 0]  |
    |       |                   | makes: pruning of the group that it owns, and rounding               |          |
    | 44    | reference_loss    | log10 / 6 of the error (nats) of the reference labels of the whole   | [-1, 1]  |
    |       |                   | network: whether the budget is mild or cruel                         |          |
    | 45    | depth             | log2 / 16 of L                                                       | [0, 1]   |

    Values beyond the bounds are clipped to them. Reference labels are the solver's at price action 0 for the same
    budget. Resources without a limit are measured against the original. `spent` counts what no label changes from
    the start, and for memory the peak of the tensors that labelled layers read. With `price` actions no label is
    known before the end: the reference labels stand for those so far. Errors are interpolated over the layer's menu
    (in logs, at the highest other bits), flat beyond its ends. `previous_action` is on the scale of the action
    spaces: (pruning, bits, 0) for `price`, else (sparsity, weight bits, activation bits) of the label on its menu.
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
        """All fields in order, clipped to the bounds: (46,) float32."""
        return np.clip(np.concatenate(self), LOW, HIGH).astype(np.float32)


def _bounds(value_of_signed: float, value_of_share: float, value_of_log_share: float) -> FloatArray:
    """One bound of every field, by what kind of number it is."""
    signed, share, log_share = value_of_signed, value_of_share, value_of_log_share
    return np.concatenate(
        Observation(
            kind=np.full(len(KINDS), share),
            shares=np.full(4, log_share),
            position=np.full(1, share),
            widths=np.full(2, share),
            bits_errors=np.full(len(BITS_GRID), signed),
            sparsity_errors=np.full(len(SPARSITY_GRID), signed),
            chooses_sparsity=np.full(1, share),
            spent=np.full(len(RESOURCES), share),
            remaining=np.full(len(RESOURCES), share),
            cheapest_rest=np.full(len(RESOURCES), share),
            previous_action=np.full(3, signed),
            budget=np.full(len(RESOURCES), share),
            reference_label=np.full(3, share),
            reference_errors=np.full(2, log_share),
            reference_loss=np.full(1, signed),
            depth=np.full(1, share),
        )
    )


LOW: FloatArray = _bounds(-1.0, 0.0, -1.0)
HIGH: FloatArray = _bounds(1.0, 1.0, 0.0)


class Observer:
    """Builds observations for one budget; all that does not change within an episode is computed once.

    Args:
        pricer: the solver for the budget. reference: its labels at price action 0.
    """

    def __init__(self, pricer: Pricer, reference: Labeling) -> None:
        self._tables, self._reference = pricer.tables, reference
        original = pricer.problem.original()
        self._limits = np.array([pricer.limits.get(name, original[name]) for name in RESOURCES], dtype=np.float64)
        self._limits = np.maximum(self._limits, 1.0)
        self._budget = self._limits / np.maximum([original[name] for name in RESOURCES], 1)
        self._budget[[name not in pricer.limits for name in RESOURCES]] = 1.0
        total = max(pricer.error(reference), SMALLEST_ERROR)
        self._kind = np.array([[layer.kind == kind for kind in KINDS] for layer in pricer.problem.layers], dtype=float)
        self._shares = _shares(self._tables, reference)
        self._widths = np.log2(np.maximum(self._tables.problem.costs.widths(original_kept(self._tables)), 1)).T / 16
        self._bits_errors = _bits_errors(self._tables, total)
        self._sparsity_errors = _sparsity_errors(self._tables, total)
        self._reference_label = _reference_label(self._tables, reference)
        parts = LossParts(pricer.problem, self._tables)(reference)
        self._reference_errors = _log_error(parts, total)
        self._reference_loss = _log_error(np.array([total]), 1.0)
        self._depth = np.log2([self._tables.layer_count]) / 16
        self._expected: dict[int, tuple[FloatArray, FloatArray]] = {}

    def observe(self, step: int, so_far: Labeling, previous_action: FloatArray) -> Observation:
        """What is seen at `step` (0 to L; at L the episode is over and the last layer is shown again).

        Args:
            step: how many layers are labelled. so_far: labels, of which the first `step` count.
            previous_action: (3,) in [-1, 1].
        """
        layer = min(step, self._tables.layer_count - 1)
        spent, rest = self._progress(step, so_far)
        return Observation(
            kind=self._kind[layer],
            shares=self._shares[layer],
            position=np.array([step / self._tables.layer_count]),
            widths=self._widths[layer],
            bits_errors=self._bits_errors[layer],
            sparsity_errors=self._sparsity_errors[layer],
            chooses_sparsity=np.array([float(self._tables.counts[layer, 0] > 1)]),
            spent=spent,
            remaining=1.0 - spent,
            cheapest_rest=rest,
            previous_action=previous_action,
            budget=self._budget,
            reference_label=self._reference_label[layer],
            reference_errors=self._reference_errors[layer],
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


def progress(tables: Tables, so_far: Labeling, decided: int) -> tuple[FloatArray, FloatArray]:
    """(4,) amounts spent by the first `decided` labels, and (4,) the least that all layers together will need."""
    costs, rows = tables.problem.costs, np.arange(decided)
    sparsity = np.concatenate([so_far.sparsity[:decided], tables.kept.argmin(1)[decided:]])
    kept = tables.kept_channels(sparsity)
    fan_in, out = costs.widths(kept)
    activations = np.concatenate(
        [tables.activation_bits[rows, so_far.activation_bits[:decided]], tables.activation_bits.min(1)[decided:]]
    )
    before = layer_resources(
        fan_in[:decided],
        out[:decided],
        costs.positions[:decided],
        costs.has_bias[:decided],
        tables.weight_bits[rows, so_far.weight_bits[:decided]],
        activations[:decided],
        tables.sparsities[rows, so_far.sparsity[:decided]],
        costs.granularity,
    )
    after = tables.option_costs(fan_in[decided:], out[decided:], decided)
    spent = {name: int(before[name].sum() + costs.fixed(name, kept)) for name in ADDITIVE}
    least = {name: spent[name] + int(after[name].min((1, 2, 3)).sum()) for name in ADDITIVE}
    least["memory"] = int(costs.memory(kept, activations))
    is_read = costs.tensor_readers[:, :decided].any(1)
    bits = np.where(costs.tensor_readers[:, :decided], activations[:decided], 0).max(1, initial=0)
    tensor_bytes = -(-(costs.tensor_const + kept @ costs.tensor_coef.T) * bits // 8) * is_read
    spent["memory"] = int((costs.alive.astype(np.int64) @ tensor_bytes).max(initial=0))
    return np.array([float(spent[name]) for name in RESOURCES]), np.array([float(least[name]) for name in RESOURCES])


def original_kept(tables: Tables) -> npt.NDArray[np.int64]:
    """(G,) all channels."""
    return tables.problem.costs.group_width


def _log_share(amounts: FloatArray) -> FloatArray:
    shares = amounts / max(float(amounts.sum()), 1.0)
    return np.asarray(np.log10(np.maximum(shares, 1e-6)) / 6)


def _shares(tables: Tables, reference: Labeling) -> FloatArray:
    """(L, 4)."""
    costs, rows = tables.problem.costs, np.arange(tables.layer_count)
    fan_in, out = costs.widths(original_kept(tables))
    kept_fan_in, kept_out = costs.widths(tables.kept_channels(reference.sparsity))
    labelled = layer_resources(
        kept_fan_in,
        kept_out,
        costs.positions,
        costs.has_bias,
        tables.weight_bits[rows, reference.weight_bits],
        tables.activation_bits[rows, reference.activation_bits],
        tables.sparsities[rows, reference.sparsity],
        costs.granularity,
    )
    weights = fan_in * out
    columns = (weights, weights * costs.positions, labelled["size"], labelled["bitops"])
    return np.stack([_log_share(column.astype(np.float64)) for column in columns], axis=1)


def _log_error(errors: FloatArray, total: float) -> FloatArray:
    return np.asarray(np.log10(np.maximum(errors, SMALLEST_ERROR) / total) / 6)


def _bits_errors(tables: Tables, total: float) -> FloatArray:
    """(L, 6): unpruned, at the highest activation bits."""
    curves = _log_error(tables.errors[:, 0, :, -1], total)
    return np.stack([np.interp(BITS_GRID, bits, curve) for bits, curve in zip(tables.weight_bits, curves, strict=True)])


def _sparsity_errors(tables: Tables, total: float) -> FloatArray:
    """(L, 3): what the owner's sparsity adds at all readers, at the highest bits."""
    curves = _log_error(tables.errors_by_owner(), total)
    grid = [np.interp(SPARSITY_GRID, menu, curve) for menu, curve in zip(tables.sparsities, curves, strict=True)]
    return np.where(tables.counts[:, :1] > 1, np.stack(grid), 0.0)


def _reference_label(tables: Tables, reference: Labeling) -> FloatArray:
    """(L, 3)."""
    rows = np.arange(tables.layer_count)
    return np.stack(
        [
            tables.sparsities[rows, reference.sparsity],
            np.log2(tables.weight_bits[rows, reference.weight_bits]) / 5,
            np.log2(tables.activation_bits[rows, reference.activation_bits]) / 5,
        ],
        axis=1,
    )
