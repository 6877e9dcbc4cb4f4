"""The check at which lengths a file runs: one of a network of texts at others than it was compressed at."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, fx

from autocompress.evaluation.measure import CLASSES, Kept
from autocompress.network.exported import takes_any_length
from autocompress.network.structure import RECURRENT, Network
from autocompress.samples import Inputs, fields_of, tensors_of
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


def lengths_run(graph: fx.GraphModule, inputs: Inputs) -> tuple[int, ...]:
    """Numbers of tokens that a file of a network of texts is run at: all of them, and half as many where it can.

    Args:
        graph: graph that the file was written from.
        inputs: (N, T) samples; where they are no texts, the answer is empty.
    """
    tokens = tokens_of(inputs)
    if not tokens:
        return ()
    return (tokens, tokens // 2) if tokens > 1 and takes_any_length(graph) else (tokens,)


def check_length(
    runtime: str, graph: fx.GraphModule, session: Session, inputs: Inputs, network: Network, *, has_answers: bool = True
) -> Check | None:
    """The check `length`: at half the tokens, the file answers as its graph does in PyTorch.

    A file that takes one length alone passes, and the check says so: files of texts that no other length can be
    computed for, and those of networks with recurrent layers that read numbers.

    Args:
        runtime: name of the runtime.
        graph: graph that the file was written from.
        session: file in its runtime.
        inputs: (N, T) samples; the first 200 count.
        network: trace of the network.
        has_answers: whether outputs choose among classes. Default: yes.

    Returns:
        The check; None where inputs are neither texts nor sequences of a recurrent network.
    """
    lengths = lengths_run(graph, inputs)
    if not lengths and any(layer.kind == RECURRENT for layer in network.layers):
        shapes = ", ".join(f"({', '.join(['N', *map(str, each.shape)])})" for each in fields_of(inputs))
        return Check("length", True, f"the file was run on inputs {shapes} and takes sequences of this length alone")
    if not lengths or lengths == (1,):
        return None
    if len(lengths) == 1:
        return Check(
            "length", True, f"the file takes texts of exactly {lengths[0]} tokens: no graph holds at other lengths"
        )
    given = shorter(inputs[:_COMPARED])
    with torch.no_grad():
        wanted = _flat(graph.cpu()(*tensors_of(given)), given)
    outcome = runtime_outcome(runtime, wanted, wanted, _flat(session.run(given), given))
    check = check_agreement(outcome if has_answers else replace(outcome, agreement=math.nan))
    return replace(check, name="length", detail=f"at {lengths[1]} instead of {lengths[0]} tokens, {check.detail}")
