"""Automated neural-network compression under a hard budget.

`search` finds a plan and makes the network that it gives; `inspect` shows what can be compressed and what it costs,
`evaluate` measures any plan and `apply` makes it real; `finetune`, `export` and `verify` go on with a finished run,
and `load` gives its network as a module; `compare` runs methods side by side, over budgets and seeds. What needs torch
is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Budget": "autocompress.budget",
    "Comparison": "autocompress.comparison.run",
    "InputError": "autocompress.errors",
    "Inspection": "autocompress.results",
    "Label": "autocompress.plan",
    "Measurement": "autocompress.results",
    "Plan": "autocompress.plan",
    "Result": "autocompress.results",
    "Finished": "autocompress.results",
    "apply": "autocompress.api",
    "compare": "autocompress.comparison.run",
    "evaluate": "autocompress.api",
    "export": "autocompress.runs",
    "finetune": "autocompress.runs",
    "inspect": "autocompress.api",
    "load": "autocompress.targets.loading",
    "search": "autocompress.api",
    "verify": "autocompress.runs",
}

if TYPE_CHECKING:
    from autocompress.api import apply, evaluate, inspect, search
    from autocompress.budget import Budget
    from autocompress.comparison.run import Comparison, compare
    from autocompress.errors import InputError
    from autocompress.plan import Label, Plan
    from autocompress.results import Finished, Inspection, Measurement, Result
    from autocompress.runs import export, finetune, verify
    from autocompress.targets.loading import load

__all__ = [
    "Budget",
    "Comparison",
    "Finished",
    "InputError",
    "Inspection",
    "Label",
    "Measurement",
    "Plan",
    "Result",
    "__version__",
    "apply",
    "compare",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
