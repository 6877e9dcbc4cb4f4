"""Plans: which label every layer gets. Plain data, editable by hand, versioned, YAML or JSON."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import InputError
from autocompress.files import read_yaml, write_atomically

PLAN_VERSION = 1
RANKED_VERSION = 2  # of plans that have a low rank, which versions before it don't know
FIRST, SECOND = "0", "1"  # names of a layer's two factors inside it: the first one reads, the second one writes


@dataclass(frozen=True)
class Label:
    """What one layer gets.

    Attributes:
        sparsity: fraction removed, in [0, 1]. With granularity `channel`, the fraction of the output channels
            of the layer's group; it stands at the first layer of the group and is 0 at the others. 1 removes a
            residual branch.
        weight_bits: 1 to 8 (integer codes on one scale per output channel), 16 or 32 (floating point).
        activation_bits: bits of the layer's input, 4 to 8 or 32 (not quantized).
        rank: rank of the two thin layers that stand in for the layer, at least 1, or 0: the layer stays one. Both have
            `weight_bits`; what one hands on to the other is not quantized.

    Raises:
        InputError: a value is out of range.
    """

    sparsity: float = 0.0
    weight_bits: int = 32
    activation_bits: int = 32
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity <= 1.0:
            raise InputError(f"`sparsity` must be in [0, 1], got {self.sparsity}.")
        if self.weight_bits not in (*range(1, 9), 16, 32):
            raise InputError(f"`weight_bits` must be 1 to 8, 16 or 32, got {self.weight_bits}.")
        if self.activation_bits not in (*range(4, 9), 32):
            raise InputError(f"`activation_bits` must be 4 to 8 or 32, got {self.activation_bits}.")
        if type(self.rank) is not int or self.rank < 0:
            raise InputError(f"`rank` must be a whole number of at least 0, got {self.rank}.")
        if self.rank and self.sparsity == 1:
            raise InputError(f"`rank` must be 0 at sparsity 1, which leaves no weight, got {self.rank}.")


@dataclass(frozen=True)
class Plan:
    """The labels of every layer, by layer name.

    Attributes:
        labels: one `Label` per layer, in network order.
        granularity: unit that a sparsity removes: `channel`, `element`, or `n:m` such as `2:4`.
        fingerprint: fingerprint of the network that the plan was made for; empty if unknown.
    """

    labels: Mapping[str, Label]
    granularity: str = "channel"
    fingerprint: str = ""

    def modules(self) -> dict[str, Label]:
        """The label of every weight-carrying module of the compressed network, by its name, in the order of the plan.

        It is the layer itself, or its two factors: then the first one has the layer's label without its rank, and the
        second one reads an input that is not quantized.

        >>> plan = Plan({"fc": Label(0.0, 4, 8, rank=16)})
        >>> {name: (label.weight_bits, label.activation_bits) for name, label in plan.modules().items()}
        {'fc.0': (4, 8), 'fc.1': (4, 32)}
        """
        found = {}
        for name, label in self.labels.items():
            if not label.rank:
                found[name] = label
            else:
                found[f"{name}.{FIRST}"] = replace(label, rank=0)
                found[f"{name}.{SECOND}"] = replace(label, rank=0, activation_bits=32)
        return found

    def to_dict(self) -> dict[str, Any]:
        has_ranks = any(label.rank for label in self.labels.values())
        return {
            "version": RANKED_VERSION if has_ranks else PLAN_VERSION,
            "granularity": self.granularity,
            "fingerprint": self.fingerprint,
            "labels": {name: _written(label) for name, label in self.labels.items()},
        }

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Raises InputError where `data` is not a plan of this version."""
        if not isinstance(data, Mapping) or not isinstance(data.get("labels"), Mapping):
            raise InputError(f"A plan must be a mapping with a key `labels`, got {_kind(data)}.")
        if data.get("version") not in (PLAN_VERSION, RANKED_VERSION):
            raise InputError(
                f"`version` of the plan must be {PLAN_VERSION} or {RANKED_VERSION}, got {data.get('version')!r}."
            )
        known = {"version", "granularity", "fingerprint", "labels"}
        _reject_unknown("plan", set(data) - known, known)
        labels = {str(name): _label(str(name), value) for name, value in data["labels"].items()}
        return cls(labels, str(data.get("granularity", "channel")), str(data.get("fingerprint", "")))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Write YAML, or JSON where the name ends in `.json`."""
        path = Path(path)
        write_atomically(path, json.dumps(self.to_dict(), indent=1) if path.suffix == ".json" else self.to_yaml())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Raises InputError where the file is missing, unreadable or not a plan."""
        content = read_yaml("plan", path)
        try:
            return cls.from_dict(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _written(label: Label) -> dict[str, Any]:
    """A label's numbers; a rank stands there only where it is low."""
    numbers = asdict(label)
    return numbers if label.rank else {name: number for name, number in numbers.items() if name != "rank"}


def _kind(data: Any) -> str:
    return "a mapping without it" if isinstance(data, Mapping) else f"a {type(data).__name__}"


def _label(name: str, value: Any) -> Label:
    if not isinstance(value, Mapping):
        raise InputError(f"The label of layer {name} must be a mapping, got {reprlib.repr(value)}.")
    known = {field.name for field in fields(Label)}
    _reject_unknown(f"label of layer {name}", set(value) - known, known)
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value.values()):
        raise InputError(f"The label of layer {name} must hold numbers only, got {reprlib.repr(dict(value))}.")
    try:
        return Label(**value)
    except InputError as error:
        raise InputError(f"Layer {name}: {error}") from None


def _reject_unknown(where: str, unknown: set[str], known: set[str]) -> None:
    if unknown:
        raise InputError(
            f"The {where} has unknown keys {', '.join(sorted(map(str, unknown)))}; known: {', '.join(sorted(known))}."
        )
