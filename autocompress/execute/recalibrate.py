"""Re-calibration: every layer mends what the layers before it broke, from unlabelled samples.

Layer by layer in network order, on the compressed network's own inputs x̂ (pruned, rounded), each layer's weights become
the least-squares fit to what the original computes at the same place,

    W* = argmin E‖y - W x̂‖² + λ‖W - W₀‖²  =  (E[y x̂ᵀ] + λ W₀) (E[x̂ x̂ᵀ] + λ I)⁻¹,

and are rounded again with the second moment of x̂ (GPTQ, Frantar et al. 2023, asymmetric calibration as in GPTAQ, Li et
al. 2025). W₀, the original's weights, is the prior: it decides where samples don't.

The target y is the original layer's output. Where the layer's output is added to a shortcut that is already computed,
the layer can also make up for what the shortcut lost: its target is y + s - ŝ. A layer that runs several times keeps
its weights: no single run can say what is best for all.

The way through: `recalibrate` runs the graphs of the original and of the compressed network side by side, operator by
operator (`_Follower`). At every layer, `_seen` gives x̂ and y; `_fitted` fits the weights and rounds them; the new
weights are written before the layer runs, so that all layers behind it see its new output.

Shapes: g groups of a convolution (1 elsewhere), k inputs of a row (fan-in), and column k + 1 for the bias.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from autocompress.errors import ExportError
from autocompress.evaluation.stitch import LayerChoice, kept_rows, resolve
from autocompress.execute.compressed import Compressed, LayerWeights, write_weights_
from autocompress.menus.activations import ActivationRange, calibrate_range
from autocompress.menus.algebra import cholesky_factor, damped
from autocompress.menus.calibration import batch_size
from autocompress.menus.columns import extended_columns, weight_order
from autocompress.menus.listening import window_of_module
from autocompress.menus.menus import Menus
from autocompress.menus.quantizers import QUANTIZERS, Rounding
from autocompress.menus.variants import channel_variants, sparsity_mask
from autocompress.network.exported import export_graph, layer_calls
from autocompress.network.structure import Layer
from autocompress_envs.problem import Labeling

_RANGE_SAMPLE = 65_536  # values of a layer's input that its range is taken from
_PRIOR = 1e-2  # λ as a fraction of the mean diagonal of E[x̂ x̂ᵀ]


def recalibrate(
    compressed: Compressed,
    original: nn.Module,
    menus: Menus,
    labeling: Labeling,
    inputs: Tensor,
    progress: Callable[[int, int, str], None] | None = None,
) -> Compressed:
    """The compressed network with weights and input ranges fitted anew, the labels being the same.

    Args:
        compressed: network with the menus' weights; it is not changed.
        original: original network with its norms folded; it is not changed.
        menus: menus of the network.
        labeling: plan that `compressed` was made by, as positions on the menus.
        inputs: (N, …) float32 samples, unlabelled, a few hundred or more.
        progress: function that is called with (layers done, all layers, name of the stage) after every layer.

    Raises:
        ExportError: the network can't be followed operator by operator.
    """
    report = progress or (lambda done, total, what: None)
    model = copy.deepcopy(compressed.model).eval()
    teacher = copy.deepcopy(original).eval()  # a copy, as its graph shares its parameters and freezes them
    reference, follower = (_Follower(export_graph(each, inputs[:1]), inputs) for each in (teacher, model))
    if [(node.op, node.target) for node in reference.nodes] != [(node.op, node.target) for node in follower.nodes]:
        raise ExportError("the network runs other operators once channels are gone; it can't be re-calibrated.")
    structure = {layer.name: layer for layer in menus.network.layers}
    choices = dict(zip(compressed.layers, resolve(menus, labeling), strict=True))
    calls, layers = layer_calls(follower.graph, model, compressed.layers), dict(compressed.layers)
    runs = Counter(calls.values())
    once = [name for name in layers if runs[name] == 1]
    with torch.no_grad():
        for before, node in zip(reference.nodes, follower.nodes, strict=True):
            name = calls.get(node)
            reference.step(before)
            if name is not None and runs[name] == 1:
                site = _Site(structure[name], choices[name], menus, model.get_submodule(name))
                x, y = _seen(reference, follower, before, node, site.rows)
                layers[name] = _fitted(site, layers[name], x, y)
                write_weights_(model, name, layers[name])  # and so into the graph, which shares them
                report(once.index(name) + 1, len(once), "re-calibration")
            follower.step(node, layers[name].input_range if name is not None else None)
            reference.forget(before)
            follower.forget(node)
    return Compressed(model, layers, compressed.plan)


class _Follower:
    """One graph that is run node by node on all samples at once; values that no later node reads are dropped."""

    def __init__(self, graph: fx.GraphModule, inputs: Tensor) -> None:
        self.graph = graph
        self.nodes = [node for node in graph.graph.nodes if node.op != "get_attr"]
        self._interpreter = fx.Interpreter(graph)
        self._inputs = inputs
        for node in graph.graph.find_nodes(op="get_attr"):
            self._interpreter.env[node] = self._interpreter.run_node(node)

    def value(self, node: fx.Node) -> Tensor:
        """The value (N, …) of a node that has been computed and is still needed."""
        found: Tensor = self._interpreter.env[node]
        return found

    def knows(self, node: object) -> bool:
        """Whether a node's value is there."""
        return node in self._interpreter.env

    def step(self, node: fx.Node, rounding: ActivationRange | None = None) -> None:
        """Compute a node; with a range, from its first argument rounded to that range."""
        env = self._interpreter.env
        if node.op == "placeholder":
            env[node] = self._inputs
        elif rounding is None:
            env[node] = self._interpreter.run_node(node)
        else:
            args, kwargs = self._interpreter.fetch_args_kwargs_from_env(node)
            env[node] = node.target(rounding.apply(args[0]), *args[1:], **kwargs)  # type: ignore[operator]

    def forget(self, node: fx.Node) -> None:
        """Drop the values that this node was the last to read."""
        for unused in self._interpreter.user_to_last_uses.get(node, ()):
            self._interpreter.env.pop(unused, None)


