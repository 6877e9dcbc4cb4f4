"""Feasibility: which labels of a layer leave the rest of the network able to meet every limit.

The question: given the labels of the first d layers, is there a labelling x that begins with them and has
C_r(x) <= limit_r for every limited resource r? It is answered by the cheapest completion.

- Every cost grows with every width. So whatever the bits are, the rest is cheapest with each undecided group
  at its fewest channels.
- For fixed widths, `size`, `macs`, `bitops`, `latency` and `energy` are sums over layers, so each layer's cheapest
  bits can be chosen alone. Peak memory is least with the fewest activation bits at every layer.

With one limit the answer is exact. With several, one layer's cheapest label may differ between resources:
16-bit weights need no scales and 32-bit activations no ranges, which saves a few bytes. Then completions are
tried that weigh all limited resources alike, that favour each in turn, and mixtures of these. So a label (or
a budget within these bytes of the smallest) may be refused that only some other mixture completes. A label
that is allowed can always be completed. An episode never ends up without a legal label: it remembers one
completion (`actions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, permutations

import numpy as np

from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import ADDITIVE, RESOURCES, Tables, is_within

FAVOUR = 1e6  # weight of the favoured resource beside all others at 1


class InfeasibleBudgetError(ValueError):
    """Error that no labelling meets the limits; the message names the smallest possible budget."""


class Reach:
    """Feasibility of completions under given limits.

    An example with the toy: three layers of 8 weights that read 8 bits, so that b weight bits cost 64 b bit
    operations. The first one owns a group; removing half of it leaves 4 weights in the first and in the
    second layer. At 2 bits the cheapest labelling costs 64 + 64 + 128 = 256. Under a limit of 512 the first
    layer cannot have 8 bits unpruned: 512 + 128 + 128 is too much. It can when pruned: 256 + 64 + 128 = 448.

    >>> from autocompress_envs.testing import toy_problem
    >>> reach = Reach(Tables(toy_problem()[0]), {"bitops": 512})
    >>> blank = Labeling(*np.zeros((3, 3), dtype=np.int64))
    >>> reach.smallest(blank, 0)["bitops"]
    256
    >>> reach.allowed(blank, 0)[..., 0].tolist()  # rows: sparsity 0 and 0.5; columns: 2, 4 and 8 bits
    [[True, True, False], [True, True, True]]

    Args:
        tables: padded menus of the problem.
        limits: absolute upper bounds by resource.

    Attributes:
        tables: the tables that were given.
        limits: a copy of the limits.
        cheapest: a labelling that meets all limits.

    Raises:
        InfeasibleBudgetError: no labelling meets the limits.
    """

    def __init__(self, tables: Tables, limits: Mapping[str, int]) -> None:
        self.tables = tables
        self.limits = dict(limits)
        self._fewest = np.argmin(tables.kept, axis=1)  # (L,) sparsity index that leaves the fewest channels
        read_elements = tables.problem.costs.tensor_readers.T @ tables.problem.costs.tensor_const  # (L,)
        handed_on = 8 * tables.problem.costs.handed_on(tables.ranks.T).T  # (L, B)
        stored = np.maximum(read_elements, 1)[:, None, None] * tables.activation_bits[:, None] + handed_on[..., None]
        shape = (tables.layer_count, tables.own.shape[1], *stored.shape[1:])
        self._memory_scores = np.broadcast_to(stored[:, None], shape).reshape(tables.layer_count, -1)  # (L, O*B*A)
        empty = np.zeros(tables.layer_count, dtype=np.int64)
        self.cheapest = self.complete(Labeling(empty, empty, empty), 0) or self._refuse()

    def complete(self, labeling: Labeling, decided: int) -> Labeling | None:
        """A labelling within the limits that begins with given labels, or None where none was found.

        Args:
            labeling: labels, of which the first `decided` count.
            decided: number of layers whose labels are fixed, 0 to L.
        """
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
        """The smallest possible amount of every resource on its own, given the labels of the first layers.

        Args:
            labeling: labels, of which the first `decided` count.
            decided: number of layers whose labels are fixed, 0 to L.
        """
        return {
            name: min(self.tables.resources(plan)[name] for plan in self._completions(labeling, decided, {name: 1}))
            for name in self.tables.names
        }

    def allowed(self, labeling: Labeling, index: int) -> BoolArray:
        """Which labels of one layer leave every limit within reach, given the labels before it.

        A label is allowed where the costs of the layers before it, its own, and those of the cheapest rest
        are together within all limits.

        Args:
            labeling: labels, of which the first `index` count.
            index: the layer.

        Returns:
            (S, B, A) true where allowed, on that layer's own menus (without padding).
        """
        count, bits, activations = self.tables.counts[index]
        sparsity = np.repeat(self._with_fewest(labeling.sparsity, index)[None], count, axis=0)  # (S, L)
        sparsity[:, index] = np.arange(count)
        kept = self.tables.kept_channels(sparsity)  # (S, G)
        before = self._before(labeling, index, kept)  # (S,) each
        here = self._here(index, kept)  # (S, B, A) each
        allowed = np.zeros((count, bits, activations), dtype=bool)
        for rest, rest_bits, rest_ranks, is_least in self._rests(kept, index + 1):
            fits = np.ones_like(allowed)
            for name in set(self.limits) & set(ADDITIVE):
                elsewhere = before[name] + rest[name]  # (S,)
                total = here[name] + elsewhere[:, None, None]
                fits &= (total <= self.limits[name])[:, :bits, :activations]
            if "memory" in self.limits:
                fits &= self.memory(labeling, index, kept, rest_bits, rest_ranks) <= self.limits["memory"]
            allowed |= fits
            if is_least:
                break  # no other rest is cheaper in any resource
        return allowed

    def _with_fewest(self, sparsity: IntArray, decided: int) -> IntArray:
        """(L,) the first `decided` sparsities, then those that leave the fewest channels."""
        return np.concatenate([sparsity[:decided], self._fewest[decided:]])

    def _before(self, labeling: Labeling, index: int, kept: IntArray) -> dict[str, IntArray]:
        """(S,) amounts by resource of layers before `index` and of fixed bytes, for channels (S, G)."""
        costs, rows = self.tables.problem.costs, np.arange(index)
        fan_in, out = costs.widths(kept)
        amounts = costs.of_layers(
            rows,
            fan_in[:, :index],
            out[:, :index],
            self.tables.weight_bits[rows, labeling.weight_bits[:index]],
            self.tables.activation_bits[rows, labeling.activation_bits[:index]],
            self.tables.sparsities[rows, labeling.sparsity[:index]],
            self.tables.ranks[rows, labeling.weight_bits[:index]],
        )
        return {name: amount.sum(-1) + costs.fixed(name, kept) for name, amount in amounts.items()}

    def _here(self, index: int, kept: IntArray) -> dict[str, IntArray]:
        """(S, B, A) amounts by resource of the options of layer `index`, for channels (S, G)."""
        fan_in, out = self.tables.problem.costs.widths(kept)
        options = self.tables.option_costs(fan_in[:, index:], out[:, index:], slice(index, None))
        count = len(kept)
        own = np.arange(count) if not self.tables.by_channel else np.zeros(count, dtype=np.int64)
        return {name: amount[np.arange(count), 0, own] for name, amount in options.items()}

    def _rests(self, kept: IntArray, first: int) -> Iterator[tuple[dict[str, IntArray], IntArray, IntArray, bool]]:
        """Cheap options for the R layers from `first` on, for channels (S, G).

        Yields:
            Amounts (S,) by resource, activation bits (S, R), ranks (S, R), and whether no other options need less of
            any resource.
        """
        choices, options = self._choices(kept, first, self.limits)
        least = {name: amount.min(-1).sum(-1) for name, amount in options.items()}
        for choice in choices:
            picked = {n: np.take_along_axis(amount, choice[..., None], -1)[..., 0] for n, amount in options.items()}
            amounts = {name: amount.sum(-1) for name, amount in picked.items()}
            rows = np.arange(first, self.tables.layer_count)
            _, weight_bits, activation_bits = self._split(choice)
            bits, ranks = self.tables.activation_bits[rows, activation_bits], self.tables.ranks[rows, weight_bits]
            is_least = all((amounts[name] == least[name]).all() for name in self._scored(self.limits))
            amounts.update({name: amounts.get(name, np.zeros(len(kept), dtype=np.int64)) for name in ADDITIVE})
            yield amounts, bits, ranks, is_least

    def _choices(
        self, kept: IntArray, first: int, limits: Mapping[str, int]
    ) -> tuple[list[IntArray], dict[str, IntArray]]:
        """The cheapest option of each of the R layers from `first` on, by several scores (`picks`).

        Args:
            kept: (S, G) channels left in every group.
            first: the first undecided layer.
            limits: amounts by which resources are scored.

        Returns:
            Flat option indices (S, R), one array a score; and amounts (S, R, O*B*A) by resource.
        """
        fan_in, out = self.tables.problem.costs.widths(kept)  # (S, L)
        raw = self.tables.option_costs(fan_in[:, first:], out[:, first:], slice(first, None))  # (S, R, O, B, A) each
        flat = (*raw["size"].shape[:2], self._memory_scores.shape[1])
        options = {name: amount.reshape(flat) for name, amount in raw.items()}
        options["memory"] = np.broadcast_to(self._memory_scores[first:], flat)
        return self.picks(options, slice(first, None), limits), options

    def picks(
        self, options: Mapping[str, IntArray], layers: slice | IntArray, limits: Mapping[str, int] | None = None
    ) -> list[IntArray]:
        """The cheapest option of some layers, by several scores.

        The score of an option is its sum over limited resources of amount / limit. With several limits,
        further scores weigh each resource 1,000,000 times as much in turn. Peak memory is no sum over layers;
        the bits of the tensors that a layer reads stand for it, as they order its options by activation bits, and
        those that two factors hand on.

        Args:
            options: (…, n, O*B*A) amounts of the additive resources by name.
            layers: the n layers.
            limits: amounts by which resources are scored. Default: None, for the limits.

        Returns:
            Flat option indices (…, n), one array a score.
        """
        limits = self.limits if limits is None else limits
        memory = self._memory_scores[layers]
        scored = [(memory if name == "memory" else options[name]) / limits[name] for name in self._scored(limits)]
        if len(scored) == 1:
            shape = np.broadcast_shapes(scored[0].shape, options["size"].shape)
            return [np.broadcast_to(scored[0], shape).argmin(-1)]
        alike: FloatArray = np.sum(np.broadcast_arrays(*scored), axis=0)  # (…, n, O*B*A)
        return [score.argmin(-1) for score in (alike, *(alike + FAVOUR * score for score in scored))]

    @staticmethod
    def _scored(limits: Mapping[str, int]) -> list[str]:
        """The limited resources, in their usual order."""
        return [name for name in RESOURCES if name in limits]

    def _split(self, choice: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Indices of sparsity inside the layer, weight bits and activation bits, each shaped as `choice`."""
        shape = (self.tables.own.shape[1], self.tables.weight_bits.shape[1], self.tables.activation_bits.shape[1])
        own, bits, activations = np.unravel_index(choice, shape)
        return own, bits, activations

    def memory(
        self, labeling: Labeling, index: int, kept: IntArray, rest_bits: IntArray, rest_ranks: IntArray
    ) -> IntArray:
        """(S, B, A) bytes of peak memory for the options of layer `index`.

        Args:
            labeling: labels, of which the first `index` count.
            index: the layer.
            kept: (S, G) channels left in every group, by the layer's sparsity.
            rest_bits: (S, R) activation bits of the layers after it.
            rest_ranks: (S, R) ranks of the layers after it.
        """
        tables, rows = self.tables, np.arange(index)
        _, formats, activations = tables.counts[index]
        bits = np.empty((len(kept), 1, activations, tables.layer_count), dtype=np.int64)  # (S, 1, A, L)
        bits[..., :index] = tables.activation_bits[rows, labeling.activation_bits[:index]]
        bits[..., index] = tables.activation_bits[index, :activations]
        bits[..., index + 1 :] = rest_bits[:, None, None]
        ranks = np.empty((len(kept), formats, 1, tables.layer_count), dtype=np.int64)  # (S, B, 1, L)
        ranks[..., :index] = tables.ranks[rows, labeling.weight_bits[:index]]
        ranks[..., index] = tables.ranks[index, :formats, None]
        ranks[..., index + 1 :] = rest_ranks[:, None, None]
        return tables.problem.costs.memory(kept[:, None, None], bits, ranks)

    def _completions(
        self, labeling: Labeling, decided: int, limits: Mapping[str, int] | None = None
    ) -> Iterator[Labeling]:
        """Cheap labellings that begin with the first `decided` labels, one a score; they may break limits."""
        sparsity = self._with_fewest(labeling.sparsity, decided)
        kept = self.tables.kept_channels(sparsity)[None]  # (1, G)
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
        """Raise the error that no labelling meets the limits, with the smallest budget that would do."""
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
            f"got {self.limits[name]:,}; raise it{_advice(name, self.tables)}."
        )


def _advice(name: str, tables: Tables) -> str:
    """What menus might offer beside their labels to bring a resource down; nothing that would leave it as it is.

    All but bytes and energy shrink only with whole channels, which a network without groups does not have.
    """
    by_bits = {"size": "fewer weight bits", "memory": "fewer activation bits", "latency": "other bits"}
    advised = [] if name == "macs" else [by_bits.get(name, "fewer bits")]
    if not tables.by_channel:
        advised.append("more sparsity" if name in ("size", "energy") else "sparsity of whole channels")
    elif len(tables.problem.costs.group_width):
        advised.append("more sparsity")
    if name == "macs":
        advised.append("lower ranks" if tables.ranks.any() else "low ranks")
    return f" or allow {' or '.join(advised)}"


def _spliced(first: Labeling, second: Labeling, index: int) -> Labeling:
    """A labelling: the first one before layer `index`, the second one from there on."""
    return Labeling(
        np.concatenate([first.sparsity[:index], second.sparsity[index:]]),
        np.concatenate([first.weight_bits[:index], second.weight_bits[index:]]),
        np.concatenate([first.activation_bits[:index], second.activation_bits[index:]]),
    )
