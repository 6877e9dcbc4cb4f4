"""Channel groups, read off torch-pruning's dependency graph and off the tape, and why other layers keep their widths.

Heads of attention come first (`network.heads`), then what torch-pruning finds, then feed-forward blocks whose graph it
can't read.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.network.dependency_graph import TooManySteps, bounded_search, torch_pruning
from autocompress.network.heads import Block
from autocompress.network.structure import Group, IntArray
from autocompress.network.tape import LAYER_TYPES, NORM_TYPES
from autocompress.network.transposed import TransposedConv
from autocompress.network.verification import Verifier, first_line
from autocompress.network.written_out import as_convolutions
from autocompress.samples import Inputs, call

UNREADABLE = "torch-pruning can't read the graph"  # how a reason begins that is no property of the network


@dataclass(frozen=True)
class ChannelGroups:
    """The channel groups of a network.

    Attributes:
        groups: prunable groups, in network order of their owners.
        fixed_reasons: reason why the width is fixed, by layer name; for the layers in none of the groups.
    """

    groups: tuple[Group, ...]
    fixed_reasons: Mapping[str, str]


@dataclass
class _Draft:
    """A group under construction: what torch-pruning ties to the channels of one layer.

    Attributes are those of `Group`; `reason` says why the group is not prunable, and is empty as long as it
    may be.
    """

    owner: str
    width: int
    producers: dict[str, IntArray] = field(default_factory=dict)
    consumers: dict[str, IntArray] = field(default_factory=dict)
    norms: dict[str, IntArray] = field(default_factory=dict)
    reason: str = ""


def find_groups(
    model: nn.Module,
    sample: Inputs,
    blocks: Sequence[Block],
    layers: Sequence[str],
    fixed_outputs: Mapping[str, str],
    shared: Mapping[str, str],
) -> ChannelGroups:
    """Channels that must be removed together; every group was checked by pruning a copy.

    Args:
        model: network in eval mode, with its batch norms folded; it is copied, not changed.
        sample: (1, ...) input.
        blocks: blocks of the network (`find_blocks`).
        layers: names of the layers, in network order.
        fixed_outputs: reason why the output channels can't be removed, by layer name.
        shared: reason why neither output nor input channels can be removed, by layer name.
    """
    blocks = [block for block in blocks if block.readings]
    reader = _GraphReader(model, fixed_outputs, shared)
    failure = reader.build(sample)
    in_attention = {name for block in blocks if block.has_heads for name in block.members}
    candidates: list[Group] = []
    if failure:
        reasons = {name: fixed_outputs.get(name, shared.get(name, failure)) for name in layers}
    else:
        candidates, reasons = _candidates(reader, [name for name in layers if name not in in_attention])
    del reader  # a large network is held in memory once less while copies are checked
    verifier = Verifier(model, sample)
    passed, faults = _verified_blocks(verifier, [block for block in blocks if block.has_heads], [])
    written = {name for group in passed for name in group.producers}
    others = [group for group in candidates if not written & group.producers.keys()]
    passed, more_faults = verifier.verify(others, passed)
    for group in others:
        if group.owner in more_faults:
            reasons |= dict.fromkeys(group.producers, more_faults[group.owner])
    written = {name for group in passed for name in group.producers}
    left = [block for block in blocks if not block.has_heads and not written & {*block.members}]
    passed, _ = _verified_blocks(verifier, left, passed)
    written = {name for group in passed for name in group.producers}
    passed.sort(key=lambda group: layers.index(group.owner))
    reasons = faults | reasons
    return ChannelGroups(tuple(passed), {name: reason for name, reason in reasons.items() if name not in written})


def _verified_blocks(
    verifier: Verifier, blocks: Sequence[Block], passed: list[Group]
) -> tuple[list[Group], dict[str, str]]:
    """`passed` with the groups that the blocks turn out to be, and by name of the layers of the others why they fail.

    Of blocks that are written alike, only the first one tries all readings.
    """
    alike: dict[Any, list[Block]] = {}
    for block in blocks:
        alike.setdefault(block.form(), []).append(block)
    faults: dict[str, str] = {}
    for form in alike.values():
        fault = ""
        for number, reading in enumerate(form[0].readings):
            alone, why = verifier.verify([reading], passed)
            if not why:
                passed, faults_of_others = verifier.verify([block.readings[number] for block in form[1:]], alone)
                failed = [(block, faults_of_others.get(block.members[0], "")) for block in form[1:]]
                break
            fault = fault or why[reading.owner]
        else:
            failed = [(block, fault) for block in form]
        for block, reason in failed:
            if reason:
                faults |= dict.fromkeys(block.members, f"heads: {reason}")
    return passed, faults


def _candidates(reader: _GraphReader, layers: Sequence[str]) -> tuple[list[Group], dict[str, str]]:
    """The groups that look prunable, and by name of each layer in the others why its width is fixed."""
    drafts: list[_Draft] = []
    seen: set[str] = set()
    for name in layers:
        if name not in seen:
            drafts.append(reader.draft(name))
            seen |= drafts[-1].producers.keys()
    membership = Counter(name for draft in drafts for name in draft.producers)
    reasons: dict[str, str] = {}
    groups: list[Group] = []
    for draft in drafts:
        if any(membership[name] > 1 for name in draft.producers):
            draft.reason = draft.reason or "belongs to several groups"
        if draft.reason:
            reasons |= {name: reasons.get(name, draft.reason) for name in draft.producers}
        else:
            groups.append(Group(draft.owner, draft.width, draft.producers, draft.consumers, draft.norms))
    return groups, reasons


class _GraphReader:
    """Reader of the groups in torch-pruning's dependency graph of a private copy of the model."""

    def __init__(self, model: nn.Module, fixed_outputs: Mapping[str, str], shared: Mapping[str, str]) -> None:

        self._model = copy.deepcopy(model).requires_grad_(True)
        for module in self._model.modules():
            if hasattr(module, "inplace"):  # an in-place activation hides from torch-pruning which layer it follows
                module.inplace = False  # type: ignore[assignment]
        self._names = {module: name for name, module in self._model.named_modules()}
        self._modules = dict(self._model.named_modules())
        self._fixed_outputs = fixed_outputs
        self._shared = shared
        self._graph = torch_pruning().DependencyGraph()

    def build(self, sample: Inputs) -> str:
        """Build the graph; returns why that failed, empty where it worked."""
        try:
            with warnings.catch_warnings(), torch.enable_grad(), as_convolutions():
                warnings.simplefilter("ignore")
                self._graph.build_dependency(self._model, sample, forward_fn=call, verbose=False)
        # torch-pruning fails on graphs it can't read with whatever its code runs into (TypeError, IndexError,
        # AssertionError, ...); all widths then stay, and the reason is reported.
        except Exception as error:
            return _unreadable(error)
        return ""

    def draft(self, owner: str) -> _Draft:
        """The group of a layer's output channels."""
        layer = self._modules[owner]
        draft = _Draft(owner, layer.weight.shape[0])
        draft.producers[owner] = np.arange(draft.width)[:, None]
        try:
            pruner = self._graph.get_pruner_of_module(layer)
            with warnings.catch_warnings(), bounded_search():
                warnings.simplefilter("ignore")
                items = list(self._graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(draft.width))))
        except Exception as error:  # as in `build`
            draft.reason = self._fixed_outputs.get(owner, _unreadable(error))
            return draft
        for item in items:
            self._add(draft, item)
        if not draft.reason:
            draft.reason = self._fault(draft)
        return draft

    def _add(self, draft: _Draft, item: Any) -> None:
        """Add one member of torch-pruning's group to the draft, or the reason why it rules out the group."""
        module, handler = item.dep.target.module, item.dep.handler
        name = self._names.get(module, "")
        indices = _by_channel(item.idxs, item.root_idxs, draft.width)
        if isinstance(module, LAYER_TYPES):
            self._add_layer(draft, name, module, indices, self._graph.is_out_channel_pruning_fn(handler))
        elif isinstance(module, NORM_TYPES):
            draft.norms[name] = indices
            problem = "" if indices.size else f"uneven channels in {name}"
            draft.reason = draft.reason or problem
        elif isinstance(module, nn.Parameter):
            draft.reason = draft.reason or "a parameter that is no layer's has the same channels"
        elif isinstance(module, nn.Module) and next(module.parameters(), None) is not None:
            draft.reason = draft.reason or f"{type(module).__name__} {name} has the same channels"

    def _add_layer(self, draft: _Draft, name: str, layer: Any, indices: IntArray, is_producer: bool) -> None:
        """Add a layer that writes (`is_producer`) or reads the channels, or why that rules out the group."""
        is_grouped = getattr(layer, "groups", 1) > 1
        problems = [self._shared.get(name)]
        if is_producer or is_depthwise(layer):
            draft.producers[name] = indices
            problems.append(self._fixed_outputs.get(name))
        else:
            draft.consumers[name] = _columns(layer, indices)
        if is_grouped and not is_depthwise(layer):
            problems.append(f"grouped convolution {name}")
        if not indices.size:
            problems.append(f"uneven channels in {name}")
        draft.reason = draft.reason or next((problem for problem in problems if problem), "")

    def _fault(self, draft: _Draft) -> str:
        """Why the group of all members is not prunable; empty where it looks prunable."""
        if draft.width < 2:
            return "only one channel"
        if not draft.consumers:
            return "no layer reads it"
        for name, rows in draft.producers.items():
            if not np.array_equal(np.sort(rows, axis=None), np.arange(self._modules[name].weight.shape[0])):
                return f"tied to some channels of {name} only"
        return ""


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution reads just the input channel of the same index."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or isinstance(layer, TransposedConv):
        return False
    return bool(layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels)


def _unreadable(error: Exception) -> str:
    said = first_line(error) if isinstance(error, TooManySteps) else f"{type(error).__name__}: {first_line(error)}"
    return f"{UNREADABLE}: {said}"


def _by_channel(indices: Iterable[int], roots: Iterable[int | None], width: int) -> IntArray:
    """A member's indices (width, r) of every channel; (width, 0) where channels have unequal numbers.

    Args:
        indices: rows or input channels of the member.
        roots: the group's channel that each of them belongs to, or None.
        width: channels of the group.
    """
    pairs = sorted((root, index) for root, index in zip(roots, indices, strict=True) if root is not None)
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    counts = np.bincount(array[:, 0], minlength=width)
    if len(counts) != width or counts.min() != counts.max() or len(np.unique(array[:, 1])) != len(array):
        return np.zeros((width, 0), np.int64)
    return array[:, 1].reshape(width, -1)


def _columns(layer: Any, inputs: IntArray) -> IntArray:
    """Columns (n, m) of the layer's flattened weight that read the input channels (n, r)."""
    taps = int(np.prod(layer.weight.shape[2:], dtype=np.int64))
    return (inputs[:, :, None] * taps + np.arange(taps)).reshape(len(inputs), -1)
