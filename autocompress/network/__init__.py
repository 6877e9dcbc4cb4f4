"""Tracing: layers, channel groups and costs of a network; batch norm folding; channel removal."""

from autocompress.network.folding import fold_batch_norms, unfold_batch_norms
from autocompress.network.slicing import mask_channels, remove_channels
from autocompress.network.structure import Group, Layer, Network
from autocompress.network.trace import trace

__all__ = [
    "Group",
    "Layer",
    "Network",
    "fold_batch_norms",
    "mask_channels",
    "remove_channels",
    "trace",
    "unfold_batch_norms",
]
