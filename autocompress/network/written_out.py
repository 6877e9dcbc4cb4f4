"""How layers run that are one fused operator to PyTorch: as that operator, or written out as products with matrices.

Written out, they compute the same (up to rounding in the last places), and everything that is known of linear layers
and convolutions holds for them: what each matrix reads, what its outputs are, how often it multiplies. So networks are
traced and calibrated written out, and run and exported fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_STEP_BY_STEP = ContextVar("_STEP_BY_STEP", default=False)
_AS_CONVOLUTIONS = ContextVar("_AS_CONVOLUTIONS", default=False)


@contextmanager
def step_by_step() -> Iterator[None]:
    """Recurrent layers (`Recurrent`) run their linear layers step by step, in this thread."""
    token = _STEP_BY_STEP.set(True)
    try:
        yield
    finally:
        _STEP_BY_STEP.reset(token)


@contextmanager
def as_convolutions() -> Iterator[None]:
    """Transposed convolutions (`network.transposed`) run as convolutions over spread inputs, in this thread."""
    token = _AS_CONVOLUTIONS.set(True)
    try:
        yield
    finally:
        _AS_CONVOLUTIONS.reset(token)


def runs_step_by_step() -> bool:
    """Whether recurrent layers run step by step now."""
    return _STEP_BY_STEP.get()


def runs_as_convolutions() -> bool:
    """Whether transposed convolutions run as convolutions now."""
    return _AS_CONVOLUTIONS.get()
