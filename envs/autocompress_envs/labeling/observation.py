"""Observation of version 1: the layers as one matrix, the next layer's options as another, and the budgets.

All numbers are dimensionless, so a policy carries over to other networks, menus and budgets. E is the expected
divergence J of the reference plan (`forecast`), which is the solver's. Differences of losses are counted in E / L, the
reference's share a layer; differences of costs in limit / L. `asinh` makes large ones small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autocompress_envs.labeling.forecast import Forecast, labels_at
from autocompress_envs.observation import progress, static_features
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
_QUANTILE = 0.1  # share of all slopes that may lie on the wrong side of the multiplier

Arrays = dict[str, npt.NDArray[np.float32]]


class Observer:
    """Builder of observations for one budget.

    Args:
        solver: solver of the problem under its budget.
        reference: the solver's plan.
        forecast: expected divergence of the labels so far, of which there are none.
        most_layers: rows of `layers`; those beyond L are zeros.
        most_options: rows of `options`; those beyond a layer's menu are zeros.
    """

    def __init__(
        self, solver: Solver, reference: Labeling, forecast: Forecast, most_layers: int, most_options: int
    ) -> None:
        self._tables, self._reference = solver.tables, reference
        self._shape = most_layers, most_options
        self._original = solver.problem.original()
        self._is_limited = np.array([name in solver.limits for name in RESOURCES])
        limits = [solver.limits.get(name, max(self._original.get(name, 1), 1)) for name in RESOURCES]
        self._limits = np.array(limits, dtype=np.float64)
        self._names = [name for name in RESOURCES if name in solver.limits]
        self._scale = max(forecast.value(), _SMALLEST) / solver.tables.layer_count  # E / L
        self._static = _static_options(solver.tables, forecast, self._scale * solver.tables.layer_count)
        used = np.array([solver.tables.resources(reference, self._names)[name] for name in self._names])
        self._weights = (used / self._limits[self._is_limited]) ** 3  # a resource that is not used up is worth little
        self.multiplier = self._multiplier(forecast)
        self._layers = self._static_layers(solver, reference, forecast)
        self._spent = [
            progress(solver.tables, reference, step, tuple(RESOURCES))[0]
            for step in range(solver.tables.layer_count + 1)
        ]

    def observe(self, step: int, so_far: Labeling, allowed: BoolArray, forecast: Forecast) -> Arrays:
        """The observation after `step` layers were labelled.

        Args:
            step: number of labelled layers, 0 to L. At L the episode is over, and there are no options.
            so_far: labels, of which the first `step` count.
            allowed: (O,) which options of the next layer are legal.
            forecast: expected divergence of these labels.

        Returns:
            `layers`, `options` and `context` (see the module's tables), and `base`: (rows of `options`,) minus the
            lagrangian of every option in E / L, the score of a policy that has learned nothing.
        """
        options = np.zeros((self._shape[1], len(OPTION_NAMES)), dtype=np.float32)
        base = np.zeros(self._shape[1], dtype=np.float32)
        if step < self._tables.layer_count:
            rows, scores = self._options(step, so_far, allowed, forecast)
            options[: len(rows)], base[: len(rows)] = np.clip(rows, -BOUND, BOUND), np.clip(scores, -BOUND, BOUND)
        return {
            "layers": self._observed_layers(step, so_far),
            "options": options,
            "context": self._context(step, so_far, forecast),
            "base": base,
        }

    def _options(
        self, step: int, so_far: Labeling, allowed: BoolArray, forecast: Forecast
    ) -> tuple[FloatArray, FloatArray]:
        """(O, F) rows of the next layer's options, and (O,) their scores."""
        at = int(forecast.reference_options[step])
        options, others = forecast.options[step], forecast.others
        changes, slack = self._costs(step, so_far, at)  # (O, R), (O,)
        first = forecast.first_order()
        values = forecast.values()
        loss_changes = np.stack([first, options.pruning, options.rounding, values], axis=1)
        loss_changes = (loss_changes - loss_changes[at]) / self._scale  # (O, 4)
        price = self.multiplier * (changes[:, self._is_limited] @ self._weights)  # in E / L
        lagrangian = loss_changes[:, 3] + price
        is_least = np.arange(len(price)) == np.where(allowed, lagrangian, np.inf).argmin()
        weighted = changes[:, self._is_limited].sum(1)
        is_cheapest = np.arange(len(price)) == np.where(allowed, weighted, np.inf).argmin()
        dynamic = [
            np.arcsinh(changes[:, : len(SHOWN)]),
            np.arcsinh(slack)[:, None],
            self._static[step][1],
            _cosines(options.effects - options.effects[at], others)[:, None],
            _cosines(options.effects, forecast.prefix)[:, None],
            np.arcsinh(loss_changes),
            np.arcsinh(price)[:, None],
            np.arcsinh(lagrangian)[:, None],
            np.stack([np.arange(len(price)) == at, is_least, is_cheapest], axis=1),
        ]
        return np.concatenate([self._static[step][0], *dynamic], axis=1), -lagrangian

    def _costs(self, step: int, so_far: Labeling, at: int) -> tuple[FloatArray, FloatArray]:
        """(O, R) costs beside the option `at`, and (O,) the least room left, both in limit / L."""
        amounts = _amounts_of(self._tables, self._plans(step, so_far), self._names)  # (O, limited)
        shares, count = amounts / self._limits[self._is_limited], self._tables.layer_count
        changes = np.zeros((len(shares), len(RESOURCES)))  # in the order of `RESOURCES`
        changes[:, self._is_limited] = count * (shares - shares[at])
        return changes, count * (1.0 - shares.max(1))

    def _plans(self, step: int, so_far: Labeling) -> Labeling:
        """(O, L) the labels so far, each option of the next layer, and the reference's rest."""
        own = labels_at(self._tables, step)
        parts = []
        for before, rest, options in zip(_parts(so_far), _parts(self._reference), own, strict=True):
            rows = np.repeat(np.concatenate([before[:step], rest[step:]])[None], len(options), axis=0)
            rows[:, step] = options
            parts.append(rows)
        return Labeling(*parts)

    def _multiplier(self, forecast: Forecast) -> float:
        """What limit / L is worth in E / L: between the best gains that the reference left and the least losses that it
        took.

        A change of one label that saves d of the budget and loses l more has the slope l / d. At the solver's
        multiplier m, no saving costs less than m, and no gain is worth more.
        """
        gains, losses = [], []
        for step in range(self._tables.layer_count):
            at = int(forecast.reference_options[step])
            changes, _ = self._costs(step, self._reference, at)
            cost = changes[:, self._is_limited] @ self._weights
            values = forecast.values() / self._scale
            loss = values - values[at]
            forecast.add(at)
            gains.append((-loss / np.maximum(cost, 1e-9))[(cost > 1e-6) & (loss < 0)])
            losses.append((loss / np.maximum(-cost, 1e-9))[(cost < -1e-6) & (loss > 0)])
        forecast.start()
        best, least = np.concatenate(gains), np.concatenate(losses)
        bounds = [np.quantile(best, 1 - _QUANTILE)] if len(best) else []
        bounds += [np.quantile(least, _QUANTILE)] if len(least) else []
        return float(np.exp(np.mean(np.log(np.clip(bounds, 1e-6, 1e6))))) if bounds else 1.0

    def _static_layers(self, solver: Solver, reference: Labeling, forecast: Forecast) -> npt.NDArray[np.float32]:
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
            _log_loss(0.5 * (effects**2).sum(1), self._scale * count)[:, None],
            _cosines(effects, effects.sum(0))[:, None],
            features.reference_label,
        ]
        return np.asarray(np.clip(np.concatenate(columns, axis=1), -BOUND, BOUND), dtype=np.float32)

    def _observed_layers(self, step: int, so_far: Labeling) -> npt.NDArray[np.float32]:
        """(most layers, F) the layers after `step` labels."""
        layers = np.zeros((self._shape[0], len(LAYER_NAMES)), dtype=np.float32)
        layers[: len(self._layers)] = self._layers
        rows = np.arange(step)
        layers[:step, LAYER_NAMES.index("is_labelled")] = 1.0
        if step < len(self._layers):
            layers[step, LAYER_NAMES.index("is_next")] = 1.0
        layers[:step, -3] = self._tables.sparsities[rows, so_far.sparsity[:step]]
        layers[:step, -2] = np.log2(self._tables.weight_bits[rows, so_far.weight_bits[:step]]) / 5
        layers[:step, -1] = np.log2(self._tables.activation_bits[rows, so_far.activation_bits[:step]]) / 5
        return layers

    def _context(self, step: int, so_far: Labeling, forecast: Forecast) -> npt.NDArray[np.float32]:
        """(F,) the budgets and the expected divergence after `step` labels."""
        spent, least = progress(self._tables, so_far, step, tuple(RESOURCES))
        count, whole = self._tables.layer_count, self._scale * self._tables.layer_count
        budget = self._limits / np.maximum([self._original.get(name, 1) for name in RESOURCES], 1)
        drift = np.arcsinh(count * (spent - self._spent[step]) / self._limits)
        of_resources = (
            self._is_limited,
            np.where(self._is_limited, budget, 1.0),
            spent / self._limits,
            (least - spent) / self._limits,
            np.where(self._is_limited, drift, 0.0),
        )
        entries: list[npt.ArrayLike] = [
            *(each[: len(SHOWN)] for each in of_resources),
            [
                np.log10(whole) / 6,
                np.arcsinh((forecast.value() - whole) / whole),
                np.log2(count) / 16,
                float(forecast.prefix.size > 0),
            ],
        ]
        return np.asarray(
            np.clip(np.concatenate([np.asarray(each, dtype=np.float64) for each in entries]), -BOUND, BOUND),
            dtype=np.float32,
        )


