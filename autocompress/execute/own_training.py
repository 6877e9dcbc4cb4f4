"""One's own training: a function trains the compressed network, with its rounding and its zeros in the loop.

    def train(model, original, data):
        ...  # any loss, any optimizer, any trainer

    autocompress.finetune("runs/mine", train=train)

The function is handed a module of the original's class whose layers round in every forward pass
(`rounding_aware`), so that gradients know of it, and trains it in place or gives back what it became. Rounding and
zeros are taken from what the layers compute, so they hold whatever the function does.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import nn

from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed
from autocompress.execute.rounding_aware import finished, rounding_aware, unrounded
from autocompress.execute.tuning import Tuned
from autocompress.network.interface import plain

Train = Callable[[nn.Module, nn.Module, Data], nn.Module | None]
"""Function from the network, the original and the data to the trained network; None: it was trained in place."""


def train_own(compressed: Compressed, teacher: nn.Module, data: Data, train: Train) -> Tuned:
    """Hand the rounding-aware network to a function, and take the compressed network from what it became.

    Args:
        compressed: network to begin with; it is not changed.
        teacher: original network; the function gets a copy.
        data: data of the job; `data.search()` is the split that judges, and is not to be trained on.
        train: function that trains. It gets both networks on the CPU, with the forward pass that they were written
            with, the one in training mode and the other in eval mode; it may move them.

    Returns:
        The network as it was left, in its place of `compressed`. All the function did counts as one step.

    Raises:
        InputError: what comes back is no module, another one, or holds NaN or infinity.
    """
    started = time.monotonic()
    model = rounding_aware(compressed)
    before = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = plain(model).train()
    result = train(given, plain(copy.deepcopy(teacher)).eval(), data)
    _take_(model, given if result is None else result, before)
    model = model.cpu().eval()
    return Tuned(
        compressed=finished(model, compressed),
        steps=1,
        seconds=time.monotonic() - started,
        diverged=False,
        best_step=1,
        unrounded=unrounded(model, compressed),
    )


def _take_(model: nn.Module, trained: object, shapes: dict[str, tuple[int, ...]]) -> None:
    """Take the tensors of a trained network. Raises InputError where it is another network, or not finite."""
    if not isinstance(trained, nn.Module):
        raise InputError(
            f"`train` must return the network that it was given, or None, got {type(trained).__name__}; "
            "return the module."
        )
    found = trained.state_dict()
    if {name: tuple(tensor.shape) for name, tensor in found.items()} != shapes:
        other = next((name for name in shapes if name not in found or tuple(found[name].shape) != shapes[name]), None)
        raise InputError(
            "`train` must leave every tensor of the network its name and shape, got a difference in "
            f"{other or next(name for name in found if name not in shapes)}; change values only."
        )
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"`train` must leave finite weights, got NaN or infinity in {name}; lower the learning rate."
            )
    model.load_state_dict({name: tensor.detach().cpu() for name, tensor in found.items()})
