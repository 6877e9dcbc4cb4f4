"""From the nodes of an ONNX graph to the steps of a network."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, reason_of
from autocompress.models.onnx.building import Shapes, Translation, Untranslatable, Value
from autocompress.models.onnx.constants import RANDOM, Constant, computed
from autocompress.models.onnx.network import OnnxNetwork, Program, Read, Stored, with_ends
from autocompress.models.onnx.reading import node_name, opset

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


class Operation:
    """One node while it is translated: its attributes and inputs, and `emit`, which adds the step that computes it.

    Args:
        node: the node.
        translation: network while it is built.
    """

    def __init__(self, node: NodeProto, translation: Translation) -> None:
        self.node = node
        self.translation = translation
        self.opset = translation.opset
        self.attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}

    # --- what is given -----------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute of that name, else the default."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether the node has an input at that position."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def has_output(self, index: int) -> bool:
        """Whether the node has an output at that position."""
        return index < len(self.node.output) and bool(self.node.output[index])

    def constant(self, index: int) -> Constant | None:
        """The input at that position where it is a constant."""
        return self.translation.constants.get(self.node.input[index]) if self.has(index) else None

    def required(self, index: int, what: str) -> Constant:
        """The input at that position, which has to be a constant. Raises Untranslatable where it is none."""
        constant = self.constant(index) or self.settled(index)
        if constant is None:
            raise Untranslatable(f"{what} that depends on the network's input")
        return constant

    def settled(self, index: int) -> Constant | None:
        """The input as a constant where it is made of sizes that are the same in every trial."""
        if not self.is_host(index):
            return None
        value = self.value(index)
        same = all(trial == value.trials[0] for trial in value.trials)
        return Constant(value.name, as_tensor(value.trials[0]), value.name) if same else None

    def value(self, index: int) -> Value:
        """The input at that position, which depends on the network's input."""
        return self.translation.values[self.node.input[index]]

    def is_host(self, index: int) -> bool:
        """Whether the input is made of sizes and computed by Python."""
        return self.has(index) and self.constant(index) is None and self.value(index).is_host

    def tensor(self, index: int) -> Read | Stored:
        """The input at that position as an argument that is a tensor."""
        constant = self.constant(index)
        if constant is not None:
            return self.translation.store(constant)
        value = self.value(index)
        if not value.is_host:
            return Read(value.name)
        return self.step(as_tensor, Read(value.name))

    def operand(self, index: int) -> Any:
        """The input as an argument of a pointwise operator: a constant of one element is a plain number."""
        constant = self.constant(index)
        if constant is not None and constant.tensor.numel() == 1 and constant.tensor.ndim <= self._least_rank():
            return constant.tensor.item()
        if self.is_host(index) and not isinstance(self.value(index).trials[0], list):
            return Read(self.value(index).name)
        return self.tensor(index)

    def integers(self, name: str, index: int) -> list[int] | None:
        """Axes and the like: an attribute in older opsets, a constant input in newer ones; None where missing."""
        if name in self.attributes:
            return list(self.attributes[name])
        if not self.has(index):
            return None
        return [int(each) for each in self.required(index, name).tensor.flatten().tolist()]

    def numbers(self, index: int) -> Any:
        """The input as numbers for Python: a list where it is a constant, else a value that is a list."""
        constant = self.constant(index)
        if constant is not None:
            return constant.tensor.tolist()
        value = self.value(index)
        if not value.is_host:
            raise Untranslatable("sizes or positions that depend on the content of the network's input")
        return Read(value.name)

    def shapes(self, index: int) -> Shapes:
        """Shape of the input at that position in every trial."""
        constant = self.constant(index)
        if constant is not None:
            return (tuple(constant.tensor.shape),) * self.translation.trials
        return tuple(_shape(trial) for trial in self.value(index).trials)

    def rank(self, index: int) -> int:
        """Number of axes of the input at that position."""
        return len(self.shapes(index)[0])

    def axis(self, index: int, default: int, name: str = "axis") -> int:
        """The attribute `axis`, counted from the front, for the input at `index`."""
        return int(self.attribute(name, default)) % max(1, self.rank(index))

    # --- what is made ------------------------------------------------------------------------------------------------

    def emit(self, call: Callable[..., Any] | str, *arguments: Any, **settings: Any) -> None:
        """Add the step whose results are the node's outputs."""
        function = functools.partial(call, **settings) if settings and not isinstance(call, str) else call
        self.translation.step(node_name(self.node), function, arguments, self.results())

    def step(self, call: Callable[..., Any] | str, *arguments: Any, **settings: Any) -> Read:
        """Add a step on the way to the node's outputs; returns its one result."""
        function = functools.partial(call, **settings) if settings and not isinstance(call, str) else call
        name = self.translation.new_name(self.results()[0])
        self.translation.step(node_name(self.node), function, arguments, [name])
        return Read(name)

    def results(self) -> list[str]:
        """Names of the node's outputs; of those in the middle that nobody wants, a name that nobody reads."""
        return [name or self.translation.new_name("unused") for name in self.node.output]

    def pass_on(self, index: int = 0) -> None:
        """Make the node's first output the input at that position itself."""
        self.translation.values[self.node.output[0]] = self.value(index)

    def make_constant(self, tensor: Tensor) -> None:
        """Make the node's first output a constant."""
        name = self.node.output[0]
        self.translation.constants[name] = Constant(name, tensor, name)

    def layer(self, weight: Constant, key: Sequence[Any], make: Callable[[], nn.Module]) -> str:
        """Path of the module that the node becomes.

        Args:
            weight: constant that it is named after.
            key: whatever else it is made of.
            make: function that makes it.
        """
        tensors, bias = [weight.origin], self.constant(2)
        if bias is not None and self.translation.readers[bias.origin] == 1:  # exporters store equal tensors once
            tensors.append(bias.origin)
        return self.translation.module(self.node, tensors, (self.node.op_type, weight.name, *key), make)

    def own(self, constant: Constant, *, turned: bool = False) -> nn.Parameter:
        """A constant as the parameter of a module, shared with all other modules that have the same one.

        Args:
            constant: the constant.
            turned: whether the parameter is its transposition.
        """
        tensor = constant.tensor.T if turned else constant.tensor
        return self.translation.parameter((constant.origin, constant.turned != turned), tensor)

    def shown(self) -> str:
        """The operator and the node's name, for errors."""
        return f"{self.node.op_type} ({node_name(self.node)})"

    def _least_rank(self) -> int:
        """Largest number of axes among the inputs that depend on the network's input."""
        ranks = [
            self.rank(index)
            for index in range(len(self.node.input))
            if self.has(index) and self.constant(index) is None
        ]
        return max(ranks, default=0)


