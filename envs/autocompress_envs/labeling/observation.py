"""Observation of version 1: the layers as one matrix, the next layer's options as another, and the budgets.

All numbers are dimensionless, so a policy carries over to other networks, menus and budgets. E is the expected
divergence J of the reference plan (`forecast`), which is the solver's. Differences of losses are counted in E / L, the
reference's share a layer; differences of costs in limit / L. `asinh` makes large ones small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autocompress_envs.actions import label_at
from autocompress_envs.labeling.forecast import Forecast, labels_at
from autocompress_envs.labeling.ledger import Ledger
from autocompress_envs.observation import static_features
from autocompress_envs.problem import BoolArray, FloatArray, Labeling
from autocompress_envs.problem.tables import RESOURCES, Tables
from autocompress_envs.solver import Solver

OBSERVATION_VERSION = 1
"""Version of the names and their order; a policy is loaded only where it was trained on the same version."""

SHOWN = ("size", "macs", "bitops", "memory", "latency")
"""Resources with columns of their own, the first of `RESOURCES`. Of the others there is what stands for all budgets
together: slack, price, lagrangian, and which option is the cheapest."""

KINDS = ("conv", "depthwise", "linear", "embedding", "recurrent", "transposed")
"""Kinds of layers, in the order of their columns; other kinds have none."""

OPTION_NAMES = (
    "sparsity", "weight_bits", "activation_bits", "rank",
    "sparsity_place", "weight_place", "activation_place",
    *(f"{name}_change" for name in SHOWN),
    "slack",
    "expected_loss", "pruning_loss", "rounding_loss", "effect",
    "alignment", "alignment_so_far",
    "effect_change", "pruning_change", "rounding_change", "divergence_change", "price", "lagrangian",
    "is_reference", "is_least_lagrangian", "is_cheapest",
)  # fmt: skip
"""Columns of `options`, one row an option.

| column | what | unit |
| --- | --- | --- |
| sparsity, weight_bits, activation_bits | the label | fraction, log2 / 5, log2 / 5 |
| rank | rank of two factors in the layer's place, 0 for the layer as it is | share of the smaller width |
| …_place | place on the layer's own menu, from 0 to 1 | |
| size_change … memory_change | cost beside that of the reference's label, 0 without a limit | asinh, in limit / L |
| slack | least room under any limit that is left with the reference's rest | asinh, in limit / L |
| expected_loss … effect | losses of the label alone: all, pruning, rounding, first order | log10 / 6, in E |
| alignment | cosine of its effect against the reference's, and that of all other labels | |
| alignment_so_far | cosine of its effect and that of the labels so far | |
| effect_change … divergence_change | what it adds to the reference: first order, pruning, rounding, J | asinh, E / L |
| price | what its cost is worth at the solver's multiplier | asinh, in E / L |
| lagrangian | change of J and price together | asinh, in E / L |
| is_… | the reference's label; the legal one of least lagrangian; the cheapest legal one | 0 or 1 |
"""

LAYER_NAMES = (
    "is_present", "is_next", "is_labelled", "position",
    *(f"is_{kind}" for kind in KINDS),
    "parameters", "macs", "bytes", "bitops", "columns", "rows",
    *(f"loss_at_{bits}_bits" for bits in (2, 3, 4, 5, 6, 8)),
    *(f"loss_at_{sparsity}" for sparsity in (0.25, 0.5, 0.75)),
    "chooses_sparsity", "chooses_bits",
    "reference_sparsity", "reference_weight_bits", "reference_activation_bits",
    "reference_pruning_loss", "reference_rounding_loss", "reference_effect", "reference_alignment",
    "sparsity", "weight_bits", "activation_bits",
)  # fmt: skip
"""Columns of `layers`, one row a layer; the last three hold the label, the reference's where there is none yet."""

CONTEXT_NAMES = (
    *(f"limits_{name}" for name in SHOWN),
    *(f"{name}_budget" for name in SHOWN),
    *(f"{name}_spent" for name in SHOWN),
    *(f"{name}_cheapest_rest" for name in SHOWN),
    *(f"{name}_drift" for name in SHOWN),
    "reference_divergence", "divergence", "depth", "has_effects",
)  # fmt: skip
"""Entries of `context`: whether a resource has a limit; limit / original; shares of the limit that the labels so far
take and the rest takes at least; what the labels so far take beyond the reference's, asinh in limit / L; log10(E) / 6;
asinh of
(J - E) / E; log2(L) / 16; 1 where first-order effects are known."""

BOUND = 12.0  # of every number; asinh of 80,000
_SMALLEST = 1e-12  # nats; stands for 0 in logarithms
_SHORTEST = 1e-15  # product of two lengths; below it, there is no angle
_QUANTILE = 0.1  # share of all slopes that may lie on the wrong side of the multiplier

