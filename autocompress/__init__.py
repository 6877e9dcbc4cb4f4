"""Automated neural-network compression under a hard budget.

`search` finds a plan and makes the network that it gives; `inspect` shows what can be compressed and what it costs,
`evaluate` measures any plan and `apply` makes it real; `finetune`, `export` and `verify` go on with a finished run,
and `load` gives its network as a module; `compare` runs methods side by side, over budgets and seeds. `register_…` adds
a criterion, a quantizer, a searcher and more from outside. What needs torch is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autocompress.version import __version__

_HOMES = {
    "Budget": "autocompress.budget",
    "Comparison": "autocompress.comparison.run",
    "Finished": "autocompress.job.results",
    "InputError": "autocompress.errors",
    "Inspection": "autocompress.job.results",
    "Label": "autocompress.plan",
    "Measurement": "autocompress.job.results",
    "Plan": "autocompress.plan",
    "Result": "autocompress.job.results",
    "Runtime": "autocompress.targets.target",
    "Target": "autocompress.targets.target",
    "Task": "autocompress.tasks.tasks",
    "apply": "autocompress.api",
    "compare": "autocompress.comparison.run",
    "evaluate": "autocompress.api",
    "export": "autocompress.api",
    "finetune": "autocompress.api",
    "inspect": "autocompress.api",
    "list_agents": "autocompress.extensions",
    "list_criteria": "autocompress.extensions",
    "list_data": "autocompress.extensions",
    "list_models": "autocompress.extensions",
    "list_quantizers": "autocompress.extensions",
    "list_rewards": "autocompress.extensions",
    "list_searchers": "autocompress.extensions",
    "list_targets": "autocompress.extensions",
    "list_tasks": "autocompress.extensions",
    "load": "autocompress.targets.loading",
    "measure_layers": "autocompress.api",
    "pareto": "autocompress.api",
    "register_agent": "autocompress.extensions",
    "register_criterion": "autocompress.extensions",
    "register_data": "autocompress.extensions",
    "register_model": "autocompress.extensions",
    "register_quantizer": "autocompress.extensions",
    "register_reward": "autocompress.extensions",
    "register_searcher": "autocompress.extensions",
    "register_target": "autocompress.extensions",
    "register_task": "autocompress.extensions",
    "report": "autocompress.api",
    "search": "autocompress.api",
    "smallest": "autocompress.api",
    "verify": "autocompress.api",
}

if TYPE_CHECKING:
    from autocompress.api import (
        apply,
        evaluate,
        export,
        finetune,
        inspect,
        measure_layers,
        pareto,
        report,
        search,
        smallest,
        verify,
    )
    from autocompress.budget import Budget
    from autocompress.comparison.run import Comparison, compare
    from autocompress.errors import InputError
    from autocompress.extensions import (
        list_agents,
        list_criteria,
        list_data,
        list_models,
        list_quantizers,
        list_rewards,
        list_searchers,
        list_targets,
        list_tasks,
        register_agent,
        register_criterion,
        register_data,
        register_model,
        register_quantizer,
        register_reward,
        register_searcher,
        register_target,
        register_task,
    )
    from autocompress.job.results import Finished, Inspection, Measurement, Result
    from autocompress.plan import Label, Plan
    from autocompress.targets.loading import load
    from autocompress.targets.target import Runtime, Target
    from autocompress.tasks.tasks import Task

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
    "Runtime",
    "Target",
    "Task",
    "__version__",
    "apply",
    "compare",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "list_agents",
    "list_criteria",
    "list_data",
    "list_models",
    "list_quantizers",
    "list_rewards",
    "list_searchers",
    "list_targets",
    "list_tasks",
    "load",
    "measure_layers",
    "pareto",
    "register_agent",
    "register_criterion",
    "register_data",
    "register_model",
    "register_quantizer",
    "register_reward",
    "register_searcher",
    "register_target",
    "register_task",
    "report",
    "search",
    "smallest",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package, whose `report` stays the function when the folder of that name is imported, as `search` does."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
