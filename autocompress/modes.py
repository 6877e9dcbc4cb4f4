"""Modules in eval mode for a while: what was borrowed comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode without gradients; every module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():  # not inference_mode: what the model caches for itself must stay usable in training
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