_CHANGE = OPTION_NAMES.index("size_change")  # followed by those of the other resources
_LOSSES = ("expected_loss", "pruning_loss", "rounding_loss", "effect")
_DYNAMIC = (
    "slack", "effect_change", "divergence_change", "price", "lagrangian", "alignment", "alignment_so_far",
)  # fmt: skip
"""Columns of `options` that change within an episode, beside the changes of limited resources and the last two."""
_IS_CHEAPEST = [OPTION_NAMES.index("is_least_lagrangian"), OPTION_NAMES.index("is_cheapest")]
_IS_NEXT, _IS_LABELLED, _LABEL = (LAYER_NAMES.index(name) for name in ("is_next", "is_labelled", "sparsity"))
_SPENT = slice(CONTEXT_NAMES.index("size_spent"), CONTEXT_NAMES.index("reference_divergence"))
_DIVERGENCE = CONTEXT_NAMES.index("divergence")

Arrays = dict[str, npt.NDArray[np.float32]]


class _Options(NamedTuple):
    """What of the O options of a layer does not change within an episode.

    Attributes:
        rows: (O, F) their rows, with 0 in the columns that change.
        at: position of the reference's label.
        squared: (2, O) squared lengths of their effects against the reference's, and of their effects.
    """

    rows: npt.NDArray[np.float32]
    at: int
    squared: FloatArray


