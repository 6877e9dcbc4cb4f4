"""Networks that are loaded in a runtime, as they are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autocompress.samples import Inputs, Samples, cast, tensors_of
from autocompress.tasks.outputs import Outputs


class Session(Protocol):
    """A network that is loaded in a runtime.

    A session may also have a method `prepared(inputs) -> call`, where `call()` runs the network on these inputs without
    converting them anew. Then that is timed: what a program spends in the runtime, and nothing of ours.
    """

    def run(self, inputs: Inputs) -> Tensor | Outputs:
        """(N, …) float32 outputs of (N, …) `inputs`, any N: a tensor, or several in a tuple."""
        ...


def call_of(session: Session, batch: Inputs) -> Callable[[], Any]:
    """A function that runs the session once on a batch, with as little around it as the session allows.

    Args:
        session: loaded network.
        batch: (N, …) inputs.
    """
    prepared = getattr(session, "prepared", None)
    if prepared is None:
        return lambda: session.run(batch)
    call: Callable[[], Any] = prepared(batch)
    return call


def feeds_of(inputs: Inputs, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """(N, …) arrays by the names of a file's inputs, numbers as float32.

    Args:
        inputs: (N, …) inputs of the network.
        wanted: names of the file's inputs. It has none for a tensor that its network does not use.
    """
    taken = tensors_of(cast(inputs.detach(), "cpu", torch.float32))
    names = inputs.names if isinstance(inputs, Samples) else wanted
    given = {name: tensor.contiguous().numpy() for name, tensor in zip(names, taken, strict=True)}
    return {name: given[name] for name in wanted}
