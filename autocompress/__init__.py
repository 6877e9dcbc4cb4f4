"""Automated neural-network compression under a hard budget.

`search` finds a plan and the network it gives, `inspect` shows what can be compressed and what it costs,
`evaluate` measures any plan. What needs torch is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Budget": "autocompress.budget",
    "InputError": "autocompress.errors",
    "Inspection": "autocompress.results",
    "Label": "autocompress.plan",
    "Measurement": "autocompress.results",
    "Plan": "autocompress.plan",
    "Result": "autocompress.results",
    "evaluate": "autocompress.api",
    "inspect": "autocompress.api",
    "search": "autocompress.api",
}

if TYPE_CHECKING:
    from autocompress.api import evaluate, inspect, search
    from autocompress.budget import Budget
    from autocompress.errors import InputError
    from autocompress.plan import Label, Plan
    from autocompress.results import Inspection, Measurement, Result

__all__ = [
    "Budget",
    "InputError",
    "Inspection",
    "Label",
    "Measurement",
    "Plan",
    "Result",
    "__version__",
    "evaluate",
    "inspect",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