class Observer:
    """Builder of observations for one budget.

    Args:
        solver: solver of the problem under its budget.
        reference: the solver's plan.
        forecast: expected divergence of the labels so far, of which there are none.
        ledger: costs of the labels so far, of which there are none.
        most_layers: rows of `layers`; those beyond L are zeros.
        most_options: rows of `options`; those beyond a layer's menu are zeros.
    """

    def __init__(
        self,
        solver: Solver,
        reference: Labeling,
        forecast: Forecast,
        ledger: Ledger,
        most_layers: int,
        most_options: int,
    ) -> None:
        self._tables, self._count, self._shape = solver.tables, solver.tables.layer_count, (most_layers, most_options)
        original, limits = solver.problem.original(), solver.limits
        self._limited = [number for number, name in enumerate(RESOURCES) if name in limits]
        self._limits = np.array([limits.get(name, max(original.get(name, 1), 1)) for name in RESOURCES], dtype=float)
        self._own_limits = self._limits[self._limited, None]  # (limited, 1)
        self._scale = max(forecast.value(), _SMALLEST) / self._count  # E / L
        names = [name for name in RESOURCES if name in limits]
        used = solver.tables.resources(reference, names)
        shares = np.array([used[name] / limits[name] for name in names])
        self._weights = shares**3  # a resource that is not used up is worth little
        self.multiplier, self._spent = self._along_reference(reference, forecast, ledger)
        self._static = [
            _static_options(solver.tables, forecast, layer, self._scale, self._count) for layer in range(self._count)
        ]
        self._layers = np.zeros((most_layers, len(LAYER_NAMES)), dtype=np.float32)
        self._layers[: self._count] = _static_layers(solver, reference, forecast, self._scale * self._count)
        self._rows = np.arange(self._count)
        self._labels = np.zeros((self._count, max(len(each.rows) for each in self._static), 3), dtype=np.float32)
        for layer, each in enumerate(self._static):
            self._labels[layer, : len(each.rows)] = each.rows[:, :3]
        self._context = self._static_context(original, forecast)
        shown = [number for number in self._limited if number < len(SHOWN)]
        self._columns = [_CHANGE + number for number in shown] + [OPTION_NAMES.index(name) for name in _DYNAMIC]
        hidden = len(self._limited) - len(shown)  # they come last
        self._found = np.delete(
            np.arange(len(self._limited) + len(_DYNAMIC)), np.arange(len(shown), len(shown) + hidden)
        )

    def observe(self, step: int, so_far: Labeling, allowed: BoolArray, forecast: Forecast, ledger: Ledger) -> Arrays:
        """The observation after `step` layers were labelled.

        Args:
            step: number of labelled layers, 0 to L. At L the episode is over, and there are no options.
            so_far: labels, of which the first `step` count.
            allowed: (O,) which options of the next layer are legal.
            forecast: expected divergence of these labels.
            ledger: costs of these labels.

        Returns:
            `layers`, `options` and `context` (see the module's tables), and `base`: (rows of `options`,) minus the
            lagrangian of every option in E / L, the score of a policy that has learned nothing.
        """
        options = np.zeros((self._shape[1], len(OPTION_NAMES)), dtype=np.float32)
        base = np.zeros(self._shape[1], dtype=np.float32)
        if step < self._count:
            self._fill_options(options, base, step, so_far, allowed, forecast, ledger)
        layers = self._layers.copy()
        layers[:step, _IS_LABELLED] = 1.0
        if step < self._count:
            layers[step, _IS_NEXT] = 1.0
        layers[:step, _LABEL:] = self._labels[self._rows[:step], ledger.positions[:step]]
        return {
            "layers": layers,
            "options": options,
            "context": self._observed_context(step, forecast, ledger),
            "base": base,
        }

    def _fill_options(
        self,
        options: npt.NDArray[np.float32],
        base: npt.NDArray[np.float32],
        step: int,
        so_far: Labeling,
        allowed: BoolArray,
        forecast: Forecast,
        ledger: Ledger,
    ) -> None:
        """Write the rows of the next layer's options (O, F), and their scores (O,)."""
        static, effects = self._static[step], forecast.options[step].effects
        at, others, limited = static.at, forecast.others, len(self._limited)
        shares = ledger.amounts(so_far) / self._own_limits  # (limited, O)
        first = forecast.first_order()
        values = forecast.values(first)
        found = np.empty((limited + 7, len(first)))  # columns that change: of the limits, and `_DYNAMIC`
        changes, losses, price, lagrangian = found[:limited], found[limited + 1 : limited + 3], found[-4], found[-3]
        np.multiply(shares - shares[:, at, None], self._count, out=changes)
        found[limited] = self._count * (1.0 - shares.max(0))
        losses[0], losses[1] = first, values
        losses -= losses[:, at, None].copy()
        losses /= self._scale
        np.multiply(self._weights @ changes, self.multiplier, out=price)  # in E / L
        np.add(losses[1], price, out=lagrangian)
        scores = -lagrangian
        cheapest = np.where(allowed, np.array([lagrangian, changes.sum(0)]), np.inf).argmin(1)
        np.arcsinh(found[:-2], out=found[:-2])
        along = effects @ others
        dots = np.array([along - along[at], effects @ forecast.prefix])
        lengths = np.sqrt(static.squared * np.array([[others @ others], [forecast.prefix @ forecast.prefix]]))
        found[-2:] = 0.0
        np.divide(dots, lengths, out=found[-2:], where=lengths > _SHORTEST)
        rows = options[: len(first)]
        rows[:] = static.rows
        rows[:, self._columns] = _bounded(found[self._found]).T
        rows[cheapest, _IS_CHEAPEST] = 1.0
        base[: len(first)] = _bounded(scores)

    def _observed_context(self, step: int, forecast: Forecast, ledger: Ledger) -> npt.NDArray[np.float32]:
        """(F,) the budgets and the expected divergence after `step` labels."""
        spent, least = ledger.spent()
        context, count, whole = self._context.copy(), self._count, self._scale * self._count
        shares = context[_SPENT].reshape(3, -1)  # spent, cheapest rest, drift
        found = np.array([spent, least - spent, count * (spent - self._spent[step])]) / self._limits
        shares[:] = found[:, : len(SHOWN)]
        shares[2] = np.where(self._context[: len(SHOWN)], np.arcsinh(shares[2]), 0.0)
        context[_DIVERGENCE] = np.arcsinh((forecast.value() - whole) / whole)
        return _bounded(context).astype(np.float32)

    def _along_reference(
        self, reference: Labeling, forecast: Forecast, ledger: Ledger
    ) -> tuple[float, list[FloatArray]]:
        """What limit / L is worth in E / L, and (L + 1) times what the reference has spent before each layer, (5,).

        The worth lies between the best gains that the reference left and the least losses that it took. A change of
        one label that saves d of the budget and loses l more has the slope l / d. At the solver's multiplier m, no
        saving costs less than m, and no gain is worth more.
        """
        gains, losses, spent = [], [], [ledger.spent()[0]]
        for step in range(self._count):
            at = int(forecast.reference_options[step])
            shares = ledger.amounts(reference) / self._own_limits
            cost = self._weights @ (self._count * (shares - shares[:, at, None]))
            values = forecast.values() / self._scale
            loss = values - values[at]
            gains.append((-loss / np.maximum(cost, 1e-9))[(cost > 1e-6) & (loss < 0)])
            losses.append((loss / np.maximum(-cost, 1e-9))[(cost < -1e-6) & (loss > 0)])
            forecast.add(at)
            ledger.choose(reference, label_at(reference, step))
            spent.append(ledger.spent()[0])
        forecast.start()
        ledger.start()
        best, least = np.concatenate(gains), np.concatenate(losses)
        bounds = [np.quantile(best, 1 - _QUANTILE)] if len(best) else []
        bounds += [np.quantile(least, _QUANTILE)] if len(least) else []
        return float(np.exp(np.mean(np.log(np.clip(bounds, 1e-6, 1e6))))) if bounds else 1.0, spent

    def _static_context(self, original: Mapping[str, int], forecast: Forecast) -> FloatArray:
        """(F,) what of `context` does not change within an episode; 0 elsewhere."""
        context = np.zeros(len(CONTEXT_NAMES))
        context[: len(SHOWN)] = [number in self._limited for number in range(len(SHOWN))]
        budget = self._limits[: len(SHOWN)] / np.maximum([original.get(name, 1) for name in SHOWN], 1)
        context[len(SHOWN) : 2 * len(SHOWN)] = np.where(context[: len(SHOWN)], budget, 1.0)
        context[_DIVERGENCE - 1] = np.log10(self._scale * self._count) / 6
        context[_DIVERGENCE + 1] = np.log2(self._count) / 16
        context[_DIVERGENCE + 2] = float(forecast.prefix.size > 0)
        return context


