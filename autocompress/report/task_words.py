"""How reports name what a task's numbers are: the divergence, and how like the original's outputs are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autocompress.tasks.metrics import METRICS

_OF_NUMBERS = "divergence from the original, ½ (Δ / spread)², nats"
_DIVERGENCES = {
    "regression": _OF_NUMBERS,
    "detection": _OF_NUMBERS,
    "embedding": "divergence from the original, 1 − cosine, nats",
}
_MEASURES = {"r2": "regression", "mae": "regression", "cosine": "embedding"}
"""Tasks of runs of earlier versions, which did not write it down, by the metrics that they took."""


def divergence_title(task: str | None) -> str:
    """What the divergence of a task is, as tables name it.

    >>> divergence_title("classification"), divergence_title("embedding")
    ('KL divergence from the original, nats', 'divergence from the original, 1 − cosine, nats')

    Args:
        task: name of the task; None: it is not known.
    """
    return _DIVERGENCES.get(task or "", "KL divergence from the original, nats")


def likeness(task: str | None, divergence: float) -> str:
    """A divergence of numbers or vectors in words that need no nats.

    >>> likeness("regression", 0.005), likeness("embedding", 0.005), likeness(None, 0.005)
    ("outputs within 10 % of their spread of the original's", "outputs with a cosine of 0.9950 with the original's", '')

    Args:
        task: name of the task; None: it is not known.
        divergence: nats.
    """
    title = divergence_title(task)
    if title == _OF_NUMBERS:  # ½ (Δ / spread)² is the divergence
        return f"outputs within {100 * math.sqrt(2 * divergence):.2g} % of their spread of the original's"
    if task == "embedding":
        return f"outputs with a cosine of {1 - divergence:.4f} with the original's"
    return ""


def recorded_task(outcome: Mapping[str, Any], asked: str) -> str | None:
    """Name of a run's task: the one that it wrote down, or, in earlier versions, what options and metrics tell.

    >>> recorded_task({"task": "embedding"}, "auto"), recorded_task({}, "detection")
    ('embedding', 'detection')
    >>> recorded_task({"metrics": {"r2": {}}}, "auto"), recorded_task({}, "auto")
    ('regression', None)

    Args:
        outcome: content of outcome.json.
        asked: option `task` of the run.
    """
    if "task" in outcome:
        return str(outcome["task"])
    if asked != "auto":
        return asked
    return next((_MEASURES[name] for name in outcome.get("metrics") or {} if name in _MEASURES), None)


def holds_numbers(outcome: Mapping[str, Any], task: str | None) -> bool:
    """Whether the outputs of a run of an earlier version are numbers or vectors, which have no equal answers.

    Args:
        outcome: content of outcome.json.
        task: name of the task; None: it is not known.
    """
    kinds = [METRICS[name].kind if name in METRICS else "classes" for name in outcome.get("metrics") or {}]
    return task in _DIVERGENCES or (bool(kinds) and not {"classes", "boxes"} & set(kinds))


def metric_title(name: str) -> str:
    """A metric's name in tables; that of a metric from outside as it is."""
    return METRICS[name].title if name in METRICS else name


def metric_text(name: str, value: float) -> str:
    """A metric's value as tables show it; that of a metric from outside with four decimals."""
    return METRICS[name].text(value) if name in METRICS else f"{value:.4f}"
