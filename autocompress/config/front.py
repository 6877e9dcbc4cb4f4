"""Options of a front: one search for each of many budgets."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from autocompress.config.part import Part, as_tuple, option

MOST_POINTS = 64


class ParetoOptions(Part):
    """Which budgets a front has."""

    TITLE: ClassVar[str] = "Front"

    resource: str = option(
        "size",
        "Resource whose budgets differ from point to point: size, macs, bitops, memory or energy (modelled).",
    )
    budgets: tuple[str, ...] | None = option(
        None, "Budgets of that resource, such as 0.05,0.1,0.2 or 20kB,40kB; or --points."
    )
    points: int | None = option(
        None,
        "Number of budgets, at equal ratios from the smallest plan to the mildest one; or --budgets.",
        ge=2,
        le=MOST_POINTS,
    )

    @field_validator("budgets", mode="before")
    @classmethod
    def _split_budgets(cls, value: Any) -> Any:
        split = as_tuple(value)
        return tuple(map(str, split)) if isinstance(split, (list, tuple)) else split
