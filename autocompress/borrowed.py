"""Borrowed state comes back: modes and gradients of modules, PyTorch's threads, and the global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of `model` requires gradients; those that did do again afterwards."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread per operator, while a pool of threads already keeps every core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def borrowed_random_state() -> Iterator[None]:
    """Whatever is drawn or seeded inside, the global generators are afterwards where they were before."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  (the legacy generator is what has to be restored)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def unfused_attention() -> Iterator[None]:
    """`nn.MultiheadAttention` runs operator by operator, not as one fused operator that has no cost formula."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
