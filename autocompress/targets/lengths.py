"""The check that a file of a network of texts runs at another number of tokens than it was compressed at."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from autocompress.evaluation.measure import CLASSES, Kept
from autocompress.network.exported import takes_any_length
from autocompress.samples import Inputs, tensors_of
from autocompress.targets.graph.lengths import shorter, tokens_of
from autocompress.targets.timing import Session
from autocompress.targets.verify import Check, check_agreement, runtime_outcome
from autocompress.tasks.outputs import Outputs, as_tuple

_COMPARED = 200  # samples


def _flat(outputs: Tensor | Outputs, inputs: Inputs) -> Kept:
    """All outputs, one row a sample: positions that rows are drawn from are those of the full length."""
    seen = Kept(CLASSES)
    seen.add(torch.cat([each.flatten(1) for each in as_tuple(outputs)], 1), inputs, None)
    return seen


def check_length(runtime: str, graph: fx.GraphModule, session: Session, inputs: Inputs) -> Check | None:
    """The check `length`: at half the tokens, the file answers as its graph does in PyTorch; None where inputs are no
    texts.

    A file that takes one number of tokens alone passes, and the check says so.

    Args:
        runtime: name of the runtime.
        graph: graph that the file was written from.
        session: file in its runtime.
        inputs: (N, T) samples; the first 200 count.
    """
    tokens = tokens_of(inputs)
    if tokens < 2:
        return None
    if not takes_any_length(graph):
        return Check(
            "length", True, f"the file takes texts of exactly {tokens} tokens: no graph holds at other lengths"
        )
    given = shorter(inputs[:_COMPARED])
    with torch.no_grad():
        wanted = _flat(graph.cpu()(*tensors_of(given)), given)
    outcome = runtime_outcome(runtime, wanted, wanted, _flat(session.run(given), given))
    check = check_agreement(outcome)
    return replace(check, name="length", detail=f"at {tokens_of(given)} instead of {tokens} tokens, {check.detail}")
