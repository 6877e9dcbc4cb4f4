"""A graph of ATen operators as JSON, and back. Nothing that a text says can call anything but such operators.

    {"nodes": [["aten.conv2d.default", ["%1", "@conv.weight", null, [2, 2]]],
               ["aten.relu.default", ["%1"]], …], "output": "%1"}

With several inputs there is also their number, `"inputs": 2`.

A node is [operator, arguments by position] or [operator, arguments by position, {arguments by name}]. Numbers, true,
false, null and lists stand for themselves. Everything else is a string whose first letter says what it is:

| string | meaning |
| --- | --- |
| `%2` | value made two places before (the inputs, then one a node); counted back, like blocks read alike |
| `@conv.weight` | parameter |
| `&norm.running_mean` | buffer in the state dict |
| `!positions` | constant: a buffer that is not in the state dict |
| `=nearest` | text |
| `f0.1` | float32 number, with the few digits that name it; or `finf`, `fnan` |
| `dtorch.float32`, `mtorch.channels_last`, `ltorch.strided` | dtype, memory format, layout |
| `D` | device: the processor that the file is loaded on |
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autocompress.errors import ExportError, InputError
from autocompress.files import strict_json
from autocompress.targets.graph.operators import find_operator, operator_name, takes

PARAMETER, BUFFER, CONSTANT = "@", "&", "!"  # a constant is a buffer that is not in the state dict
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_DTYPES = {
    str(dtype): dtype
    for dtype in (*_FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
}
_FORMATS = {str(each): each for each in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)}
_FORMATS |= {str(torch.preserve_format): torch.preserve_format}
_LAYOUTS = {str(torch.strided): torch.strided}
_PART = re.compile(r"[A-Za-z0-9_-]+")  # RegNets of torchvision have names such as block1-0
_RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TAKEN = {"self", "torch", "device", "inf", "nan", "NoneType", "pytree", "fx_pytree", "getattr", "slice"}  # by the code
_MOST_INPUTS = 64
_MOST_LEVELS = 64  # of nested modules
_MOST_NESTING = 4  # of lists in arguments


def graph_tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    """The parameters and buffers that a graph reads, by name.

    Args:
        graph: graph whose get_attr nodes are followed.
    """
    found = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.users:
            parent, _, name = str(node.target).rpartition(".")
            found[str(node.target)] = getattr(graph.get_submodule(parent), name)
    return found


def graph_to_json(graph: fx.GraphModule) -> str:
    """A graph as JSON, without its tensors' values.

    Args:
        graph: graph of placeholders, get_attr, call_function of operators, and one output: a tensor, alone or in a
            tuple, or several tensors in a tuple, which the JSON keeps as a list.

    Raises:
        ExportError: the graph holds something that a file may not hold; the message names it.
    """
    writer = _Writer(graph)
    for node in graph.graph.nodes:
        writer.add(node)
    content = {"nodes": writer.nodes, "output": writer.output}
    inputs = len(graph.graph.find_nodes(op="placeholder"))
    if inputs > 1:
        content["inputs"] = inputs
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def default_arguments(count: int) -> tuple[str, ...]:
    """Names of the arguments of a graph's `forward` where nobody named them."""
    return ("x",) if count == 1 else tuple(f"x{number}" for number in range(count))


def are_arguments(names: Sequence[Any], count: int) -> bool:
    """Whether these are `count` different names that the arguments of a graph's `forward` can have.

    They become part of Python code, so nothing but plain names will do, and none that the code of a graph uses itself.

    >>> are_arguments(["image"], 1), are_arguments(["x): pass #"], 1), are_arguments(["torch"], 1)
    (True, False, False)
    """
    return len(set(map(str, names))) == len(names) == count and all(
        isinstance(name, str)
        and _ARGUMENT.fullmatch(name) is not None
        and not keyword.iskeyword(name)
        and name not in _TAKEN
        for name in names
    )


def graph_from_json(text: str, tensors: Mapping[str, Tensor], arguments: Sequence[str] = ()) -> fx.GraphModule:
    """The graph as a module in eval mode, its tensors under the names that they had.

    Args:
        text: JSON from `graph_to_json`.
        tensors: tensors by name; those that the graph does not read are left out.
        arguments: names of the arguments of its `forward`, which `are_arguments` passed. Default: x, or x0, x1 and so
            on.

    Raises:
        InputError: the text is no graph, names a tensor that is not there or an operator that a file may not hold.
    """
    content = parse_json(text, "the graph")
    if not isinstance(content, dict) or not isinstance(content.get("nodes"), list):
        raise InputError("The graph must be a mapping with a list `nodes`, got something else.")
    inputs = content.get("inputs", 1)
    if type(inputs) is not int or not 1 <= inputs <= _MOST_INPUTS:
        raise InputError(f"The graph must take 1 to {_MOST_INPUTS} tensors, got {inputs!r}.")
    if arguments and len(arguments) != inputs:
        raise InputError(f"The graph must take the {len(arguments)} tensors that the file names, got {inputs}.")
    reader = _Reader(tensors, arguments or default_arguments(inputs))
    for entry in content["nodes"]:
        reader.add(entry)
    output = reader.value(content.get("output"))
    outputs = output if isinstance(output, list | tuple) else [output]
    if not outputs or not all(isinstance(each, fx.Node) for each in outputs):
        raise InputError(f"The graph must have values as `output`, got {content.get('output')!r}.")
    return reader.finish(output if isinstance(output, fx.Node) else tuple(outputs))


