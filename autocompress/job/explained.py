"""`layers.json` of a run: what its plan gives every layer, what that is expected to cost, and what other plans had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from autocompress.job.prepare import Job
from autocompress.network import Group, Layer, Network
from autocompress.plan import Label
from autocompress.searchers.simple_plans import best_mix, simple_plans
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Problem, removed_weights
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import InfeasibleBudgetError, Solver

EXPLAINED_VERSION = 1
AXES = ("sparsity", "weight_bits", "activation_bits")  # of menus, in the order of `Tables.counts`


def explained(
    job: Job, labeling: Labeling, limits: Mapping[str, int], policy: Labeling | None = None, *, searched: bool
) -> dict[str, Any]:
    """A plan layer by layer, as plain data for `layers.json`.

    Args:
        job: the network with its menus.
        labeling: the plan that was chosen.
        limits: absolute upper bounds by resource; empty without a budget.
        policy: labels that the policy gave in the environment, before any evaluation. Default: none.
        searched: whether a search chose the plan, so that the solver's plan and the simple plans stand beside it.
    """
    limits = {name: limit for name, limit in limits.items() if name in job.problem.original()}
    others = _other_plans(job.problem, limits, policy) if searched and limits else {}
    return {
        "version": EXPLAINED_VERSION,
        "layers": _layers(job, labeling, others, list(limits) or ["size"]),
        "groups": [_group(job.problem, labeling, *each) for each in enumerate(job.network.groups)],
        "expected_loss": {
            name: float(LossParts(job.problem)(plan).sum()) for name, plan in {"chosen": labeling, **others}.items()
        },
        "simple_plans": _simple_plans(job.problem, limits) if others else [],
    }


def _other_plans(problem: Problem, limits: Mapping[str, int], policy: Labeling | None) -> dict[str, Labeling]:
    """The solver's plan and the policy's, by name; none where none fits."""
    try:
        solver = {"solver": Solver(problem, limits).solve()}
    except InfeasibleBudgetError:  # the search may have had other bounds than those that the file must keep
        return {}
    return solver if policy is None else {**solver, "policy": policy}


def _layers(job: Job, labeling: Labeling, others: Mapping[str, Labeling], told: Sequence[str]) -> list[dict[str, Any]]:
    """One mapping a layer, in network order; `told` names the resources that other labels are shown to take."""
    problem, network = job.problem, job.network
    tables = Tables(problem)
    labels = job.menus.plan(labeling).labels
    of_others = {name: job.menus.plan(plan).labels for name, plan in others.items()}
    parts = LossParts(problem, tables)
    losses = parts(labeling)
    full, none = np.full(len(network.layers), 32), np.zeros(len(network.layers), dtype=np.int64)
    before = _untied(network, _amounts(problem, problem.costs.group_width, full, full, none.astype(float), none))
    after = _untied(network, _amounts(problem, problem.kept(labeling), *_bits(problem, labeling)))
    return [
        {
            **_facts(layer),
            "label": asdict(labels[layer.name]),
            "bytes": {"original": int(before["size"][at]), "compressed": int(after["size"][at])},
            "macs": {"original": int(before["macs"][at]), "compressed": int(after["macs"][at])},
            "weights_left": int(after["weights"][at]),
            "expected_loss": {"pruning": float(losses[at, 0]), "rounding": float(losses[at, 1])},
            "by_weight_bits": _by_weight_bits(tables, labeling, at, told),
            "by_sparsity": _by_sparsity(parts, tables, labeling, at, told),
            "other_plans": {name: _label(plan.get(layer.name)) for name, plan in of_others.items()},
        }
        for at, layer in enumerate(network.layers)
    ]


def _facts(layer: Layer) -> dict[str, Any]:
    """What of a layer no plan changes."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "weight_shape": list(layer.weight_shape),
        "parameters": layer.parameters,
        "writes_group": layer.writes,
        "reads_groups": list(layer.reads),
        "tied_to": layer.tied_to,
        "fixed_reason": layer.fixed_reason,
    }


def _label(label: Label | None) -> dict[str, Any] | None:
    return None if label is None else asdict(label)


def _bits(problem: Problem, labeling: Labeling) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """(L,) weight bits, activation bits, sparsities and ranks of a plan."""
    rows = zip(problem.layers, labeling.sparsity, labeling.weight_bits, labeling.activation_bits, strict=True)
    chosen = [(at.weight_bits[w], at.activation_bits[a], at.sparsities[s], at.weight_ranks[w]) for at, s, w, a in rows]
    weight_bits, activation_bits, sparsity, rank = map(np.array, zip(*chosen, strict=True))
    return weight_bits, activation_bits, sparsity, rank


def _amounts(
    problem: Problem,
    kept: IntArray,
    weight_bits: IntArray,
    activation_bits: IntArray,
    sparsity: FloatArray,
    rank: IntArray,
) -> dict[str, IntArray]:
    """(L,) bytes, multiply-accumulates and weights of every layer."""
    costs = problem.costs
    fan_in, out = costs.widths(kept)
    at = np.arange(len(problem.layers))
    found = costs.of_layers(at, fan_in, out, weight_bits, activation_bits, sparsity, rank)
    weights = np.where(rank > 0, rank * (fan_in * costs.first_factors + out), fan_in * out)
    if costs.granularity != "channel":
        weights = weights - removed_weights(weights, sparsity)
    return {**found, "weights": weights}