def _static_layers(solver: Solver, reference: Labeling, forecast: Forecast, whole: float) -> npt.NDArray[np.float32]:
    """(L, F) what of `layers` does not change within an episode; the labels are the reference's."""
    tables, count = solver.tables, solver.tables.layer_count
    features = static_features(solver, reference)
    at = forecast.reference_options
    effects = np.stack([each.effects[o] for each, o in zip(forecast.options, at, strict=True)])  # (L, D)
    chooses = np.stack([tables.counts[:, 0] > 1, tables.counts[:, 1:].prod(1) > 1], axis=1)
    columns = [
        np.ones((count, 1)),
        np.zeros((count, 2)),
        np.arange(count)[:, None] / count,
        np.array([[layer.kind == kind for kind in KINDS] for layer in solver.problem.layers]),
        features.shares,
        features.widths,
        features.bits_errors,
        features.sparsity_errors,
        chooses,
        features.reference_label,
        features.reference_errors,
        _log_loss(0.5 * (effects**2).sum(1), whole)[:, None],
        _cosines(effects, effects.sum(0))[:, None],
        features.reference_label,
    ]
    return np.asarray(_bounded(np.concatenate(columns, axis=1)), dtype=np.float32)


def _static_options(tables: Tables, forecast: Forecast, layer: int, scale: float, count: int) -> _Options:
    """What of the options of a layer does not change within an episode.

    Args:
        tables: padded menus of the problem.
        forecast: expected divergence, which knows the options' losses.
        layer: index of the layer.
        scale: E / L in nats.
        count: number L of layers.
    """
    options, at, own = forecast.options[layer], int(forecast.reference_options[layer]), labels_at(tables, layer)
    least_width = int(np.minimum(*tables.problem.costs.widths(tables.problem.costs.group_width))[layer])
    menus = (
        tables.sparsities[layer],
        np.log2(tables.weight_bits[layer]) / 5,
        np.log2(tables.activation_bits[layer]) / 5,
    )
    labels = [menu[index] for menu, index in zip(menus, own, strict=True)]
    labels.append(tables.ranks[layer][own[1]] / max(least_width, 1))
    places = [index / max(count - 1, 1) for index, count in zip(own, tables.counts[layer], strict=True)]
    alone = options.expected, options.pruning, options.rounding, 0.5 * options.squared
    columns = {name: values for name, values in zip(OPTION_NAMES, [*labels, *places], strict=False)}
    columns |= zip(_LOSSES, (_log_loss(each, scale * count) for each in alone), strict=True)
    for name, loss in (("pruning_change", options.pruning), ("rounding_change", options.rounding)):
        columns[name] = np.arcsinh((loss - loss[at]) / scale)
    columns["is_reference"] = np.arange(len(alone[0])) == at
    rows = np.zeros((len(alone[0]), len(OPTION_NAMES)), dtype=np.float32)
    for name, values in columns.items():
        rows[:, OPTION_NAMES.index(name)] = _bounded(values)
    squared = np.stack([((options.effects - options.effects[at]) ** 2).sum(1), options.squared])
    return _Options(rows, at, squared)


def _cosines(rows: FloatArray, vector: FloatArray) -> FloatArray:
    """(O,) cosines between rows (O, D) and a vector (D,); 0 where one of them is 0."""
    lengths = np.sqrt((rows**2).sum(1) * (vector @ vector))
    cosines: FloatArray = np.divide(rows @ vector, lengths, out=np.zeros(len(rows)), where=lengths > _SHORTEST)
    return cosines


def _log_loss(losses: FloatArray, whole: float) -> FloatArray:
    """log10(loss / E) / 6 of losses of any shape, in nats."""
    return np.asarray(np.log10(np.maximum(losses, _SMALLEST) / whole) / 6)


def _bounded(values: FloatArray) -> FloatArray:
    """Numbers within `BOUND`; np.clip takes several times as long on a few of them."""
    return np.asarray(np.minimum(np.maximum(values, -BOUND), BOUND))
