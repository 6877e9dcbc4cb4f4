"""A network while it is built: its values, and what is known of each.

Every step runs once or more while the network is built, on tensors that have shapes but no content (`FakeTensorMode`):
once for each trial, an assignment of sizes to the axes that the file, or this package, leaves open. So a translation
can ask for ranks and sizes, and can tell a size that is always the same from one that follows the batch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.models.onnx.constants import Constant
from autocompress.models.onnx.naming import clean_path, container, free_path, layer_path
from autocompress.models.onnx.network import OnnxNetwork, Step, Stored, is_weight, read_names

if TYPE_CHECKING:
    from onnx import NodeProto

Shapes = tuple[tuple[int, ...], ...]  # shape of a value in every trial


class Untranslatable(Exception):
    """A node uses an operator in a way that there is no translation for; the message says which way."""


@dataclass(frozen=True)
class Value:
    """What is known of a value that depends on the input.

    Attributes:
        name: name in the program.
        trials: the value in every trial: a tensor without content; or a number or a list of numbers, where the
            value is made of sizes and is computed by Python (`is_host`).
    """

    name: str
    trials: tuple[Any, ...]

    @property
    def is_host(self) -> bool:
        """Whether it is a number or a list of numbers, not a tensor."""
        return not isinstance(self.trials[0], Tensor)


@dataclass
class Translation:
    """A network while it is built.

    Attributes:
        network: network with the modules and tensors so far, without a program.
        constants: constants by name.
        opset: version of ONNX's operators in the file.
        mode: mode in which tensors have no content.
        readers: number of nodes that read a tensor of the file, by its name.
        values: values by their names in the file.
        steps: steps so far.
    """

    network: OnnxNetwork
    constants: dict[str, Constant]
    opset: int
    mode: Any
    readers: Mapping[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    _stored: dict[Any, str] = field(default_factory=dict)
    _count: int = 0

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(next(iter(self.values.values())).trials)

    def step(self, node: str, call: Callable[..., Any] | str, arguments: Sequence[Any], results: Sequence[str]) -> None:
        """Add a step, and run it in every trial.

        Args:
            node: name of the node that it belongs to.
            call: function, or path of a module.
            arguments: `Read`, `Stored`, plain values, and lists of those.
            results: names of the results.
        """
        step = Step(node, call, tuple(arguments), tuple(results))
        made: list[dict[str, Any]] = []
        for trial in range(self.trials):
            values = {name: self.values[name].trials[trial] for name in read_names(step.arguments)}
            with self.mode, torch.no_grad():
                made.append(self.network.run(step, values))
        self.steps.append(step)
        for name in results:
            self.values[name] = Value(name, tuple(each[name] for each in made))

    def new_name(self, base: str) -> str:
        """A name that no value of the file has."""
        self._count += 1
        return f"{base}\n{self._count}"

    def store(self, constant: Constant, tensor: Tensor | None = None, form: str = "") -> Stored:
        """A constant as a parameter, or a buffer if it holds no weights; the same one for the same constant and form.

        Args:
            constant: the constant.
            tensor: what is stored instead of the constant's own value, if anything.
            form: what was done to the value.
        """
        key = (constant.name, form)
        if key not in self._stored:
            value = constant.tensor if tensor is None else tensor
            path = free_path(self.network, clean_path(constant.name) or "constant")
            parent, last = container(self.network, path)
            if is_weight(value):
                parent.register_parameter(last, nn.Parameter(value.clone(), requires_grad=False))
            else:
                parent.register_buffer(last, value.clone())
            self._stored[key] = path
        return Stored(self._stored[key])

    def module(self, node: NodeProto, tensors: Sequence[str], key: Any, make: Callable[[], nn.Module]) -> str:
        """Path of a module, which is made unless there is one with the same key.

        Args:
            node: node that calls it.
            tensors: names of its weight and bias.
            key: what it is made of: names of tensors and attributes.
            make: function that makes it.
        """
        if key not in self._stored:
            path = free_path(self.network, layer_path(tensors, _scope(node), node.name, node.op_type))
            parent, last = container(self.network, path)
            parent.add_module(last, make().eval())
            self._stored[key] = path
        return self._stored[key]

    def parameter(self, key: Any, tensor: Tensor) -> nn.Parameter:
        """The parameter of a module: one and the same for the same key, so that modules share tied weights.

        Args:
            key: name of the tensor in the file and how it is turned.
            tensor: value.
        """
        found = self._parameters.get(key)
        if found is None:
            found = self._parameters[key] = nn.Parameter(tensor.clone().contiguous(), requires_grad=False)
        return found

    @functools.cached_property
    def _parameters(self) -> dict[Any, nn.Parameter]:
        return {}


def _scope(node: NodeProto) -> str:
    """Path of the PyTorch module that a node is from, where PyTorch's exporter has noted it; else empty."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", notes.get("pkg.torch.onnx.name_scopes", ""))
    return scopes[-2] if len(scopes) > 1 else ""