def _untied(network: Network, amounts: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """(L,) amounts, those of a tie shared out by weights: the problem counts all of a tie at its first layer."""
    shared = {name: each.copy() for name, each in amounts.items()}
    for leader in set(network.leaders().values()):
        tie = [leader, *(index for index, other in network.leaders().items() if other == leader)]
        weights = np.array([network.layers[index].parameters for index in tie])
        for each in shared.values():
            parts = each[tie].sum() * weights // weights.sum()
            parts[0] += each[tie].sum() - parts.sum()  # what division leaves over
            each[tie] = parts
    return shared


def _by_weight_bits(tables: Tables, labeling: Labeling, at: int, told: Sequence[str]) -> list[dict[str, Any]]:
    """What the layer would be expected to lose and take at each bit-width on its menu, all else as in the plan.

    For the first layer of a tie these are the loss and the bytes of the whole tie. `resources` are the whole plan's.
    """
    problem = tables.problem
    layer = problem.layers[at]
    row = 0 if layer.source is None else min(int(labeling.sparsity[layer.source]), len(layer.errors) - 1)
    pruning = layer.errors[row, -1, -1] - layer.errors[0, -1, -1]  # as `LossParts` splits a loss
    weight_bits, activation_bits, sparsity, rank = _bits(problem, labeling)
    amounts = _with_each(tables, labeling, "weight_bits", at, told)
    found = []
    for index, bits in enumerate(layer.weight_bits):
        if layer.weight_ranks[index]:
            continue  # a low rank has no place on a line of bits
        weight_bits[at], rank[at] = bits, 0
        size = _amounts(problem, problem.kept(labeling), weight_bits, activation_bits, sparsity, rank)["size"][at]
        loss = max(0.0, float(layer.errors[row, index, labeling.activation_bits[at]] - pruning))
        found.append({"weight_bits": int(bits), "loss": loss, "bytes": int(size), "resources": amounts[index]})
    return found


def _by_sparsity(
    parts: LossParts, tables: Tables, labeling: Labeling, at: int, told: Sequence[str]
) -> list[dict[str, Any]]:
    """What pruning the layer would be expected to cost at each sparsity on its menu, and what the whole plan would
    take then, all else as in the plan.
    """
    sparsities = tables.problem.layers[at].sparsities
    amounts = _with_each(tables, labeling, "sparsity", at, told)
    return [
        {
            "sparsity": float(sparsity),
            "loss": float(parts(_with(labeling, "sparsity", at, index))[at, 0]),
            "resources": amounts[index],
        }
        for index, sparsity in enumerate(sparsities)
    ]


def _with(labeling: Labeling, axis: str, at: int, index: int) -> Labeling:
    """A plan with another label of one layer on one axis."""
    changed = getattr(labeling, axis).copy()
    changed[at] = index
    return replace(labeling, **{axis: changed})


def _with_each(tables: Tables, labeling: Labeling, axis: str, at: int, told: Sequence[str]) -> list[dict[str, int]]:
    """Amounts of resources that the plan takes with each label of one layer on one axis, in the order of its menu."""
    count = int(tables.counts[at, AXES.index(axis)])
    return [tables.resources(_with(labeling, axis, at, index), told) for index in range(count)]


def _group(problem: Problem, labeling: Labeling, index: int, group: Group) -> dict[str, Any]:
    return {
        "index": index,
        "owner": group.owner,
        "width": group.width,
        "kept": int(problem.kept(labeling)[index]),
        "producers": list(group.producers),
        "consumers": list(group.consumers),
        "is_branch": group.is_branch,
    }


def _simple_plans(problem: Problem, limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """The simple plans by name, with their indices into the menus, by which the journal knows them."""
    limits = dict(limits)
    solver, mix = Solver(problem, limits), best_mix(problem, limits)
    names = {solver.solve().key(): "the solver's plan"}
    if mix is not None:
        names.setdefault(mix.key(), f"best mix of {_widths(problem, mix)} bits")
    return [
        {
            "name": names.get(plan.key(), _uniform_name(problem, plan)),
            "labels": [list(map(int, axis)) for axis in (plan.sparsity, plan.weight_bits, plan.activation_bits)],
            "expected_loss": float(solver.error(plan)),
        }
        for plan in simple_plans(problem, limits)
    ]


def _widths(problem: Problem, plan: Labeling) -> str:
    return " and ".join(str(bits) for bits in sorted(set(_bits(problem, plan)[0].tolist())))


def _uniform_name(problem: Problem, plan: Labeling) -> str:
    """A uniform plan in words; layers whose menus lack its bit-width have the next higher one."""
    weight_bits, _, sparsities, _ = _bits(problem, plan)
    where = "everywhere" if len(set(weight_bits.tolist())) == 1 else "where they are on offer"
    sparsity = float(sparsities.max())
    return f"{weight_bits.min()} bits {where}" + (f", {100 * sparsity:g} % pruned" if sparsity else "")
