"""Options of a search for the least of a resource at a loss that is tolerated."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from autocompress.config.part import Part, option
from autocompress.errors import InputError


class ToleranceOptions(Part):
    """How much may be lost, in place of a budget, and what is minimised."""

    TITLE: ClassVar[str] = "Tolerance"

    max_drop: float | None = option(
        None,
        "Largest drop of the accuracy that is tolerated, such as 1% (percentage points) or 0.01; needs labels. Then "
        "--minimize says of what the least is sought.",
        gt=0,
        lt=1,
    )
    max_kl: float | None = option(
        None, "Largest divergence from the original that is tolerated, in nats; needs no labels.", gt=0
    )
    minimize: str | None = option(
        None,
        "Resource of which the least is sought with --max-drop or --max-kl: size, macs, bitops, memory, energy "
        "(modelled) or latency.",
    )

    @field_validator("max_drop", mode="before")
    @classmethod
    def _read_percent(cls, value: Any) -> Any:
        if not isinstance(value, str) or not value.strip().endswith("%"):
            return value
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise InputError(f"`max_drop` must be a share such as 1% or 0.01, got {value!r}.") from None
