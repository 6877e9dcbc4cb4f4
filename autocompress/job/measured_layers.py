"""What each layer's label of a finished run costs alone, measured on the search split; kept in layers.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import regular_file, strict_json, write_atomically
from autocompress.job.finish import json_text
from autocompress.job.finished_run import asked_of
from autocompress.job.load import load, load_splits
from autocompress.job.options import DataLike, ModelLike
from autocompress.job.prepare import build_evaluator, prepare
from autocompress.network import Network
from autocompress.plan import Plan
from autocompress.progress import Progress, Silent
from autocompress.run.lock import locked
from autocompress.run.names import LAYERS, PLAN
from autocompress.searchers.solvers.greedy import mildest
from autocompress_envs.problem import Labeling, Outcome, Problem


def measure_layers(
    run: str | Path,
    model: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    trust: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measure what the label of every layer costs alone, the rest of the network at its mildest labels.

    Args:
        run: folder of a finished run; its layers.json gets the losses.
        model: original network, where the run was made with a module and not a spec string.
        data: data of the run, where the run was made with tensors and not a spec string.
        trust: whether functions of somebody's own that the folder names may run; see `autocompress.job.trust`.
        progress: observer that is told of stages, notes and layers; see `autocompress.progress`.

    Returns:
        Nats of KL divergence by layer, above that of the network with its mildest labels; at least 0.

    Raises:
        InputError: the folder holds no finished run, or one of an earlier version without layers.json.
    """
    path, watcher = Path(run), progress or Silent()
    asked, plan = asked_of(path, model, data, {}, trust=trust)
    explained = _explained(path, plan)
    with locked(path, "run", "report"):
        job = prepare(load(asked, load_splits(asked), watcher), asked.menus, asked.config, watcher)
        machine = asked.config.model_copy(update={"dtype": "float32"})  # the noise of others hides small losses
        evaluator = build_evaluator(job, machine, watcher=watcher)
        watcher.stage(f"measuring the labels of {len(job.network.layers)} layers, each alone, on the search split")
        labeling = job.menus.labeling(plan)
        base, losses = alone(job.network, job.problem, labeling, evaluator, watcher)
        for layer in explained["layers"]:
            layer["measured_loss"] = losses[layer["name"]]
        write_atomically(path / LAYERS, json_text({**explained, "measured_base": base}))
    return losses


def alone(
    network: Network, problem: Problem, labeling: Labeling, evaluate: Callable[[Labeling], Outcome], watcher: Progress
) -> tuple[float, dict[str, float]]:
    """The KL divergence of the network with its mildest labels, and by layer what its label adds to it.

    A layer gets its bits together with the layers that are tied to it, and its sparsity where it owns a group. A layer
    that is tied to another has the other's loss.

    Args:
        network: the network as traced.
        problem: its menus in numbers.
        labeling: the plan.
        evaluate: function that measures a plan.
        watcher: observer that is told of every layer.
    """
    base, leaders = mildest(problem), network.leaders()
    lowest = evaluate(base).kl
    losses: dict[str, float] = {}
    for index, layer in enumerate(network.layers):
        members = [index, *(follower for follower, leader in leaders.items() if leader == index)]
        if index in leaders:
            losses[layer.name] = losses[network.layers[leaders[index]].name]
        else:
            plan = _with(base, labeling, members)
            losses[layer.name] = max(0.0, evaluate(plan).kl - lowest)
        watcher.advance(index + 1, len(network.layers), "layers")
    return lowest, losses


def _with(base: Labeling, labeling: Labeling, members: list[int]) -> Labeling:
    """The base with the labels that a plan gives some layers."""
    axes = []
    for name in ("sparsity", "weight_bits", "activation_bits"):
        axis = getattr(base, name).copy()
        axis[members] = getattr(labeling, name)[members]
        axes.append(axis)
    return Labeling(*axes)


def _explained(path: Path, plan: Plan) -> dict[str, Any]:
    if not regular_file(path / LAYERS):
        raise InputError(f"`run` must hold {LAYERS}, got {path} of an earlier version without it; make the run again.")
    try:
        found = dict(strict_json((path / LAYERS).read_bytes()))
        names = [layer["name"] for layer in found["layers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / LAYERS} must be as it was written, got a damaged file; run it again.") from error
    if names != list(plan.labels):
        raise InputError(f"{path / LAYERS} must have the layers of {PLAN}, got others; make the run again.")
    return found
