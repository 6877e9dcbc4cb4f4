"""The files that say how a run ended: layers.json and outcome.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.files import write_atomically
from autocompress.job.explained import explained
from autocompress.job.finish import json_text, write_outcome
from autocompress.job.options import Request, SearchRequest
from autocompress.job.prepare import Job
from autocompress.run.names import LAYERS
from autocompress_envs.problem import Labeling


def write_ending(
    path: Path,
    job: Job,
    labeling: Labeling,
    limits: Mapping[str, int],
    asked: Request,
    outcome: Mapping[str, Any],
    policy: Labeling | None = None,
) -> None:
    """Write what the plan gives every layer, and what was measured; the latter is a run's last file.

    Args:
        path: folder of the run.
        job: the network with its menus.
        labeling: the plan that was made real.
        limits: absolute upper bounds by resource; empty without a budget.
        asked: the search or the plan that was asked for.
        outcome: measurements of the finished network, as plain data.
        policy: labels that the policy gave in the environment, before any evaluation. Default: none.
    """
    searched = isinstance(asked, SearchRequest)
    write_atomically(path / LAYERS, json_text(explained(job, labeling, limits, policy, searched=searched)))
    made_by = {
        "command": "search" if searched else "apply",
        "model_in_memory": not isinstance(asked.model, str),
        "data_in_memory": asked.data is not None,
    }
    write_outcome(path, {**outcome, "made_by": made_by}, asked.config.device)
