"""A plan before its labels are looked up in menus: the right network, all of its layers, ties kept, widths on offer."""

from __future__ import annotations

from dataclasses import replace

from autocompress.errors import InputError
from autocompress.menus.settings import EVERY_WIDTH, WIDE, MenuSettings
from autocompress.network.structure import Network
from autocompress.plan import Plan

SPARSITY_TOLERANCE = 1e-6  # how far a plan's sparsity may be from the menu's


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


def with_widths_of(plan: Plan, network: Network, settings: MenuSettings) -> MenuSettings:
    """The settings, with the steps of channels by which a plan was made where its layers have widths of others.

    Args:
        plan: plan of this network; one of another is refused where its labels are looked up.
        network: trace of the network.
        settings: settings of its menus.
    """
    if settings.granularity != "channel":
        return settings
    for steps in (settings.steps_from, EVERY_WIDTH, WIDE, None):
        tried = replace(settings, steps_from=steps)
        if all(
            _is_offered(plan.labels[group.owner].sparsity, group.width, tried)
            for group in network.groups
            if group.owner in plan.labels
        ):
            return tried
    return settings


def _is_offered(sparsity: float, width: int, settings: MenuSettings) -> bool:
    """Whether so much of a group of channels can be removed, or all of it as of a branch."""
    offered = (*(1 - kept / width for kept in settings.channels(width)), 1.0)
    return min(abs(sparsity - each) for each in offered) <= SPARSITY_TOLERANCE
