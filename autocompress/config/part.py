"""What options are made of: typed parts, each with its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


def option(default: Any, help_text: str, **rules: Any) -> Any:
    """A field with a help text."""
    return Field(default, description=help_text, **rules)


class Part(BaseModel):
    """Options that belong together. Unknown ones are errors; text (from a command line) is read as YAML would be."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    TITLE: ClassVar[str] = ""
    """Heading of these options in help texts."""


def as_tuple(value: Any) -> Any:
    """`2,4` from a command line, or a single number or path, as several."""
    if isinstance(value, str):
        return tuple(value.split(","))
    return (value,) if isinstance(value, (int, float, Path)) else value


def as_tuple_or_none(value: Any) -> Any:
    """The same, where nothing and the word `none` stand for none at all."""
    return () if value in ("none", "", None) else as_tuple(value)