def _static_options(tables: Tables, forecast: Forecast, whole: float) -> list[tuple[FloatArray, FloatArray]]:
    """For every layer, (O, 7) labels and their places, and (O, 4) losses of each label alone."""
    found = []
    least_width = np.minimum(*tables.problem.costs.widths(tables.problem.costs.group_width))
    for layer, options in enumerate(forecast.options):
        own = labels_at(tables, layer)
        menus = (
            tables.sparsities[layer],
            np.log2(tables.weight_bits[layer]) / 5,
            np.log2(tables.activation_bits[layer]) / 5,
        )
        labels = [menu[index] for menu, index in zip(menus, own, strict=True)]
        labels.append(tables.ranks[layer][own[1]] / max(int(least_width[layer]), 1))
        places = [index / max(count - 1, 1) for index, count in zip(own, tables.counts[layer], strict=True)]
        alone = options.expected, options.pruning, options.rounding, 0.5 * (options.effects**2).sum(1)
        losses = np.stack([_log_loss(each, whole) for each in alone], axis=1)
        found.append((np.stack([*labels, *places], axis=1), losses))
    return found


def _amounts_of(tables: Tables, plans: Labeling, names: list[str]) -> FloatArray:
    """(O, R) amounts of the named resources that plans (O, L) take."""
    amounts = tables.amounts(plans, names)
    return np.stack([amounts[name] for name in names], axis=1).astype(np.float64)


def _parts(labeling: Labeling) -> tuple[npt.NDArray[np.int64], ...]:
    return labeling.sparsity, labeling.weight_bits, labeling.activation_bits


def _cosines(rows: FloatArray, vector: FloatArray) -> FloatArray:
    """(O,) cosines between rows (O, D) and a vector (D,); 0 where one of them is 0."""
    lengths = np.sqrt((rows**2).sum(1) * (vector @ vector))
    cosines: FloatArray = np.divide(rows @ vector, lengths, out=np.zeros(len(rows)), where=lengths > 1e-15)
    return cosines


def _log_loss(losses: FloatArray, whole: float) -> FloatArray:
    """log10(loss / E) / 6 of losses of any shape, in nats."""
    return np.asarray(np.log10(np.maximum(losses, _SMALLEST) / whole) / 6)
