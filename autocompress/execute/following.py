"""Two networks run side by side, operator by operator, on batches of samples whose number grows on the way.

Early layers have many positions a sample, so a few samples say all about them, and more would not fit into memory. Late
layers have few positions and need every sample. So `Batches` begins with few samples; when more are needed, the new
ones run through all operators passed so far, batch by batch, and keep only the values that are still to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, fx

from autocompress.data.sources import View
from autocompress.errors import ExportError
from autocompress.memory import samples_at_once
from autocompress.menus.activations import ActivationRange
from autocompress.samples import Inputs, tensors_of

Values = dict[fx.Node, Tensor]

MOST_IN_A_BATCH = 32  # samples that run together
LEAST_HELD = 8  # samples that are held whatever the limit: fewer say nothing about a layer


class Follower:
    """One network's graph, run node by node; a value that no later node reads is dropped.

    Args:
        graph: graph of the network (`export_graph`).

    Attributes:
        graph: the graph.
        nodes: nodes in their order, those of the input and of parameters left out.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.nodes: list[fx.Node] = [node for node in graph.graph.nodes if node.op not in ("placeholder", "get_attr")]
        self._inputs = graph.graph.find_nodes(op="placeholder")
        self._interpreter = fx.Interpreter(graph)
        found = graph.graph.find_nodes(op="get_attr")
        self._constants: Values = {node: self._interpreter.run_node(node) for node in found}

    def begin(self, inputs: Inputs) -> Values:
        """The values of a batch before its first node: its (n, …) inputs, and the parameters, which all share."""
        return {**self._constants, **dict(zip(self._inputs, tensors_of(inputs), strict=True))}

    def step(self, node: fx.Node, values: Values, rounding: ActivationRange | None = None) -> None:
        """Compute a node for one batch.

        Args:
            node: node of the graph.
            values: the batch's values, to which this one is added.
            rounding: range that the node's first argument is rounded to; None: it is taken as it is.
        """
        self._interpreter.env = values  # type: ignore[assignment]
        if rounding is None:
            values[node] = self._interpreter.run_node(node)
        else:
            args, kwargs = self._interpreter.fetch_args_kwargs_from_env(node)
            values[node] = node.target(rounding.apply(args[0]), *args[1:], **kwargs)  # type: ignore[operator]

    def forget(self, node: fx.Node, values: Values) -> None:
        """Drop the values that this node was the last to read."""
        for unused in self._interpreter.user_to_last_uses.get(node, ()):
            values.pop(unused, None)

    def bytes_of(self, values: Values) -> int:
        """Bytes of a batch's values without the parameters; views of one memory count once."""
        storages = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for node, value in values.items()
            if node not in self._constants and isinstance(value, Tensor)
        }
        return sum(storages.values())


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples in both networks.

    Attributes:
        start: number of the first sample among all.
        size: number of samples.
        reference: values of the original by node, as far as they are still to be read.
        current: those of the compressed network.
    """

    start: int
    size: int
    reference: Values
    current: Values


class Pair:
    """The original's graph and the compressed network's, which run the same operators.

    Args:
        reference: graph of the original.
        current: graph of the compressed network.

    Attributes:
        reference: follower of the original.
        current: follower of the compressed network.
        nodes: nodes (of the original, of the compressed network) in their order.

    Raises:
        ExportError: they run other operators.
    """

    def __init__(self, reference: fx.GraphModule, current: fx.GraphModule) -> None:
        self.reference, self.current = Follower(reference), Follower(current)
        targets = ([(node.op, node.target) for node in each.nodes] for each in (self.reference, self.current))
        if len({tuple(found) for found in targets}) > 1:
            raise ExportError("the network runs other operators once channels are gone; it can't be re-calibrated.")
        self.nodes = list(zip(self.reference.nodes, self.current.nodes, strict=True))

    def begin(self, start: int, inputs: Inputs) -> Batch:
        """A batch before its first node.

        Args:
            start: number of its first sample among all.
            inputs: (n, …) samples.
        """
        return Batch(start, len(inputs), self.reference.begin(inputs), self.current.begin(inputs))

    def run_reference(self, place: int, batch: Batch) -> None:
        """Compute the original's node at a place of the order for one batch."""
        node = self.nodes[place][0]
        self.reference.step(node, batch.reference)
        self.reference.forget(node, batch.reference)

    def run_current(self, place: int, batch: Batch, rounding: ActivationRange | None) -> None:
        """Compute the compressed network's node at a place of the order, its input rounded, for one batch."""
        node = self.nodes[place][1]
        self.current.step(node, batch.current, rounding)
        self.current.forget(node, batch.current)

    def bytes_by_place(self, sample: Inputs) -> list[int]:
        """Bytes that one sample takes at every place of the order, in both networks together.

        Args:
            sample: (1, …) input, which runs through both.
        """
        batch, found = self.begin(0, sample.clone()), []  # a slice would count all samples, whose memory it shares
        for before, now in self.nodes:
            self.reference.step(before, batch.reference)
            self.current.step(now, batch.current)
            found.append(self.reference.bytes_of(batch.reference) + self.current.bytes_of(batch.current))
            self.reference.forget(before, batch.reference)
            self.current.forget(now, batch.current)
        return found


