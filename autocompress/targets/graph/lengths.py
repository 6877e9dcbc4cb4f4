"""Texts of any length: graphs that take (N, T) token numbers at any T, and the check that they do.

Texts are padded to one number of tokens while networks are compressed. A file for that number alone would compute with
padding wherever texts are shorter.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from autocompress.errors import ExportError
from autocompress.network.exported import export_graph
from autocompress.network.interface import raw
from autocompress.network.verification import REORDERED_SUMS, are_close
from autocompress.samples import Inputs, Samples, fields_of, tensors_of
from autocompress.tasks.outputs import as_tuple, named_outputs

_COMPARED = 2  # samples


def exported_at_any_length(model: nn.Module, samples: Inputs) -> fx.GraphModule | None:
    """The graph of a network of texts, for any number of tokens.

    Args:
        model: network in eval mode.
        samples: (n, T) tensors.

    Returns:
        The graph; None where inputs are no texts, torch.export can't follow the network at any length, or the graph
        does not compute what the network does at another length.
    """
    if tokens_of(samples) < 2:
        return None
    try:
        graph = export_graph(model, samples[:1], any_length=True)
    except ExportError:
        return None
    given = tensors_of(shorter(samples[:_COMPARED]))
    with torch.no_grad():
        found, wanted = as_tuple(graph(*given)), tuple(named_outputs(raw(model)(*given)).values())
    return graph if are_close(wanted, found, REORDERED_SUMS) else None


def tokens_of(inputs: Inputs) -> int:
    """T where all tensors are integers (N, T), as token numbers and masks are; else 0."""
    fields = fields_of(inputs)
    shapes = {field.shape for field in fields}
    is_text = len(shapes) == 1 and len(fields[0].shape) == 1 and all(field.dtype.startswith("int") for field in fields)
    return fields[0].shape[0] if is_text else 0


def shorter(inputs: Inputs) -> Inputs:
    """The first half of the tokens of every text.

    Args:
        inputs: (N, T) tensors, T at least 2.
    """
    tokens = tokens_of(inputs) // 2
    if isinstance(inputs, Samples):
        return inputs.each(lambda tensor: tensor[:, :tokens])
    return inputs[:, :tokens]