@dataclass(frozen=True)
class _Site:
    """One layer of the compressed network that is fitted.

    Attributes:
        layer: structure of the layer in the original.
        choice: resolved part of the plan that is the layer's.
        menus: menus of the network.
        module: module of the layer in the compressed network.
    """

    layer: Layer
    choice: LayerChoice
    menus: Menus
    module: nn.Module

    @property
    def rows(self) -> Tensor:
        """(r,) int64 output channels of the original's layer that stay."""
        return kept_rows(self.menus, self.layer, self.choice)

    @property
    def shrunk(self) -> Layer:
        """The structure of the layer in the compressed network."""
        groups = getattr(self.module, "groups", 1)
        return replace(self.layer, weight_shape=tuple(self.module.get_parameter("weight").shape), groups=groups)


def _seen(
    reference: _Follower, follower: _Follower, before: fx.Node, node: fx.Node, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """(x̂, y): the layer's input in the compressed network, and the output that it should have, rows that stay.

    Args:
        reference: original network, which has run the layer.
        follower: compressed network, which has run everything before the layer.
        before: node of the layer in the original's graph.
        node: node of the layer in the compressed network's graph.
        rows: (r,) output channels of the original that stay.
    """
    is_convolution = "conv" in str(before.target)
    axis = 1 if is_convolution and reference.value(before).ndim != 2 else -1  # of the output's channels
    target = reference.value(before).index_select(axis, rows)
    lost = _lost_by_shortcut(reference, follower, before, node, rows, axis)
    x = follower.value(node.all_input_nodes[0])
    return x, target if lost is None else target + lost


def _lost_by_shortcut(
    reference: _Follower, follower: _Follower, before: fx.Node, node: fx.Node, rows: Tensor, axis: int
) -> Tensor | None:
    """s - ŝ, where the layer's output is only added to a shortcut that is already computed; otherwise None."""
    other, other_before = _added_to(node), _added_to(before)
    if other is None or other_before is None or not (follower.knows(other) and reference.knows(other_before)):
        return None
    shortcut, shortcut_before = follower.value(other), reference.value(other_before)
    if shortcut_before.shape != reference.value(before).shape:  # it is broadcast
        return None
    return shortcut_before.index_select(axis, rows) - shortcut


def _added_to(node: fx.Node) -> fx.Node | None:
    """The other operand of the addition that alone reads the node; None where something else reads it."""
    if len(node.users) != 1:
        return None
    (add,) = node.users
    if getattr(add.target, "overloadpacket", None) is not torch.ops.aten.add or add.kwargs:
        return None
    others = [operand for operand in add.args if operand is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _fitted(site: _Site, layer: LayerWeights, x: Tensor, y: Tensor) -> LayerWeights:
    """The layer with weights fitted to give y for x, and its input's range taken anew from x.

    The steps: round x on its new range; collect both moments; solve for W*; round W* to the label's codes.
    """
    if layer.is_empty:
        return _with_mean_as_bias(layer, y if site.layer.kind == "linear" else y.movedim(1, -1))
    found = None if layer.input_range is None else calibrate_range(_sample(x), layer.input_range.bits)
    moment, cross = _moments(site, x if found is None else found.apply(x), y)
    anchor, kept = _PRIOR * (damped(moment, 1.0) - moment), _kept(site)  # λ I: (g, k + 1, k + 1), diagonal
    weight = _solve(moment + anchor, cross + _prior(site) @ anchor, kept)  # W*: (g, rows / g, k + 1)
    rounding = Rounding(weight, damped(moment, site.menus.settings.damping), kept)
    return _rounded(rounding, replace(layer, input_range=found), site.menus.settings.quantizer)


def _with_mean_as_bias(layer: LayerWeights, y: Tensor) -> LayerWeights:
    """A layer that only has its bias left, which becomes the mean of the wanted outputs (…, rows)."""
    return layer if layer.bias is None else replace(layer, bias=y.flatten(0, -2).mean(0))


def _sample(x: Tensor) -> Tensor:
    """(n,) values of x in ascending order: at most 65,536 drawn ones, and the smallest and the largest."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(x.numel(), (min(x.numel(), _RANGE_SAMPLE),), generator=generator)
    return torch.cat([x.flatten()[drawn], x.amin()[None], x.amax()[None]]).sort().values


def _moments(site: _Site, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """E[x̂ x̂ᵀ] (g, k + 1, k + 1) and E[y x̂ᵀ] (g, rows / g, k + 1), float64.

    Means over samples, sums over the positions that a kernel visits. x̂ has a 1 behind its k inputs, for the bias; where
    the layer has no bias, that column is made independent of all others, and its weight comes out as 0.
    """
    shrunk = site.shrunk
    columns = shrunk.fan_in + 1
    moment = torch.zeros(shrunk.groups, columns, columns, dtype=torch.float64)
    cross = torch.zeros(shrunk.groups, shrunk.rows // shrunk.groups, columns, dtype=torch.float64)
    batch = batch_size([shrunk])
    window = window_of_module(_as_called(site.module))
    for inputs, targets in zip(x.split(batch), y.split(batch), strict=True):
        unfolded = extended_columns(inputs, window)  # (g, M, k + 1)
        wanted = targets if shrunk.kind == "linear" else targets.movedim(1, -1)
        wanted = wanted.reshape(unfolded.shape[1], shrunk.groups, -1).permute(1, 2, 0)  # (g, rows / g, M)
        moment += (unfolded.mT @ unfolded).double()
        cross += (wanted @ unfolded).double()
    order = weight_order(shrunk)
    moment, cross = moment[:, order][:, :, order] / len(x), cross[:, :, order] / len(x)
    if not site.layer.has_bias:
        moment[:, -1, :-1] = moment[:, :-1, -1] = 0
        cross[:, :, -1] = 0
    return moment, cross


def _as_called(module: nn.Module) -> nn.Module:
    """The layer's module as its operator in the graph runs: other padding than with zeros is an operator before it."""
    if getattr(module, "padding_mode", "zeros") == "zeros":
        return module
    called: Any = copy.copy(module)
    called.padding, called.padding_mode = (0,) * len(called.kernel_size), "zeros"
    return cast(nn.Module, called)


def _prior(site: _Site) -> Tensor:
    """W₀ (g, rows / g, k + 1): the original's weights, re-fitted where columns are gone."""
    source, rows, shrunk = site.menus.sources[site.layer.name], site.rows, site.shrunk
    weight = source.weight
    if shrunk.fan_in < site.layer.fan_in:
        columns = site.menus.kept_columns(site.layer, site.choice.reads)
        (variant,) = channel_variants(source, columns, (32,), site.menus.settings)
        weight = torch.cat([variant.weight(), variant.bias[:, None]], 1).double()
    return weight[rows].view(shrunk.groups, -1, weight.shape[1])


def _kept(site: _Site) -> Tensor | None:
    """(g, rows / g, k) bool, False where the menus removed a weight; None: nowhere.

    The layer's own codes don't say: rounding makes more zeros than the label removes.
    """
    source, settings = site.menus.sources[site.layer.name], site.menus.settings
    if site.choice.sparsity == 0:
        return None
    mask = sparsity_mask(source, source.damped_moment(settings.damping), site.choice.sparsity, settings)
    return mask.view(site.layer.groups, -1, site.layer.fan_in)


def _solve(moment: Tensor, cross: Tensor, kept: Tensor | None) -> Tensor:
    """(g, rows / g, k + 1) rows w with w H = c; where weights are removed, on the columns that are left in each row.

    Args:
        moment: (g, k + 1, k + 1) H, positive definite.
        cross: (g, rows / g, k + 1) right-hand sides c.
        kept: (g, rows / g, k) False where a weight is removed; None: all are kept.
    """
    if kept is None:
        return torch.cholesky_solve(cross.mT, cholesky_factor(moment)).mT
    rows = cross.shape[1]
    support = torch.cat([kept.flatten(0, 1), torch.ones(len(cross) * rows, 1, dtype=torch.bool)], 1)
    weight = torch.zeros_like(cross)
    for row in range(len(support)):
        index, (group, member) = support[row].nonzero()[:, 0], divmod(row, rows)
        factor = cholesky_factor(moment[group][index][:, index])  # of H on the row's own columns
        found = torch.cholesky_solve(cross[group, member, index][:, None], factor)
        weight[group, member, index] = found[:, 0]
    return weight


def _rounded(rounding: Rounding, layer: LayerWeights, quantizer: str) -> LayerWeights:
    """The layer with weights fitted anew, rounded to its label's codes, or as floats.

    Args:
        rounding: fitted weights (g, rows / g, k + 1), and H for the quantizer.
        layer: layer with its bits and shape.
        quantizer: name of the quantizer.
    """
    shape, weight = layer.values.shape, rounding.weight
    if layer.scale is None:
        values = weight[..., :-1].flatten(0, 1).float().view(shape)
        values = values.half().float() if layer.bits == 16 else values
        bias = weight[..., -1].flatten()
        return replace(layer, values=values, bias=None if layer.bias is None else bias.float())
    (found,) = QUANTIZERS[quantizer](rounding, [layer.bits])
    return replace(
        layer,
        values=found.codes.flatten(0, 1).view(shape),
        scale=found.scale.flatten().float(),
        bias=None if layer.bias is None else found.bias.flatten().float(),
    )
