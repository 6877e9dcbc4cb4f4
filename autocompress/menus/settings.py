"""What a menu offers and how its weights are made."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.errors import InputError
from autocompress.menus.criteria import CRITERIA
from autocompress.menus.quantizers import QUANTIZERS
from autocompress_envs.problem import n_of_m


@dataclass(frozen=True)
class MenuSettings:
    """Settings of the menus; part of the key under which they are cached.

    Attributes:
        criterion: name in `CRITERIA`: what is pruned first.
        quantizer: name in `QUANTIZERS`: how weights are rounded.
        granularity: what is pruned: `channel`, `element` or `n:m` such as `2:4`.
        weight_bits: the bit-widths on offer: 1 to 8, 16, 32.
        activation_bits: the bit-widths of layer inputs on offer: 4 to 8, 32.
        sparsity_levels: sparsities 0, 1/levels, …, (levels - 1)/levels are on offer; 1 turns pruning off.
        remove_branches: whether residual branches may be removed whole: their sparsity may be 1, too.
        refit: whether the weights that stay are re-fitted by least squares after pruning.
        damping: added to the diagonal of H, as a fraction of its mean.
        fisher_draws: outputs drawn from the network's prediction for each calibration sample.
        seed: of those draws and of the `random` criterion.

    Raises:
        InputError: a value is out of range or a name unknown.
    """

    criterion: str = "obs"
    quantizer: str = "gptq"
    granularity: str = "channel"
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    activation_bits: tuple[int, ...] = (8,)
    sparsity_levels: int = 8
    remove_branches: bool = False
    refit: bool = True
    damping: float = 1e-3
    fisher_draws: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        criterion, quantizer = CRITERIA.find(self.criterion), QUANTIZERS.find(self.quantizer)
        if self.granularity not in ("channel", "element"):
            try:
                n_of_m(self.granularity)
            except ValueError as error:
                raise InputError(str(error)) from None
        _check_bits("weight_bits", self.weight_bits, (*range(1, 9), 16, 32))
        _check_bits("activation_bits", self.activation_bits, (*range(4, 9), 32))
        if self.granularity != "channel" and criterion.elements is None:
            raise InputError(
                f"`granularity` must be channel with the criterion {self.criterion}, got {self.granularity!r}: it does "
                "not score single weights."
            )
        able = (*(quantizer.bits or range(1, 9)), 16, 32)
        if any(width not in able for width in self.weight_bits):
            choices = f"{', '.join(map(str, able[:-1]))} and {able[-1]}"
            raise InputError(
                f"`weight_bits` must be among {choices} with the quantizer {self.quantizer}, "
                f"got {list(self.weight_bits)}."
            )
        if not 1 <= self.sparsity_levels <= 64:
            raise InputError(f"`sparsity_levels` must be 1 to 64, got {self.sparsity_levels}.")
        if self.remove_branches and (self.granularity != "channel" or 1 in self.weight_bits):
            raise InputError(
                "`remove_branches` must go with granularity channel and without 1-bit weights, which have no zero, got "
                f"{self.granularity} and {list(self.weight_bits)}."
            )
        if not 0 < self.damping < 1:
            raise InputError(f"`damping` must be in (0, 1), got {self.damping}.")
        if self.fisher_draws < 1:
            raise InputError(f"`fisher_draws` must be at least 1, got {self.fisher_draws}.")

    def sparsities(self) -> tuple[float, ...]:
        """Ascending, first 0; without the 1 of branches."""
        if self.granularity in ("channel", "element"):
            return tuple(level / self.sparsity_levels for level in range(self.sparsity_levels))
        kept, block = n_of_m(self.granularity)
        return (0.0,) if self.sparsity_levels == 1 else (0.0, 1 - kept / block)


def _check_bits(name: str, bits: tuple[int, ...], choices: tuple[int, ...]) -> None:
    if not bits or any(width not in choices for width in bits) or list(bits) != sorted(set(bits)):
        raise InputError(f"`{name}` must be ascending and each one of {list(choices)}, got {list(bits)}.")
