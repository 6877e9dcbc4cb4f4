"""The menus of a network: what every layer may get, what it costs, how much it hurts, and the weights of each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.menus.activations import ActivationRange
from autocompress.menus.settings import MenuSettings
from autocompress.menus.store import Store
from autocompress.menus.variants import LayerSource, Variant, channel_variants, sparse_variants
from autocompress.network.structure import Group, Layer, Network
from autocompress.plan import Label, Plan
from autocompress_envs.problem import Labeling, LayerNumbers, Problem, n_of_m

_TOLERANCE = 1e-6  # by which a plan's sparsity may miss the menu's


@dataclass(frozen=True)
class Menus:
    """All menus of one network.

    Attributes:
        network: the traced network.
        settings: of the menus.
        sources: by layer name, what variants are made from.
        orders: for every group, (n,) its channels, first removed first.
        ranges: by layer name, one range for each of `settings.activation_bits` (None for 32 bits).
        range_errors: by layer name, (A,) layer errors of those, in nats.
        store: where variants are kept.
        eager: whether every variant is built beforehand; else most are built when first asked for.
    """

    network: Network
    settings: MenuSettings
    sources: Mapping[str, LayerSource]
    orders: Sequence[Tensor]
    ranges: Mapping[str, Sequence[ActivationRange | None]]
    range_errors: Mapping[str, np.ndarray]
    store: Store
    eager: bool

    def sparsities(self, layer: Layer) -> tuple[float, ...]:
        """What the layer itself may choose, ascending, first 0."""
        if self.settings.granularity == "channel":
            group = self.owned_group(layer)
            return (0.0,) if group is None else tuple(1 - kept / group.width for kept in self.kept_options(group))
        if self.settings.granularity != "element" and layer.fan_in % n_of_m(self.settings.granularity)[1]:
            return (0.0,)
        return self.settings.sparsities()

    def kept_options(self, group: Group) -> list[int]:
        """Channels left for each sparsity, descending; at least one stays, but where a whole branch may go."""
        kept = {group.width - int(sparsity * group.width) for sparsity in self.settings.sparsities()}
        branch = [0] if self.settings.remove_branches and group.is_branch else []
        return sorted((count for count in kept if count > 0), reverse=True) + branch

    def owned_group(self, layer: Layer) -> Group | None:
        """The group whose sparsity is this layer's label, if pruning goes by channels."""
        if self.settings.granularity != "channel" or layer.writes is None:
            return None
        group = self.network.groups[layer.writes]
        return group if group.owner == layer.name else None

    def removed_channels(self, group_index: int, kept: int) -> Tensor:
        """The channels that go when `kept` stay."""
        order = self.orders[group_index]
        return order[: len(order) - kept]

    def variants(self, layer: Layer, kept: Mapping[int, int], sparsity: float = 0.0) -> list[Variant]:
        """The layer's variants, one for each weight bit-width.

        Args:
            layer: the layer.
            kept: channels left in each group that the layer reads, by group index.
            sparsity: of the layer's own weights, with granularity `element` or `n:m`.
        """
        source, bits = self.sources[layer.name], self.settings.weight_bits
        name = self._file_name(layer, kept, sparsity)
        if self.settings.granularity != "channel":
            return self.store.variants(name, bits, lambda: sparse_variants(source, sparsity, bits, self.settings))
        columns = self.kept_columns(layer, kept)
        return self.store.variants(name, bits, lambda: channel_variants(source, columns, bits, self.settings))

    def variant(self, layer: Layer, kept: Mapping[int, int], sparsity: float, position: int) -> Variant:
        """The layer's variant with the bit-width at `position`; alone where the layer's variants are not all built."""
        full = all(count == self.network.groups[read].width for read, count in kept.items())
        if self.eager or full:
            return self.variants(layer, kept, sparsity)[position]
        source, bits = self.sources[layer.name], self.settings.weight_bits[position : position + 1]
        columns = self.kept_columns(layer, kept)
        name = f"{self._file_name(layer, kept, sparsity)}-b{bits[0]}"
        return self.store.variants(name, bits, lambda: channel_variants(source, columns, bits, self.settings))[0]

    def kept_columns(self, layer: Layer, kept: Mapping[int, int]) -> Tensor:
        """(k,) columns of the layer's flattened weight that stay."""
        stays = torch.ones(layer.fan_in, dtype=torch.bool)
        for index, count in kept.items():
            columns = self.network.groups[index].consumers.get(layer.name)
            if columns is not None:
                stays[torch.from_numpy(columns)[self.removed_channels(index, count)].flatten()] = False
        return stays.nonzero()[:, 0]

    def reads(self, layer: Layer) -> tuple[int, ...]:
        """The groups whose sparsity changes the layer's columns."""
        return layer.reads if self.settings.granularity == "channel" else ()

    def problem(self) -> Problem:
        """Everything in numbers, for the environment; read from the store once."""
        return self._problem

    @cached_property
    def _problem(self) -> Problem:
        index = self.network.layer_index()
        layers = tuple(self._numbers(layer, index) for layer in self.network.layers)
        return Problem(layers, replace(self.network.costs, granularity=self.settings.granularity))

    def _numbers(self, layer: Layer, index: Mapping[str, int]) -> LayerNumbers:
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
            weight_bits=np.array(self.settings.weight_bits),
            activation_bits=np.array(self.settings.activation_bits),
            source=owners[0] if owners else own_source,
            errors=tables[0][:, :, None] + self.range_errors[layer.name],
            extra_sources=tuple(
                (owner, np.maximum(table[:, -1] - table[0, -1], 0.0))
                for owner, table in zip(owners[1:], tables[1:], strict=True)
            ),
        )

    def _error_table(self, layer: Layer, position: int) -> np.ndarray:
        """(S, B) layer errors while only the group at `position` of the layer's reads is pruned."""
        return np.array([
            [variant.error for variant in self.variants(layer, kept, sparsity)] if full else self._estimate(layer, kept)
            for kept, sparsity, full in self.table_cells(layer, position)
        ])  # fmt: skip

    def table_cells(self, layer: Layer, position: int) -> list[tuple[dict[int, int], float, bool]]:
        """The rows of an error table: (kept by group, own sparsity, whether every bit-width is built for it)."""
        if self.settings.granularity != "channel":
            return [({}, sparsity, True) for sparsity in self.sparsities(layer)]
        full = {read: self.network.groups[read].width for read in layer.reads}
        if not full:
            return [({}, 0.0, True)]
        read = layer.reads[position]
        options = self.kept_options(self.network.groups[read])
        return [(full | {read: kept}, 0.0, self.eager or kept == full[read]) for kept in options]

    def _estimate(self, layer: Layer, kept: Mapping[int, int]) -> list[float]:
        """Errors of variants not built yet: of pruning alone, plus rounding's in proportion to what is left."""
        full = {read: self.network.groups[read].width for read in layer.reads}
        columns = self.kept_columns(layer, kept)
        pruned = self.pruned_error(layer, kept, columns)
        unpruned = self.variants(layer, full)
        return [pruned + variant.error * len(columns) / layer.fan_in for variant in unpruned]

    def pruned_error(self, layer: Layer, kept: Mapping[int, int], columns: Tensor) -> float:
        """Layer error of pruning without rounding, in nats."""
        source = self.sources[layer.name]

        def build() -> dict[str, Tensor]:
            error = channel_variants(source, columns, (32,), self.settings)[0].error
            return {"error": torch.tensor(error, dtype=torch.float64)}

        return float(self.store.tensors(self._file_name(layer, kept, 0.0) + "-pruned", build)["error"])

    def _file_name(self, layer: Layer, kept: Mapping[int, int], sparsity: float) -> str:
        """Name of a layer's variants in the store."""
        counts = "-".join(str(kept[read]) for read in self.reads(layer) if read in kept)
        return f"layer{self.network.layer_index()[layer.name]:03d}-k{counts or 'all'}-s{sparsity:g}"

    def plan(self, labeling: Labeling) -> Plan:
        """The plan that a labelling stands for."""
        labels = {}
        for index, layer in enumerate(self.network.layers):
            labels[layer.name] = Label(
                self.sparsities(layer)[labeling.sparsity[index]],
                self.settings.weight_bits[labeling.weight_bits[index]],
                self.settings.activation_bits[labeling.activation_bits[index]],
            )
        return Plan(labels, self.settings.granularity, self.network.fingerprint)

    def labeling(self, plan: Plan) -> Labeling:
        """The indices of a plan's labels in the menus.

        Raises:
            InputError: the plan is for another network or granularity, misses a layer, names an unknown one, or holds
                a label that is not on the menu.
        """
        self._check_plan(plan)
        indices = [self._label_indices(layer, plan.labels[layer.name]) for layer in self.network.layers]
        sparsity, weight_bits, activation_bits = np.array(indices, dtype=np.int64).T
        return Labeling(sparsity, weight_bits, activation_bits)

    def _check_plan(self, plan: Plan) -> None:
        names = [layer.name for layer in self.network.layers]
        if plan.fingerprint not in ("", self.network.fingerprint):
            raise InputError(
                f"`plan` must be for this network ({self.network.fingerprint}), got one for {plan.fingerprint}."
            )
        if plan.granularity != self.settings.granularity:
            raise InputError(
                f"`plan` must have granularity {self.settings.granularity}, got {plan.granularity}; set --granularity."
            )
        unknown = sorted(set(plan.labels) - set(names))
        missing = [name for name in names if name not in plan.labels]
        if unknown:
            raise InputError(f"`plan` names layers that the network does not have: {', '.join(unknown)}.")
        if missing:
            raise InputError(f"`plan` must label every layer, these are missing: {', '.join(missing)}.")

    def _label_indices(self, layer: Layer, label: Label) -> tuple[int, int, int]:
        sparsities = self.sparsities(layer)
        distances = [abs(label.sparsity - sparsity) for sparsity in sparsities]
        if min(distances) > _TOLERANCE:
            choices = ", ".join(f"{sparsity:g}" for sparsity in sparsities)
            raise InputError(f"Layer {layer.name}: `sparsity` must be one of {choices}, got {label.sparsity:g}.")
        return (
            int(np.argmin(distances)),
            _position(layer, "weight_bits", label.weight_bits, self.settings.weight_bits),
            _position(layer, "activation_bits", label.activation_bits, self.settings.activation_bits),
        )


def _position(layer: Layer, name: str, bits: int, choices: Sequence[int]) -> int:
    if bits not in choices:
        listed = ", ".join(map(str, choices))
        raise InputError(
            f"Layer {layer.name}: `{name}` must be one of {listed}, got {bits}; set --{name.replace('_', '-')}."
        )
    return choices.index(bits)
