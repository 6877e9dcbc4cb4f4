"""Checks of a plan before its labels are looked up in menus: the right network, all of its layers, ties kept."""

from __future__ import annotations

from autocompress.errors import InputError
from autocompress.network.structure import Network
from autocompress.plan import Plan


def check_plan(plan: Plan, network: Network, granularity: str) -> None:
    """Raise InputError where a plan is for another network or granularity, or for other layers."""
    names = [layer.name for layer in network.layers]
    if plan.fingerprint not in ("", network.fingerprint):
        raise InputError(f"`plan` must be for this network ({network.fingerprint}), got one for {plan.fingerprint}.")
    if plan.granularity != granularity:
        raise InputError(f"`plan` must have granularity {granularity}, got {plan.granularity}; set --granularity.")
    unknown = sorted(set(plan.labels) - set(names))
    missing = [name for name in names if name not in plan.labels]
    if unknown:
        raise InputError(f"`plan` names layers that the network does not have: {', '.join(unknown)}.")
    if missing:
        raise InputError(f"`plan` must label every layer, these are missing: {', '.join(missing)}.")


def check_tie(plan: Plan, name: str, first: str) -> None:
    """Raise InputError where the layer `name` has not the bits and rank of the layer `first` that it is tied to."""
    found, wanted = plan.labels[name], plan.labels[first]
    for part in ("weight_bits", "activation_bits", "rank"):
        if getattr(found, part) != getattr(wanted, part):
            raise InputError(
                f"Layer {name}: `{part}` must be those of {first}, which runtimes run together with it: "
                f"{getattr(wanted, part)}, got {getattr(found, part)}."
            )