Handler = Callable[[Operation], None]


def as_tensor(numbers: Any) -> Tensor:
    """Numbers that Python computed as a tensor: int64, float32 or bool."""
    return torch.tensor(numbers)


def translate(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Constant],
    proto: ModelProto,
    inputs: Mapping[str, tuple[Tensor, ...]],
    outputs: Sequence[str],
    handle: Handler,
    mode: Any,
) -> OnnxNetwork:
    """The network that nodes compute.

    Args:
        nodes: nodes that depend on the input, in order.
        constants: constants by name.
        proto: file that they are from.
        inputs: tensors without content for every trial, by name of the input.
        outputs: names of the outputs.
        handle: translation of one node.
        mode: mode in which tensors have no content.

    Raises:
        InputError: nodes use operators in ways that can't be translated; all are named.
    """
    empty = Program((), (), tuple(inputs), tuple(outputs))
    readers = Counter(name for node in proto.graph.node for name in node.input)
    translation = Translation(OnnxNetwork(empty).eval(), dict(constants), opset(proto), mode, readers)
    translation.values |= {name: Value(name, trials) for name, trials in inputs.items()}
    for node in nodes:
        operation = Operation(node, translation)
        if node.op_type not in RANDOM and all(name in translation.constants for name in node.input if name):
            translation.constants |= computed(node, proto, translation.constants)  # of numbers of sizes, known by now
            continue
        try:
            handle(operation)
        except Untranslatable as error:
            if (known := _settled(operation)) is not None:
                translation.constants |= computed(node, proto, {**translation.constants, **known})
                continue
            raise InputError(
                f"`model` must have operators that are known here, got {operation.shown()} with {error}."
            ) from error
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            reason = reason_of(error)
            raise InputError(
                f"`model` must be translated into torch, but {operation.shown()} can't: {reason}."
            ) from error
    results = [_output(translation, name) for name in outputs]
    steps = with_ends(translation.steps, results)
    translation.network.program = Program(steps, tuple(results), tuple(inputs), tuple(outputs))
    return translation.network


def _settled(op: Operation) -> dict[str, Constant] | None:
    """Inputs as constants, where all are constants or made of sizes that never change; None where not.

    PyTorch's older exporter puts the padding of `F.pad` into a matrix, for which there are no operators of sizes.
    """
    found: dict[str, Constant] = {}
    for index, name in enumerate(op.node.input):
        if op.has(index) and op.constant(index) is None:
            settled = op.settled(index)
            if settled is None:
                return None
            found[name] = settled
    return found


def _output(translation: Translation, name: str) -> Read:
    """What the network returns for one of the file's outputs, which may be a constant, or made of sizes."""
    if name in translation.constants:
        raise InputError(f"`model` must have outputs that depend on its input, got the constant {name}.")
    value = translation.values[name]
    if value.is_host:
        result = translation.new_name(name)
        translation.step(name, as_tensor, [Read(value.name)], [result])
        return Read(result)
    return Read(value.name)


def _shape(value: Any) -> tuple[int, ...]:
    """Shape of a tensor, of a number, or of a list of numbers."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return (len(value),) if isinstance(value, list) else ()


def _attribute(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return (
        [each.decode() for each in value]
        if isinstance(value, list) and value and isinstance(value[0], bytes)
        else value
    )
