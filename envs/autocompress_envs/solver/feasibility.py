"""What can still be reached: which labels of a layer leave room for the rest, and the cheapest rest itself.

Costs grow with every width, so the rest is cheapest with every undecided group at its fewest channels; for these
widths each layer's cheapest bits follow one by one. With one limit that is exact. With several, one layer's cheapest
label may differ between resources (16-bit weights need no scales, activations at 32 bits no ranges, a few bytes each);
then completions that favour each resource in turn are tried. So a label, and a budget within these bytes of the
smallest, may be refused that only some other mixture completes; never the reverse, and never every label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, permutations

import numpy as np

from autocompress_envs.problem.numbers import BoolArray, FloatArray, IntArray, Labeling, layer_resources
from autocompress_envs.problem.tables import ADDITIVE, RESOURCES, Tables, is_within

FAVOUR = 1e6  # how much more than the others the favoured resource weighs


class InfeasibleBudgetError(ValueError):
    """No labelling meets the limits."""


class Reach:
    """Feasibility of completions under `limits` (absolute amounts by resource).

    Raises:
        InfeasibleBudgetError: no labelling meets the limits.
    """

    def __init__(self, tables: Tables, limits: Mapping[str, int]) -> None:
        self.tables = tables
        self.limits = dict(limits)
        self._fewest = np.argmin(tables.kept, axis=1)  # (L,) sparsity index that leaves the fewest channels
        self._read_elements = tables.problem.costs.tensor_readers.T @ tables.problem.costs.tensor_const
        self._read_elements = np.maximum(self._read_elements, 1)
        empty = np.zeros(tables.layer_count, dtype=np.int64)
        self.cheapest = self.complete(Labeling(empty, empty, empty), 0) or self._refuse()

    def complete(self, labeling: Labeling, decided: int) -> Labeling | None:
        """A labelling within the limits that starts with the first `decided` labels, or None where none was found."""
        candidates = list(self._completions(labeling, decided))
        mixtures = (
            _spliced(first, second, index)
            for first, second in permutations(candidates, 2)
            for index in range(decided + 1, self.tables.layer_count)
        )
        for candidate in chain(candidates, mixtures):
            if is_within(self.tables.resources(candidate, self.limits), self.limits):
                return candidate
        return None

    def smallest(self, labeling: Labeling, decided: int) -> dict[str, int]:
        """The smallest amount of every resource, each on its own, that the first `decided` labels leave possible."""
        return {
            name: min(self.tables.resources(plan)[name] for plan in self._completions(labeling, decided, {name: 1}))
            for name in RESOURCES
        }

    def allowed(self, labeling: Labeling, index: int) -> BoolArray:
        """Labels of layer `index` after which the limits can still be met, given the labels before it.

        Returns:
            (sparsities, weight bits, activation bits) of that layer's own menu.
        """
        count, bits, activations = self.tables.counts[index]
        sparsity = np.repeat(self._with_fewest(labeling.sparsity, index)[None], count, axis=0)  # (S, L)
        sparsity[:, index] = np.arange(count)
        kept = self.tables.kept_channels(sparsity)
        before = self._before(labeling, index, kept)
        here = self._here(index, kept)
        allowed = np.zeros((count, bits, activations), dtype=bool)
        for rest, rest_bits, is_least in self._rests(kept, index + 1):
            fits = np.ones_like(allowed)
            for name in set(self.limits) & set(ADDITIVE):
                total = here[name] + (before[name] + rest[name])[:, None, None]
                fits &= (total <= self.limits[name])[:, :bits, :activations]
            if "memory" in self.limits:
                memory = self._memory(labeling, index, kept, rest_bits)
                fits &= (memory <= self.limits["memory"])[:, None, :]
            allowed |= fits
            if is_least:
                break
        return allowed

    def _with_fewest(self, sparsity: IntArray, decided: int) -> IntArray:
        return np.concatenate([sparsity[:decided], self._fewest[decided:]])

    def _before(self, labeling: Labeling, index: int, kept: IntArray) -> dict[str, IntArray]:
        """(S,) fixed costs and costs of the layers before `index`."""
        costs, rows = self.tables.problem.costs, np.arange(index)
        fan_in, out = costs.widths(kept)
        amounts = layer_resources(
            fan_in[:, :index],
            out[:, :index],
            costs.positions[:index],
            costs.has_bias[:index],
            self.tables.weight_bits[rows, labeling.weight_bits[:index]],
            self.tables.activation_bits[rows, labeling.activation_bits[:index]],
            self.tables.sparsities[rows, labeling.sparsity[:index]],
            costs.granularity,
        )
        return {name: amount.sum(-1) + costs.fixed(name, kept) for name, amount in amounts.items()}

    def _here(self, index: int, kept: IntArray) -> dict[str, IntArray]:
        """(S, B, A) costs of the options of layer `index`."""
        fan_in, out = self.tables.problem.costs.widths(kept)
        options = self.tables.option_costs(fan_in[:, index:], out[:, index:], index)
        count = len(kept)
        own = np.arange(count) if not self.tables.by_channel else np.zeros(count, dtype=np.int64)
        return {name: amount[np.arange(count), 0, own] for name, amount in options.items()}

    def _rests(self, kept: IntArray, first: int) -> Iterator[tuple[dict[str, IntArray], IntArray, bool]]:
        """Cheap choices for the layers from `first` on: their cost (S,), activation bits (S, R), least in all?"""
        choices, options = self._choices(kept, first, self.limits)
        least = {name: amount.min(-1).sum(-1) for name, amount in options.items()}
        for choice in choices:
            amounts = {n: np.take_along_axis(a, choice[..., None], -1)[..., 0].sum(-1) for n, a in options.items()}
            bits = self.tables.activation_bits[np.arange(first, self.tables.layer_count), self._split(choice)[2]]
            is_least = all((amounts[name] == least[name]).all() for name in self._scored(self.limits))
            amounts.update({name: amounts.get(name, np.zeros(len(kept), dtype=np.int64)) for name in ADDITIVE})
            yield amounts, bits, is_least

    def _choices(
        self, kept: IntArray, first: int, limits: Mapping[str, int]
    ) -> tuple[list[IntArray], dict[str, IntArray]]:
        """Flat option indices (S, R) that favour all limited resources alike, then each; and the option costs."""
        fan_in, out = self.tables.problem.costs.widths(kept)
        raw = self.tables.option_costs(fan_in[:, first:], out[:, first:], first)
        flat = (*fan_in[:, first:].shape, -1)
        shape = (*flat[:2], *raw["size"].shape[2:])
        memory = self._read_elements[first:, None, None, None] * self.tables.activation_bits[first:, None, None, :]
        options = {name: amount.reshape(*flat[:2], int(np.prod(shape[2:]))) for name, amount in raw.items()}
        options["memory"] = np.broadcast_to(memory, shape).reshape(options["size"].shape)
        scored = {name: options[name] / limits[name] for name in self._scored(limits)}
        alike: FloatArray = np.sum(list(scored.values()), axis=0)
        scores = [alike] + ([alike + FAVOUR * score for score in scored.values()] if len(scored) > 1 else [])
        return [score.argmin(-1) for score in scores], options

    @staticmethod
    def _scored(limits: Mapping[str, int]) -> list[str]:
        return [name for name in RESOURCES if name in limits]

    def _split(self, choice: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Own sparsity, weight bits and activation bits of flat option indices."""
        shape = (self.tables.own.shape[1], self.tables.weight_bits.shape[1], self.tables.activation_bits.shape[1])
        own, bits, activations = np.unravel_index(choice, shape)
        return own, bits, activations

    def _memory(self, labeling: Labeling, index: int, kept: IntArray, rest_bits: IntArray) -> IntArray:
        """(S, A) peak memory for the options of layer `index`."""
        activations = self.tables.counts[index, 2]
        rows = np.arange(index)
        bits = np.empty((len(kept), activations, self.tables.layer_count), dtype=np.int64)
        bits[..., :index] = self.tables.activation_bits[rows, labeling.activation_bits[:index]]
        bits[..., index] = self.tables.activation_bits[index, :activations]
        bits[..., index + 1 :] = rest_bits[:, None]
        return self.tables.problem.costs.memory(kept[:, None], bits)

    def _completions(
        self, labeling: Labeling, decided: int, limits: Mapping[str, int] | None = None
    ) -> Iterator[Labeling]:
        sparsity = self._with_fewest(labeling.sparsity, decided)
        kept = self.tables.kept_channels(sparsity)[None]
        choices, _ = self._choices(kept, decided, self.limits if limits is None else limits)
        for choice in choices:
            own, bits, activations = self._split(choice[0])
            chosen = sparsity if self.tables.by_channel else np.concatenate([sparsity[:decided], own])
            yield Labeling(
                chosen,
                np.concatenate([labeling.weight_bits[:decided], bits]),
                np.concatenate([labeling.activation_bits[:decided], activations]),
            )

    def _refuse(self) -> Labeling:
        empty = np.zeros(self.tables.layer_count, dtype=np.int64)
        blank = Labeling(empty, empty, empty)
        smallest, why = self.smallest(blank, 0), "the smallest plan of this network"
        broken = [name for name, limit in self.limits.items() if smallest[name] > limit]
        if not broken:  # each alone can be met, all together can't
            plan = next(self._completions(blank, 0))
            smallest, why = self.tables.resources(plan), "the smallest plan found that meets the other limits"
            broken = [name for name, limit in self.limits.items() if smallest[name] > limit]
        name = broken[0]
        raise InfeasibleBudgetError(
            f"`{name}` budget must be at least {smallest[name]:,} {RESOURCES[name]} ({why}), "
            f"got {self.limits[name]:,}; raise it or allow fewer bits or more sparsity."
        )


def _spliced(first: Labeling, second: Labeling, index: int) -> Labeling:
    """The first labelling up to layer `index`, the second from there on."""
    return Labeling(
        np.concatenate([first.sparsity[:index], second.sparsity[index:]]),
        np.concatenate([first.weight_bits[:index], second.weight_bits[index:]]),
        np.concatenate([first.activation_bits[:index], second.activation_bits[index:]]),
    )
