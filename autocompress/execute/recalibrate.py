"""Re-calibration: every layer mends what the layers before it broke, from unlabelled samples.

Layer by layer in network order, on the compressed network's own inputs x̂ (pruned, rounded), each layer's weights become
the least-squares fit to what the original computes at the same place, with the original's weights as the prior. They
are rounded again with the second moment of x̂ (GPTQ, Frantar et al. 2023, asymmetric calibration as in GPTAQ, Li et al.
2025), and taken only where they do better on samples that they were not fitted to (`layer_fit`).

The target is the original layer's output. Where the layer's output is added to a shortcut that is already computed, the
layer can also make up for what the shortcut lost (`layer_site`). A layer that runs several times keeps its weights: no
single run can say what is best for all. So does one with so many inputs that its moment is not kept whole, and one
of low rank, which is followed as one layer with the product of its factors.

The way through: both graphs run side by side, operator by operator, on batches of samples (`following`). At every layer
the weights are fitted and written before the layer runs, so that all layers behind it see its new output. Memory holds
what is still to be read of as many samples as the layers ahead need, and no more than a limit allows.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from autocompress.data.sources import View
from autocompress.evaluation.batches import room_on
from autocompress.evaluation.stitch import resolve
from autocompress.execute.compressed import Compressed, whole_layers, with_layers_of, write_weights_
from autocompress.execute.following import Batches, Pair, Schedule
from autocompress.execute.layer_fit import fitted
from autocompress.execute.layer_site import Site, most_bytes_of_columns
from autocompress.memory import give_back
from autocompress.menus.activations import ActivationRange
from autocompress.menus.calibration import MOST_INPUTS, largest_moment
from autocompress.menus.menus import Menus
from autocompress.network.exported import export_graph, layer_calls
from autocompress.network.structure import EMBEDDING, RECURRENT, TRANSPOSED, Layer, Network
from autocompress.samples import Inputs
from autocompress_envs.problem import Labeling

_BYTES_PER_ENTRY = 100  # a fit holds about a dozen copies of H in double precision at its peak
_BYTES_PER_ENTRY_OF_SUMS = 60  # the sums of all folds in double precision, on the device that the networks run on
_MOST_VALUES = 2_000_000_000  # bytes of the values that are held: more samples of early layers would say little new
_MOST_AXES = 4  # of the weight of a layer that is fitted
_COPIES_OF_COLUMNS = 6  # of the drawn columns: gathered, rounded, cut into folds, centered


def recalibrate(
    compressed: Compressed,
    original: nn.Module,
    menus: Menus,
    labeling: Labeling,
    inputs: Inputs | View,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    device: torch.device | None = None,
    memory: int | None = None,
) -> Compressed:
    """The compressed network with weights and input ranges fitted anew, the labels being the same.

    Args:
        compressed: network with the menus' weights; it is not changed.
        original: original network with its norms folded; it is not changed.
        menus: menus of the network.
        labeling: plan that `compressed` was made by, as positions on the menus.
        inputs: (N, …) samples, unlabelled, a few hundred or more.
        progress: function that is called with (layers done, all layers, name of the stage) after every layer.
        device: device that both networks run on; None: the CPU. The result is on the CPU.
        memory: most bytes that the process may hold in all. The fewer, the fewer samples the layers are fitted to, at
            least 8. None: what it holds now and 70 % of what is available. On a GPU its own memory counts instead.

    Raises:
        ExportError: the network can't be followed operator by operator.
    """
    report = progress or (lambda done, total, what: None)
    place_of_work = device or torch.device("cpu")
    whole = whole_layers(compressed)  # operator by operator as the original
    model = whole.model.eval().to(place_of_work)
    teacher = copy.deepcopy(original).eval().to(place_of_work)  # a copy: its graph shares and freezes its parameters
    sample = inputs[:1].to(place_of_work)
    pair = Pair(*(export_graph(each, sample) for each in (teacher, model)))
    layers, sites, calls = dict(whole.layers), {}, layer_calls(pair.current.graph, model, whole.layers)
    structure = {layer.name: layer for layer in menus.network.layers}
    choices = dict(zip(layers, resolve(menus, labeling), strict=True))
    runs = Counter(calls.values())
    for place, (before, node) in enumerate(pair.nodes):
        name = calls.get(node, "")
        if runs[name] == 1 and _is_fitted(structure[name]) and name in compressed.layers:
            module = model.get_submodule(name)
            sites[place] = Site(structure[name], choices[name], menus, module, before, node, place)

    def range_at(place: int) -> ActivationRange | None:
        name = calls.get(pair.nodes[place][1])
        return None if name is None else layers[name].input_range

    with torch.no_grad():
        needs = {place: site.samples_wanted for place, site in sites.items()}
        room = min(room_on(place_of_work, memory) - fitting_bytes(menus.network, place_of_work), _MOST_VALUES)
        schedule = Schedule.of(needs, pair.bytes_by_place(sample), room, len(inputs))
        batches = Batches(pair, inputs, schedule.in_a_batch, place_of_work, range_at)
        for place in range(len(pair.nodes)):
            site = sites.get(place)
            if site is not None:
                batches.grow_(schedule.held[place], place)
            for batch in batches:
                pair.run_reference(place, batch)
            if site is not None:
                name = site.layer.name
                layers[name] = fitted(site, layers[name], list(batches))
                write_weights_(model, name, layers[name])  # and so into the graph, which shares them
                report(list(sites).index(place) + 1, len(sites), "re-calibration")
            for batch in batches:
                pair.run_current(place, batch, range_at(place))
            give_back()
    return with_layers_of(compressed, layers)


def _is_fitted(layer: Layer) -> bool:
    """Whether a layer is fitted anew: none of very many inputs, no table, as what it reads is never disturbed.

    Nor is a part of a recurrent operator, inside of which nothing is followed, nor a convolution that is transposed or
    goes along three axes, whose columns are not drawn.
    """
    is_followed = layer.kind not in (EMBEDDING, RECURRENT, TRANSPOSED) and len(layer.weight_shape) <= _MOST_AXES
    return layer.fan_in <= MOST_INPUTS and is_followed


def fitting_bytes(network: Network, device: torch.device | None = None) -> int:
    """Bytes that fitting the largest layer takes at its peak on a device, however many samples there are.

    Args:
        network: trace of the network.
        device: device that the networks run on; None: the CPU. On any other the fits themselves still take the host's.
    """
    pieces = max((most_bytes_of_columns(layer) for layer in network.layers if _is_fitted(layer)), default=0)
    per_entry = _BYTES_PER_ENTRY if device is None or device.type == "cpu" else _BYTES_PER_ENTRY_OF_SUMS
    return _COPIES_OF_COLUMNS * pieces + per_entry * largest_moment(network)