def parse_json(text: str, what: str) -> Any:
    """The value of strict JSON: without NaN and Infinity.

    Args:
        text: JSON.
        what: name of the text, for messages.

    Raises:
        InputError: `text` is no JSON.
    """
    try:
        return strict_json(text, _no_constant)
    except ValueError as error:
        raise InputError(f"{what.capitalize()} must be JSON: {error}.") from error


def _no_constant(text: str) -> float:
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is no JSON")
    return float(text)


class _Writer:
    """Turns nodes into JSON values, in order."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.nodes: list[Any] = []
        self.output: Any = None
        self._numbers: dict[fx.Node, int] = {}
        self._attributes: dict[fx.Node, str] = {}
        self._parameters = {name for name, _ in graph.named_parameters(remove_duplicate=False)}
        self._state = graph.state_dict().keys()

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder" and not self.nodes:
            self._numbers[node] = len(self._numbers)
        elif node.op == "get_attr":
            self._attributes[node] = self._attribute(str(node.target))
        elif node.op == "call_function":
            self._call(node)
        elif node.op == "output":
            self.output = self._encode(_given(node), "output")
        else:
            raise ExportError(f"A file can hold inputs and calls of ATen operators, got {node.op} {node.target}.")

    def _attribute(self, name: str) -> str:
        if _name_fault(name):
            raise ExportError(f"A file can't hold a tensor of the name {name!r}: {_name_fault(name)}.")
        return (PARAMETER if name in self._parameters else BUFFER if name in self._state else CONSTANT) + name

    def _call(self, node: fx.Node) -> None:
        name = operator_name(node.target)
        if name is None:
            raise ExportError(f"A file can hold ATen operators that only compute, got {_shown(node.target)}.")
        entry = [name, self._encode(list(node.args), name)]
        if node.kwargs:
            entry.append({key: self._encode(value, name) for key, value in node.kwargs.items()})
        self._numbers[node] = len(self._numbers)
        self.nodes.append(entry)

    def _encode(self, value: Any, operator: str) -> Any:
        if isinstance(value, fx.Node):
            return self._attributes[value] if value in self._attributes else self._reference(value)
        if isinstance(value, tuple | list):
            return [self._encode(each, operator) for each in value]
        if value is None or isinstance(value, bool | int):
            return value
        text = _text(value)
        if text is None:
            raise ExportError(f"A file can't hold an argument of {operator}: {value!r} of type {type(value).__name__}.")
        return text

    def _reference(self, node: fx.Node) -> str:
        return f"%{len(self._numbers) - self._numbers[node]}"


def _given(node: fx.Node) -> Any:
    """The node that the output stands for, or several. Raises ExportError where it holds something else."""
    value: Any = node.args[0]
    while isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    if not all(isinstance(each, fx.Node) for each in (value if isinstance(value, tuple | list) else [value])):
        raise ExportError(f"A file can hold a network that gives tensors, got {value}.")
    return value


def _shown(function: Any) -> str:
    return str(function) if hasattr(function, "overloadpacket") else getattr(function, "__name__", repr(function))


def _text(value: Any) -> str | float | None:
    """A value that JSON has no form for, tagged; None where a file may not hold it."""
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, str):
        return "=" + value
    if isinstance(value, torch.device):
        return "D"  # the processor that the file is loaded on; `.to` moves the tensors only
    for tag, known in (("d", _DTYPES), ("m", _FORMATS), ("l", _LAYOUTS)):
        if value in known.values():
            return tag + str(value)
    return None


def _float_text(value: float) -> str | float:
    """A number that is read back exactly; with few digits where it is a float32 number, as scales are.

    >>> _float_text(0.10000000149011612), _float_text(0.1), _float_text(math.inf)
    ('f0.1', 0.1, 'finf')
    """
    if not math.isfinite(value):
        return f"f{value}"
    short = str(np.float32(value)) if abs(value) < 3e38 else ""
    is_shorter = short and float(np.float32(short)) == value and len(short) + 3 < len(repr(value))
    return f"f{short}" if is_shorter else value


def _float_of(text: str) -> float:
    return float(np.float32(text))


_parsers: dict[str, Callable[[str], Any]] = {
    "=": str,
    "D": lambda _: torch.device("cpu"),
    "d": _DTYPES.__getitem__,
    "m": _FORMATS.__getitem__,
    "l": _LAYOUTS.__getitem__,
    "f": _float_of,
}


class _Reader:
    """Builds the graph, value by value."""

    def __init__(self, tensors: Mapping[str, Tensor], arguments: Sequence[str]) -> None:
        self._tensors = tensors
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._values = [self._graph.placeholder(name) for name in arguments]
        self._attributes: dict[str, fx.Node] = {}
        self._tags: dict[str, str] = {}

    def add(self, entry: Any) -> None:
        name, arguments, keywords = _checked_entry(entry)
        function = find_operator(name)
        if function is None:
            raise InputError(f"The graph must call ATen operators that only compute, got {name!r}.")
        if not takes(function, len(arguments), keywords):
            got = f"{len(arguments)} by position and {sorted(keywords)} by name"
            raise InputError(f"The graph must call {name} with its arguments, got {got}.")
        given = tuple(self.value(argument) for argument in arguments)
        named = {key: self.value(argument) for key, argument in keywords.items()}
        self._values.append(self._graph.call_function(function, given, named))

    def value(self, content: Any, depth: int = 0) -> Any:
        if isinstance(content, str):
            return self._tagged(content)
        if isinstance(content, list):
            if depth == _MOST_NESTING:
                raise InputError(f"The graph must have lists of at most {_MOST_NESTING} levels, got more.")
            return [self.value(each, depth + 1) for each in content]
        if isinstance(content, dict):
            raise InputError("The graph must have arguments without mappings, got one.")
        return content

    def finish(self, output: fx.Node | tuple[fx.Node, ...]) -> fx.GraphModule:
        self._graph.output(output)
        module = fx.GraphModule(self._root, self._graph)
        for name, tag in self._tags.items():
            parent, _, leaf = name.rpartition(".")
            if tag == CONSTANT:
                module.get_submodule(parent)._non_persistent_buffers_set.add(leaf)
        return module.eval()

    def _tagged(self, content: str) -> Any:
        tag, text = content[:1], content[1:]
        if tag == "%":
            return self._referred(text)
        if tag and tag in PARAMETER + BUFFER + CONSTANT:
            return self._attribute(tag, text)
        try:
            return _parsers[tag](text)
        except (KeyError, ValueError):
            raise InputError(f"The graph must have arguments of a known kind, got {content[:80]!r}.") from None

    def _referred(self, text: str) -> fx.Node:
        back = int(text) if text.isdecimal() and len(text) < 10 else 0
        if not 0 < back <= len(self._values):
            raise InputError(f"The graph must refer to values before, got '%{text[:80]}' at value {len(self._values)}.")
        return self._values[-back]

    def _attribute(self, tag: str, name: str) -> fx.Node:
        if name not in self._attributes:
            self._register(tag, name)
            self._attributes[name] = self._graph.create_node("get_attr", name)
            self._tags[name] = tag
        if self._tags[name] != tag:
            raise InputError(f"The graph must have one kind for each tensor, got two for {name}.")
        return self._attributes[name]

    def _register(self, tag: str, name: str) -> None:
        if _name_fault(name):
            raise InputError(f"The graph must have tensors with names of modules, got {name[:80]!r}.")
        if name not in self._tensors:
            raise InputError(f"The graph must have tensors that are in the file, got {name}, which is not.")
        parent, leaf = _module_at(self._root, name)
        if tag == PARAMETER:
            parent.register_parameter(leaf, nn.Parameter(self._tensors[name], requires_grad=False))
        else:
            parent.register_buffer(leaf, self._tensors[name])


def _checked_entry(entry: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """(operator, arguments by position, arguments by name) of a node in JSON."""
    if isinstance(entry, list) and len(entry) in (2, 3):
        name, arguments, keywords = (*entry, {})[:3]
        if isinstance(name, str) and isinstance(arguments, list) and isinstance(keywords, dict):
            return name, arguments, keywords
    raise InputError("The graph must have nodes of a name, arguments and named arguments, got another.")


def _module_at(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor, made where it is not there yet, and the tensor's own name."""
    *parents, leaf = name.split(".")
    module = root
    for part in parents:
        if part in module._parameters or part in module._buffers:
            raise InputError(f"The graph must have names that do not contain another, got {name}.")
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if leaf in module._modules:
        raise InputError(f"The graph must have names that do not contain another, got {name}.")
    return module, leaf


def _name_fault(name: str) -> str:
    """Why a name can't be written as an attribute of modules; empty where it can."""
    parts = name.split(".")
    if len(parts) > _MOST_LEVELS:
        return f"it has more than {_MOST_LEVELS} levels"
    for part in parts:
        if not _PART.fullmatch(part):
            return f"{part!r} is not made of letters, digits, dashes and underscores"
        if keyword.iskeyword(part) or part in _RESERVED:
            return f"{part!r} has another meaning"
    return ""
