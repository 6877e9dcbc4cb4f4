"""`--task auto`: the task that outputs, labels and inputs look like, and why."""

from __future__ import annotations

from torch import Tensor

from autocompress.samples import tensors_of
from autocompress.tasks.tasks import Seen

_VECTORS = ("embedding", "hidden_state", "pooler", "features")  # parts of names of outputs that are embeddings
_UNIT = 1e-3  # vectors whose lengths differ from 1 by less were made so


def choose(seen: Seen, labels: Tensor | None) -> tuple[str, str]:
    """Name of a task and the reason for it, in a few words.

    Labels come first: whole numbers, one a sample, are classes; other numbers are what a regression is after; whole
    numbers at positions belong to tokens or pixels. Then names and shapes of outputs.

    Args:
        seen: the original on some samples.
        labels: labels (n, …) of some samples; None: the data has none.
    """
    if len(seen.outputs) > 1:
        if all(_is_named_vector(name) for name in seen.names):
            return "embedding", f"outputs {', '.join(seen.names)}"
        return "regression", f"{len(seen.outputs)} outputs, taken as numbers"
    return _by_labels(seen, labels) or _by_shape(seen)


def _by_labels(seen: Seen, labels: Tensor | None) -> tuple[str, str] | None:
    """What labels tell of a network with one output; None where they tell nothing."""
    output = seen.outputs[0]
    if labels is None:
        return None
    if labels.is_floating_point():
        return "regression", "labels are not whole numbers"
    if labels.ndim == 1 and output[0].numel() == 1 and int(labels.max()) < 2:
        return "classification", "one logit, and labels 0 and 1"
    positions, where = tuple(labels.shape[1:]), f"labels for every position of the output {tuple(output.shape[1:])}"
    if positions and positions == tuple(output.shape[2:]):
        return "segmentation", where
    if positions and positions == tuple(output.shape[1:-1]):
        return "token-classification", where
    return None


def _by_shape(seen: Seen) -> tuple[str, str]:
    """What the name and the shape of the only output tell."""
    output, shape = seen.outputs[0], f"output {tuple(seen.outputs[0].shape[1:])}"
    if output.ndim == 1 or output.shape[-1] == 1 or (output.ndim > 3 and output.shape[1] == 1):
        return "regression", f"{shape} of one number"
    if _is_vector(seen):
        return "embedding", f"{seen.names[0]} holds vectors"
    if output.ndim == 2:
        return "classification", f"{shape} of one row, and no labels that say otherwise"
    if output.ndim == 3 and _has_tokens(seen):
        return "token-classification", f"{shape} for as many tokens"
    if output.ndim == 4 and seen.names[0] == "out":
        return "segmentation", f"{shape} named out"
    return "regression", f"{shape}, taken as numbers"


def _is_named_vector(name: str) -> bool:
    return any(part in name for part in _VECTORS)


def _is_vector(seen: Seen) -> bool:
    """Whether the only output is called an embedding, or holds vectors of length 1."""
    output = seen.outputs[0]
    if _is_named_vector(seen.names[0]):
        return True
    return output.ndim == 2 and bool(((output.norm(dim=1) - 1).abs() < _UNIT).all())


def _has_tokens(seen: Seen) -> bool:
    """Whether an input is a row of whole numbers as long as the output (n, T, K) has positions."""
    return any(
        not each.is_floating_point() and each.ndim == 2 and each.shape[1] == seen.outputs[0].shape[1]
        for each in tensors_of(seen.inputs)
    )
