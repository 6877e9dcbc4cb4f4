"""Channel groups checked by experiment: a copy without channels must compute what a masked copy does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.network.slicing import Removed, mask_channels, remove_channels
from autocompress.network.structure import Group, IntArray
from autocompress.network.tape import LAYER_TYPES, NORM_TYPES
from autocompress.samples import Inputs, call, each_of, tensors_of

TOLERANCE = 1e-6  # of the largest output, in float64; rounding alone gives about 1e-12
_TOLERANCES = {torch.float64: TOLERANCE, torch.float32: 1e-3}  # float32 where a network makes such tensors itself
REORDERED_SUMS = 1e-4  # of the largest output, in float32, for the same sums in another order
_SEED = 20240901


class Verifier:
    """Checks groups on a copy of a network.

    Args:
        model: network in eval mode; it is copied, not changed.
        sample: (1, ...) input; where it is floating point, noise of its shape takes its place.
    """

    def __init__(self, model: nn.Module, sample: Inputs) -> None:
        self._rng = np.random.default_rng(_SEED)
        try:
            self._prepare(model, sample, torch.float64)
        except RuntimeError:  # "expected scalar type Double but found Float"
            self._prepare(model, sample, torch.float32)

    def _prepare(self, model: nn.Module, sample: Inputs, dtype: torch.dtype) -> None:
        generator = torch.Generator(tensors_of(sample)[0].device).manual_seed(_SEED)
        self._input = _noise(sample, generator, dtype)
        self._probe = _probe(model, self._input, generator, dtype)
        self._tolerance = _TOLERANCES[dtype]

    def verify(self, groups: Sequence[Group], passed: Sequence[Group] = ()) -> tuple[list[Group], dict[str, str]]:
        """Groups whose channels can be removed independently, and why those of others can't.

        Args:
            groups: groups that look prunable.
            passed: groups that hold up together already.

        Returns:
            `passed` with the groups that hold up together with them, in the given order, and by owner of each other
            group why it fails.
        """
        return _admit(self._fault_of, list(passed), list(groups))

    def _fault_of(self, groups: Sequence[Group]) -> str:
        removed = [(group, _draw(group.width, self._rng)) for group in groups]
        return _fault(self._probe, self._input, removed, self._tolerance)


def _noise(sample: Inputs, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Noise of a dtype in place of floating-point inputs; others, such as token numbers, as they are."""

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=dtype, device=tensor.device)

    return each_of(sample, drawn)


def _admit(
    fault_of: Callable[[Sequence[Group]], str], passed: list[Group], candidates: list[Group]
) -> tuple[list[Group], dict[str, str]]:
    """`passed` with every candidate that holds up together with it, and by owner of the others why they fail.

    A set that fails is halved until single groups fail: a few bad ones among many groups are found in few
    runs.
    """
    if not candidates:
        return passed, {}
    fault = fault_of([*passed, *candidates])
    if not fault:
        return [*passed, *candidates], {}
    if len(candidates) == 1:
        return passed, {candidates[0].owner: fault}
    half = len(candidates) // 2
    passed, first_faults = _admit(fault_of, passed, candidates[:half])
    passed, last_faults = _admit(fault_of, passed, candidates[half:])
    return passed, first_faults | last_faults


def _draw(width: int, rng: np.random.Generator) -> IntArray:
    """Random channels, and a random number of them: groups that are tied in truth must not be cut alike.

    Returns:
        Between a quarter and a half of the indices in [0, width), at least 1, ascending.
    """
    count = int(rng.integers(max(1, width // 4), max(1, width // 2) + 1))
    return np.sort(rng.choice(width, count, replace=False)).astype(np.int64)


def _fault(probe: nn.Module, sample: Inputs, removed: Removed, tolerance: float) -> str:
    """Why removing the channels does not equal masking them; empty where it does."""
    try:
        masked = _run(mask_channels(probe, removed), sample)
        smaller = _run(remove_channels(probe, removed), sample)
    # The user's own forward pass may raise anything at all when widths change, and a group that was read
    # wrong may name columns that a layer does not have. Whatever it is, the group is not prunable and the
    # message is reported.
    except Exception as error:
        return f"pruned copy fails to run: {first_line(error)}"
    return "" if are_close(masked, smaller, tolerance) else "pruned copy differs from the masked one"


def are_close(wanted: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    """Whether outputs have the same shapes, and differ by at most `tolerance` times the largest one wanted."""
    return len(wanted) == len(found) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max())
        for a, b in zip(wanted, found, strict=True)
    )


def first_line(error: Exception) -> str:
    """The first line of an exception's message; the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run(model: nn.Module, sample: Inputs) -> list[Tensor]:
    """The floating-point tensors that a model returns."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(call(model, sample))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]


def _probe(model: nn.Module, sample: Inputs, generator: torch.Generator, dtype: torch.dtype) -> nn.Module:
    """A copy in a dtype with random parameters in which every layer's output has about unit size.

    The structure is what is checked, so weights must not hide it: trained networks may have zero-initialised
    norms, tiny layer scales or dead channels, through which a wrong mask would not show.
    """
    probe = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        for module in probe.modules():
            _randomize_(module, generator)
        _scale_layers_(probe, sample)
    return probe


def _randomize_(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters anew in place: layers' weights and shifts of any sign, other scales positive."""
    signed = {"weight", "bias"} if isinstance(module, LAYER_TYPES) else {"bias"}
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_floating_point():
            low, high = (-1.0, 1.0) if name in signed else (0.5, 1.5)
            parameter.uniform_(low, high, generator=generator)
    if isinstance(module, NORM_TYPES) and module.running_mean is not None and module.running_var is not None:
        module.running_mean.uniform_(-0.5, 0.5, generator=generator)
        module.running_var.uniform_(0.5, 1.5, generator=generator)


def _scale_layers_(probe: nn.Module, sample: Inputs) -> None:
    """Divide every layer's weight by the spread of its output, layer by layer in one forward pass."""

    def rescale(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        spread = output.std().clamp_min(1e-12) if output.numel() > 1 else output.new_ones(())
        for parameter in layer.parameters(recurse=False):
            parameter.div_(spread)
        return output / spread

    handles = [layer.register_forward_hook(rescale) for layer in probe.modules() if isinstance(layer, LAYER_TYPES)]
    try:
        call(probe, sample)
    finally:
        for handle in handles:
            handle.remove()
