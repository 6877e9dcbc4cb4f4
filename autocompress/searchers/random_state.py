"""Borrowed random state comes back: Stable-Baselines3 seeds Python's, NumPy's and PyTorch's global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
