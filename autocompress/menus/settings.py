"""Settings of the menus: which labels are on offer, and how their weights are made."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.errors import InputError
from autocompress.menus.criteria import CRITERIA
from autocompress.menus.quantizers import QUANTIZERS
from autocompress_envs.problem import n_of_m

_STEPS = {16: 4, 32: 8, 96: 16}  # of a group's channels, by the fewest channels that it has
EVERY_WIDTH = min(_STEPS)
WIDE = 64  # from here on steps are an eighth to a sixth of the channels: about as fine as exact eighths


@dataclass(frozen=True)
class MenuSettings:
    """Settings of the menus. They are part of the key under which menus are cached.

    Attributes:
        criterion: name in `CRITERIA` of the order in which channels or weights are removed.
        quantizer: name in `QUANTIZERS` of the way in which weights are rounded.
        granularity: unit that is pruned: `channel`, `element` (single weights) or `n:m` such as `2:4` (2 of
            every 4 consecutive weights stay).
        weight_bits: bit-widths of weights on offer, ascending, each 1 to 8, 16 or 32.
        activation_bits: bit-widths of layer inputs on offer, ascending, each 4 to 8 or 32.
        sparsity_levels: number of sparsities on offer, 1 to 64: 0, 1/levels, …, (levels - 1)/levels; 1 turns
            pruning off.
        remove_branches: whether residual branches may be removed whole, so that sparsity 1 is on offer for
            them, too.
        steps_from: fewest channels of a group of which channels are left in numbers that integer kernels run well at
            (`channels`); None: of no group.
        ranks: shares of a layer's multiply-accumulates on offer, each above 0 and below 1, ascending: at most that
            many are left where two thin layers stand in for a linear layer or a 1x1 convolution. Empty: none is cut.
        refit: whether the weights that stay are re-fitted by least squares after pruning.
        damping: number that is added to the diagonal of H, as a fraction of the diagonal's mean, in (0, 1).
        fisher_draws: classes that are drawn from the network's prediction for each calibration sample, at
            least 1.
        seed: seed of those draws and of the `random` criterion.

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
    steps_from: int | None = WIDE
    ranks: tuple[float, ...] = ()
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
        self._check_ranks()
        if not 0 < self.damping < 1:
            raise InputError(f"`damping` must be in (0, 1), got {self.damping}.")
        if self.fisher_draws < 1:
            raise InputError(f"`fisher_draws` must be at least 1, got {self.fisher_draws}.")

    def _check_ranks(self) -> None:
        """Raise InputError where ranks are no ascending shares, or single weights are removed."""
        if list(self.ranks) != sorted(set(self.ranks)) or not all(0 < share < 1 for share in self.ranks):
            raise InputError(
                f"`ranks` must be ascending shares above 0 and below 1 of a layer's multiply-accumulates, such as "
                f"0.25,0.5,0.75, got {list(self.ranks)}."
            )
        if self.ranks and self.granularity != "channel":
            raise InputError(
                f"`ranks` must be none with the granularity {self.granularity}, whose single weights two factors don't "
                f"have, got {list(self.ranks)}; leave out --ranks or --granularity."
            )

    def sparsities(self) -> tuple[float, ...]:
        """Sparsities on offer, ascending, first 0; the 1 of branches that may be removed is not among them.

        >>> MenuSettings(sparsity_levels=4).sparsities(), MenuSettings(granularity="2:4").sparsities()
        ((0.0, 0.25, 0.5, 0.75), (0.0, 0.5))
        """
        if self.granularity in ("channel", "element"):
            return tuple(level / self.sparsity_levels for level in range(self.sparsity_levels))
        kept, block = n_of_m(self.granularity)
        return (0.0,) if self.sparsity_levels == 1 else (0.0, 1 - kept / block)

    def channels(self, width: int) -> list[int]:
        """Numbers of channels on offer, descending, of a group that has `width`; at least 1.

        From `steps_from` channels on they are the nearest multiples of 4, of 8 from 32 channels on, of 16 from 96 on.

        >>> MenuSettings().channels(144), MenuSettings().channels(40)
        ([144, 128, 112, 96, 80, 48, 32, 16], [40, 35, 30, 25, 20, 15, 10, 5])
        >>> MenuSettings(steps_from=None).channels(144), MenuSettings(steps_from=16).channels(40)
        ([144, 126, 108, 90, 72, 54, 36, 18], [40, 32, 24, 16, 8])
        """
        kept = {width - int(sparsity * width) for sparsity in self.sparsities()}
        if self.steps_from is not None and width >= self.steps_from:
            step = max((step for least, step in _STEPS.items() if width >= least), default=1)
            kept = {width, *(max(step, step * int(count / step + 0.5)) for count in kept - {width})}
        return sorted((count for count in kept if 0 < count <= width), reverse=True)


def _check_bits(name: str, bits: tuple[int, ...], choices: tuple[int, ...]) -> None:
    """Raise InputError where the bit-widths are not ascending, or not among the choices."""
    if not bits or any(width not in choices for width in bits) or list(bits) != sorted(set(bits)):
        raise InputError(f"`{name}` must be ascending and each one of {list(choices)}, got {list(bits)}.")
