"""The menus of a network: every layer's labels, each with its weights, its cost and its expected loss.

Sparsities belong to channel groups, weights to layers. So with granularity `channel` a layer's label decides
about the channels that it writes (its own group), while the columns of its weight are decided by the layers
that own the groups which it reads. With the other granularities a layer's sparsity is its own business.

Sizes below: S sparsities, B formats of weights (`Menus.formats`) and A activation bit-widths on offer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.menus.activations import ActivationRange
from autocompress.menus.low_rank import Format, low_rank_variants, offered_ranks
from autocompress.menus.plan_checks import SPARSITY_TOLERANCE, check_plan, check_tie
from autocompress.menus.settings import MenuSettings
from autocompress.menus.store import Store
from autocompress.menus.ties import label_places, tied
from autocompress.menus.variants import LayerSource, Variant, channel_variants, sparse_variants
from autocompress.network.structure import Group, Layer, Network
from autocompress.plan import Label, Plan
from autocompress_envs.problem import FloatArray, Labeling, LayerNumbers, Problem, n_of_m


@dataclass(frozen=True)
class Menus:
    """All menus of one network.

    Attributes:
        network: traced network.
        settings: settings that the menus were built with.
        sources: weight and statistics by layer name, from which variants are made.
        orders: channels (n,) of every group in the order of their removal.
        ranges: ranges of every layer's input by its name, one for each of `settings.activation_bits`; None
            for 32 bits.
        range_errors: expected loss (A,) of each of those ranges in nats, by layer name.
        store: folder in which variants are kept.
        eager: whether all variants of the tables are built beforehand. Else only those without pruning are;
            the tables estimate the others, which are built when they are first asked for.
        judged: expected losses of the labels' weights in nats, by layer name: a table (S, B) for each position of
            the layer's reads, or one. None: losses are those that the moments expect which the weights were fitted to.
        device: device that weights are fitted on.
        widths: channels that a group may keep, descending, by the name of the layer that owns it; groups that are not
            named keep all of their choices.
    """

    network: Network
    settings: MenuSettings
    sources: Mapping[str, LayerSource]
    orders: Sequence[Tensor]
    ranges: Mapping[str, Sequence[ActivationRange | None]]
    range_errors: Mapping[str, np.ndarray]
    store: Store
    eager: bool
    judged: Mapping[str, Sequence[FloatArray]] | None = None
    device: str = "cpu"
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def only(self, widths: Mapping[str, tuple[int, ...]]) -> Menus:
        """The same menus with fewer widths on offer.

        Args:
            widths: channels that a group may keep, descending, the first all of them, out of `kept_options`, by the
                name of the layer that owns it.
        """
        judged = None if self.judged is None else dict(self.judged)
        for layer in self.network.layers if judged is not None else ():
            assert judged is not None, "the loop has no rounds then"
            tables = list(judged[layer.name])
            for position, read in enumerate(self.reads(layer)):
                group = self.network.groups[read]
                if group.owner in widths:
                    options = self.kept_options(group)
                    tables[position] = tables[position][[options.index(kept) for kept in widths[group.owner]]]
            judged[layer.name] = tables
        return replace(self, judged=judged, widths={**self.widths, **widths})

    def leaders(self) -> dict[int, int]:
        """Index of the layer whose label a layer has, for layers that are tied to another (`Layer.tied_to`).

        Single weights are removed layer by layer, so with the granularities `element` and `n:m` there are no ties.
        """
        return self.network.leaders() if self.settings.granularity == "channel" else {}

    def sparsities(self, layer: Layer) -> tuple[float, ...]:
        """Sparsities (S) that the layer's label may have, ascending, first 0; just 0 where it has no choice.

        They are exact: where a group of 10 channels loses an eighth, rounded down to 1 channel, the sparsity
        is 0.1.
        """
        if layer.reads_unrounded:
            return (0.0,)
        if self.settings.granularity == "channel":
            group = self.owned_group(layer)
            return (0.0,) if group is None else tuple(1 - kept / group.width for kept in self.kept_options(group))
        if self.settings.granularity != "element" and layer.fan_in % n_of_m(self.settings.granularity)[1]:
            return (0.0,)
        return self.settings.sparsities()

    def ranks(self, layer: Layer) -> tuple[int, ...]:
        """Ranks of two factors on offer for a layer, ascending; layers that are tied have the same.

        None is where whole branches may go and the layer reads or writes one, nor where all of H is not known.
        """
        leader = layer.tied_to or layer.name
        members = [each for each in self.network.layers if leader in (each.name, each.tied_to)]
        for each in members:
            groups = [self.network.groups[index] for index in {*each.reads, each.writes} if index is not None]
            may_go = self.settings.remove_branches and any(group.is_branch for group in groups)
            if may_go or self.sources[each.name].is_diagonal:
                return ()
        return offered_ranks(members, self.settings.ranks)

    def formats(self, layer: Layer) -> tuple[Format, ...]:
        """Formats (B) of a layer's weights: low ranks, lowest first, each at all bits; then the layer as it is."""
        return self._formats[layer.name]

    @cached_property
    def _formats(self) -> dict[str, tuple[Format, ...]]:
        ranks = {layer.name: self.ranks(layer) if self.settings.ranks else () for layer in self.network.layers}
        return {
            name: tuple(Format(rank, bits) for rank in (*low, 0) for bits in self.settings.weight_bits)
            for name, low in ranks.items()
        }

    def kept_options(self, group: Group) -> list[int]:
        """Channels left of a group for each of its sparsities, descending.

        At least one channel stays; only of a branch that may be removed whole, none does.
        """
        if group.owner in self.widths:
            return list(self.widths[group.owner])
        return self.settings.channels(group.width) + [0] * (self.settings.remove_branches and group.is_branch)

    def owned_group(self, layer: Layer) -> Group | None:
        """The group whose sparsity stands in this layer's label; None where there is none."""
        if self.settings.granularity != "channel" or layer.writes is None:
            return None
        group = self.network.groups[layer.writes]
        return group if group.owner == layer.name else None

    def removed_channels(self, group_index: int, kept: int) -> Tensor:
        """The channels (n - kept,) of a group that are removed where `kept` stay."""
        return self.orders[group_index][: self.network.groups[group_index].width - kept]

    def variants(self, layer: Layer, kept: Mapping[int, int], sparsity: float = 0.0) -> list[Variant]:
        """The layer's variants, one for each of its formats; read from the store, or built and stored.

        Args:
            layer: layer of the network.
            kept: channels left in each group that the layer reads, by group index.
            sparsity: sparsity of the layer's own weights, with granularity `element` or `n:m`.
        """
        return self._built(self._file_name(layer, kept, sparsity), layer, kept, sparsity, self.formats(layer))

    def _built(
        self, name: str, layer: Layer, kept: Mapping[int, int], sparsity: float, formats: Sequence[Format]
    ) -> list[Variant]:
        """Variants from the store's file of that name, for each of `formats`, low ranks first.

        Where the file is missing, they are built.
        """
        low = [each for each in formats if each.rank]
        bits = [each.bits for each in formats if not each.rank]

        def build() -> list[Variant]:
            source = self.sources[layer.name].to(self.device)
            if self.settings.granularity != "channel":
                return sparse_variants(source, sparsity, bits, self.settings)
            columns = self.kept_columns(layer, kept)
            found = low_rank_variants(source, columns, low, self.settings) if low else []
            return found + (channel_variants(source, columns, bits, self.settings) if bits else [])

        return self.store.variants(name, formats, build)

    def variant(self, layer: Layer, kept: Mapping[int, int], sparsity: float, position: int) -> Variant:
        """The layer's variant of the format at `position` of `formats`.

        Where the tables don't build all variants, this one is built and stored alone.

        Args:
            layer: layer of the network.
            kept: channels left in each group that the layer reads, by group index.
            sparsity: sparsity of the layer's own weights, with granularity `element` or `n:m`.
            position: index into the layer's `formats`.
        """
        full = all(count == self.network.groups[read].width for read, count in kept.items())
        if self.eager or full:
            return self.variants(layer, kept, sparsity)[position]
        chosen = self.formats(layer)[position]
        name = f"{self._file_name(layer, kept, sparsity)}-b{chosen.bits}" + (f"-r{chosen.rank}" if chosen.rank else "")
        return self._built(name, layer, kept, sparsity, [chosen])[0]

    def kept_columns(self, layer: Layer, kept: Mapping[int, int]) -> Tensor:
        """Indices (k,) of the columns of the layer's flattened weight that stay, ascending.

        Args:
            layer: layer of the network.
            kept: channels left in each group, by group index; groups that the layer does not read don't
                matter.
        """
        stays = torch.ones(layer.fan_in, dtype=torch.bool)
        for index, count in kept.items():
            columns = self.network.groups[index].consumers.get(layer.name)
            if columns is not None:
                stays[torch.from_numpy(columns)[self.removed_channels(index, count)].flatten()] = False
        return stays.nonzero()[:, 0]

    def reads(self, layer: Layer) -> tuple[int, ...]:
        """Indices of the groups whose sparsity takes columns from the layer's weight."""
        return layer.reads if self.settings.granularity == "channel" else ()

    def problem(self) -> Problem:
        """The menus in numbers, all that the environment and the solvers know; read from the store once."""
        return self._problem

    @cached_property
    def _problem(self) -> Problem:
        index = self.network.layer_index()
        layers = tuple(self._numbers(layer, index) for layer in self.network.layers)
        return tied(Problem(layers, replace(self.network.costs, granularity=self.settings.granularity)), self.leaders())

    def _numbers(self, layer: Layer, index: Mapping[str, int]) -> LayerNumbers:
        """One layer's menu in numbers; `index` holds the index of every layer by its name.

        The expected loss of a label is the sum of its parts: that of the weight, by the sparsity of the first
        group that the layer reads and by weight bits; that of the input's range; and what the sparsities of
        further groups add.
        """
        group = self.owned_group(layer)
        owners = [index[self.network.groups[read].owner] for read in self.reads(layer)]
        tables = [self._error_table(layer, position) for position in range(max(1, len(owners)))]
        sparsities = self.sparsities(layer)
        own_source = index[layer.name] if len(sparsities) > 1 and self.settings.granularity != "channel" else None
        return LayerNumbers(
            name=layer.name,
            kind=layer.kind,
            sparsities=np.array(sparsities),
            kept=np.array([] if group is None else self.kept_options(group), dtype=np.int64),
            group=None if group is None else layer.writes,
            weight_bits=np.array([each.bits for each in self.formats(layer)]),
            activation_bits=np.array(self._activation_bits(layer)),
            source=owners[0] if owners else own_source,
            errors=tables[0][:, :, None] + self.range_errors[layer.name],  # (S, B, A)
            extra_sources=tuple(
                (owner, np.maximum(table[:, -1] - table[0, -1], 0.0))
                for owner, table in zip(owners[1:], tables[1:], strict=True)
            ),
            ranks=np.array([each.rank for each in self.formats(layer)]),
        )

    def _error_table(self, layer: Layer, position: int) -> FloatArray:
        """Expected loss (S, B) while only one group is pruned, that at `position` of the layer's reads."""
        if self.judged is not None:
            return self.judged[layer.name][position]
        return self.table(layer, position, [variant.error for _, variant in self.table_variants(layer, position)])

    def table_variants(self, layer: Layer, position: int) -> Iterator[tuple[Mapping[int, int], Variant]]:
        """The variants that an error table is made from, each with the channels left by group index.

        Of a row whose variants are all built, one for each format; of any other row, the pruned weights in 16 bits.

        Args:
            layer: layer of the network.
            position: index into the groups that the layer reads; all others keep every channel.
        """
        for kept, sparsity, full in self.table_cells(layer, position):
            for variant in self.variants(layer, kept, sparsity) if full else [self.pruned(layer, kept)]:
                yield kept, variant

    def table(self, layer: Layer, position: int, losses: Sequence[float]) -> FloatArray:
        """(S, B) expected losses, from one for each of `table_variants`.

        A row whose variants are not all built has the loss of pruning, and an estimate of rounding's: as much as in the
        unpruned layer, in proportion to the columns that are left.
        """
        width, given, rows = len(self.formats(layer)), iter(losses), []
        for kept, _, full in self.table_cells(layer, position):
            if full:
                rows.append(np.array([next(given) for _ in range(width)]))
            else:
                share = len(self.kept_columns(layer, kept)) / layer.fan_in
                rows.append(next(given) + share * rows[0])
        return np.array(rows)

    def table_cells(self, layer: Layer, position: int) -> list[tuple[dict[int, int], float, bool]]:
        """The S rows of an error table.

        Args:
            layer: layer of the network.
            position: index into the groups that the layer reads; all others keep every channel.

        Returns:
            For each row the channels left by group index, the sparsity of the layer's own weights, and
            whether all its variants are built for the table.
        """
        if self.settings.granularity != "channel":
            return [({}, sparsity, True) for sparsity in self.sparsities(layer)]
        full = {read: self.network.groups[read].width for read in layer.reads}
        if not full:
            return [({}, 0.0, True)]
        read = layer.reads[position]
        options = self.kept_options(self.network.groups[read])
        return [(full | {read: kept}, 0.0, self.eager or kept == full[read]) for kept in options]

    def pruned(self, layer: Layer, kept: Mapping[int, int]) -> Variant:
        """The layer's pruned and re-fitted weights in 16 bits: what pruning does, without rounding.

        Args:
            layer: layer of the network.
            kept: channels left in each group that the layer reads, by group index.
        """
        return self._built(self._file_name(layer, kept, 0.0) + "-pruned", layer, kept, 0.0, [Format(0, 16)])[0]

    def _file_name(self, layer: Layer, kept: Mapping[int, int], sparsity: float) -> str:
        """File name of a layer's variants, such as `layer005-k8-s0`: channels left, then own sparsity."""
        counts = "-".join(str(kept[read]) for read in self.reads(layer) if read in kept)
        return f"layer{self.network.layer_index()[layer.name]:03d}-k{counts or 'all'}-s{sparsity:g}"

    def plan(self, labeling: Labeling) -> Plan:
        """The plan that a labelling in indices into the menus stands for."""
        labels = {}
        places = label_places(len(self.network.layers), self.leaders())
        for index, (layer, place) in enumerate(zip(self.network.layers, places, strict=True)):
            chosen = self.formats(layer)[labeling.weight_bits[place]]
            labels[layer.name] = Label(
                self.sparsities(layer)[labeling.sparsity[index]],
                chosen.bits,
                self._activation_bits(layer)[labeling.activation_bits[place]],
                chosen.rank,
            )
        return Plan(labels, self.settings.granularity, self.network.fingerprint)

    def labeling(self, plan: Plan) -> Labeling:
        """A plan's labels as indices into the menus; the inverse of `plan`.

        Raises:
            InputError: the plan is for another network or granularity, misses a layer, names an unknown one,
                holds a label that is not on the menu, or tears a tie apart.
        """
        check_plan(plan, self.network, self.settings.granularity)
        indices = [self._label_indices(layer, plan.labels[layer.name]) for layer in self.network.layers]
        for index, leader in self.leaders().items():
            check_tie(plan, *(self.network.layers[each].name for each in (index, leader)))
            indices[index] = (indices[index][0], 0, 0)
        sparsity, weight_bits, activation_bits = np.array(indices, dtype=np.int64).T
        return Labeling(sparsity, weight_bits, activation_bits)

    def _label_indices(self, layer: Layer, label: Label) -> tuple[int, int, int]:
        """Indices of a label's numbers in the layer's menu. Raises InputError where one is not offered."""
        sparsities = self.sparsities(layer)
        distances = [abs(label.sparsity - sparsity) for sparsity in sparsities]
        if min(distances) > SPARSITY_TOLERANCE:
            choices = ", ".join(f"{sparsity:g}" for sparsity in sparsities)
            raise InputError(
                f"Layer {layer.name}: `sparsity` must be one of {choices}, got {label.sparsity:g}; "
                "set --sparsity-levels and --width-steps."
            )
        return (
            int(np.argmin(distances)),
            self._format_index(layer, label),
            _position(layer, "activation_bits", label.activation_bits, self._activation_bits(layer)),
        )

    def _format_index(self, layer: Layer, label: Label) -> int:
        """Index of a label's rank and bits among the layer's formats. Raises InputError where one is not offered."""
        ranks = sorted({each.rank for each in self.formats(layer)})
        if label.rank not in ranks:
            listed = ", ".join(map(str, ranks))
            raise InputError(f"Layer {layer.name}: `rank` must be one of {listed}, got {label.rank}; set --ranks.")
        _position(layer, "weight_bits", label.weight_bits, self.settings.weight_bits)
        return self.formats(layer).index(Format(label.rank, label.weight_bits))

    def _activation_bits(self, layer: Layer) -> tuple[int, ...]:
        """Bit-widths of the layer's input, one for each on offer; 32 where none is rounded."""
        bits = self.settings.activation_bits
        return (32,) * len(bits) if layer.reads_unrounded else bits


def _position(layer: Layer, name: str, bits: int, choices: Sequence[int]) -> int:
    """Index of `bits` among the choices of the option `name`. Raises InputError where it is none."""
    if bits not in choices:
        listed = ", ".join(map(str, choices))
        raise InputError(
            f"Layer {layer.name}: `{name}` must be one of {listed}, got {bits}; set --{name.replace('_', '-')}."
        )
    return choices.index(bits)
