"""What a packed file says of its inputs and outputs: their names and forms, and the arguments of `forward`, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.errors import InputError
from autocompress.samples import ONE, Field
from autocompress.targets.packed.graph_json import are_arguments, default_arguments

_INPUT_DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")


def usual_arguments(inputs: Sequence[Field]) -> tuple[str, ...]:
    """Names of arguments that a file need not name: those of the tensors, where `forward` can have such."""
    names = tuple(field.name for field in inputs)
    return names if names != (ONE,) and are_arguments(names, len(inputs)) else ()


def must_be_named(arguments: tuple[str, ...], inputs: Sequence[Field]) -> bool:
    """Whether the arguments of `forward` are others than those that a file has without naming them."""
    return arguments not in ((), usual_arguments(inputs), default_arguments(len(inputs)))


def inputs_to_json(inputs: Sequence[Field]) -> dict[str, Any]:
    """The shape of the only tensor that a network takes, or what all of them are."""
    if inputs == (Field(ONE, inputs[0].shape),):
        return {"input_shape": list(inputs[0].shape)}
    return {"inputs": [[field.name, list(field.shape), field.dtype] for field in inputs]}


def inputs_from_json(content: Mapping[str, Any]) -> tuple[Field, ...]:
    """As `inputs_to_json` wrote it. Raises InputError where it is something else."""
    if "inputs" not in content:
        return (Field(ONE, shape_from_json(content.get("input_shape"), "input", 1)),)
    entries = content["inputs"]
    if not isinstance(entries, list) or not entries:
        raise InputError("The file must name the tensors that the network takes, got none.")
    return tuple(map(_input_from_json, entries))


def _input_from_json(entry: Any) -> Field:
    known = isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)
    if not known or entry[2] not in _INPUT_DTYPES:
        raise InputError(f"The tensors that the network takes must have a name, a shape and a dtype, got {entry!r}.")
    return Field(entry[0], shape_from_json(entry[1], f"input {entry[0]}", 1), entry[2])


def names_from_json(content: Any) -> tuple[str, ...]:
    """Names of input and outputs from JSON. Raises InputError where they are not different ones, two at least."""
    if isinstance(content, list) and len(content) >= 2 and all(isinstance(name, str) and name for name in content):
        names = tuple(content)
        if len(set(names)) == len(names):
            return names
    raise InputError(f"The file must have different names for input and output, got {str(content)[:80]}.")


def arguments_from_json(content: Any, count: int) -> tuple[str, ...]:
    """Names of the arguments of `forward` from JSON; empty where the file has none. They become part of Python code.

    Raises:
        InputError: they are not as many different names that an argument may have.
    """
    if content == [] or (isinstance(content, list) and are_arguments(content, count)):
        return tuple(content)
    raise InputError(f"The file must have {count} names of arguments, got {str(content)[:80]}.")


def shape_from_json(content: Any, what: str, least: int) -> tuple[int, ...]:
    """A shape from JSON. Raises InputError where it is no list of whole numbers from `least` on."""
    if isinstance(content, list) and all(type(size) is int and size >= least for size in content):
        return tuple(content)
    raise InputError(f"The {what} must have a shape of whole numbers >= {least}, got {str(content)[:80]}.")