@dataclass(frozen=True)
class Schedule:
    """How many samples run through which part of the network.

    Attributes:
        in_a_batch: samples that run together.
        held: samples that are held at every place of the order where there is a layer to fit, ascending.
    """

    in_a_batch: int
    held: Mapping[int, int]

    @classmethod
    def of(cls, needs: Mapping[int, int], bytes_by_place: Sequence[int], limit: int, samples: int) -> Schedule:
        """As many samples as a layer needs and memory holds; once there, a sample stays to the end.

        A quarter of the limit is for the batch that runs, the rest for the values of all samples that are held.

        >>> Schedule.of({1: 64, 3: 512}, [100, 100, 10, 10], 40_000, 1000).held
        {1: 64, 3: 512}
        >>> Schedule.of({1: 64, 3: 512}, [100, 100, 100, 10], 4_000, 1000).held  # 30 samples of 100 bytes in 3,000
        {1: 30, 3: 300}

        Args:
            needs: samples that each layer needs, by its place in the order.
            bytes_by_place: bytes that one sample takes at every place.
            limit: bytes that all values may take.
            samples: number of samples that there are.
        """
        held, wanted = {}, 0
        largest_behind = list(accumulate(reversed(bytes_by_place), max))[::-1]  # what a sample takes from here on
        for place in sorted(needs):
            wanted = max(wanted, min(needs[place], samples))
            fitting = samples_at_once(largest_behind[place], limit * 3 // 4, wanted)
            held[place] = max(fitting, min(LEAST_HELD, samples))
        return cls(samples_at_once(2 * max(bytes_by_place), limit // 4, MOST_IN_A_BATCH), held)


class Batches:
    """The batches that run through both networks; there are more of them the further they are.

    Args:
        pair: both networks.
        inputs: (N, …) all samples.
        in_a_batch: samples that run together.
        device: device that they run on.
        ranges: function that gives the range of the compressed network's input at a place of the order.
    """

    def __init__(
        self,
        pair: Pair,
        inputs: Inputs | View,
        in_a_batch: int,
        device: torch.device,
        ranges: Callable[[int], ActivationRange | None],
    ) -> None:
        self._pair, self._inputs, self._in_a_batch = pair, inputs, in_a_batch
        self._device, self._ranges = device, ranges
        self._batches: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    @property
    def samples(self) -> int:
        """Number of samples that are held."""
        return sum(batch.size for batch in self._batches)

    def grow_(self, samples: int, place: int) -> None:
        """Hold more samples; the new ones run through all nodes before a place.

        Args:
            samples: number of samples that are needed; where as many are held, nothing changes.
            place: place of the order up to which the others have run.
        """
        while (start := self.samples) < samples:
            stop = min(samples, start + self._in_a_batch)
            batch = self._pair.begin(start, self._inputs[start:stop].to(self._device))
            for passed in range(place):
                self._pair.run_reference(passed, batch)
                self._pair.run_current(passed, batch, self._ranges(passed))
            self._batches.append(batch)
