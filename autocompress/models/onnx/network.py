"""The network that an ONNX file becomes: a list of steps over torch operators and modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Read:
    """An argument of a step: the input of the network, or the result of an earlier step, of that name."""

    name: str


@dataclass(frozen=True)
class Stored:
    """An argument of a step: a parameter or buffer of the network, or of its modules, by its dotted path."""

    path: str


@dataclass(frozen=True)
class Step:
    """One call while the network runs.

    Attributes:
        node: name of the ONNX node that it is made of, for errors.
        call: function over tensors and Python numbers, or the path of the module that is called.
        arguments: `Read`, `Stored`, plain values, and lists of those.
        results: names of what the call returns: one name for anything but a tuple of results.
        ends: names of values that no later step reads.
    """

    node: str
    call: Callable[..., Any] | str
    arguments: tuple[Any, ...]
    results: tuple[str, ...]
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """Everything of the network but its tensors. It never changes, so copies of a network share it.

    Attributes:
        steps: calls in order.
        outputs: `Read` of each value that the network returns.
        input_names: names of the file's inputs.
        output_names: names of the file's outputs.
    """

    steps: tuple[Step, ...]
    outputs: tuple[Read, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __deepcopy__(self, memo: Any) -> Program:
        return self


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: convolutions, linear layers, norms and embeddings are torch's own modules.

    Its forward pass takes the file's inputs by position, in the file's order, and returns the output, or a tuple of
    them where there are several. Sizes are read from the tensors as the network runs: any batch size goes, and layers
    may lose channels.

    Args:
        program: the steps.

    Attributes:
        input_names: names of the file's inputs; files that are exported from this network get the same.
        output_names: names of the file's outputs, likewise.
        fixed_batch: number of samples that it takes at once, where that is fixed; None: any.
        difference: largest difference from ONNX Runtime when the file was read, as a share of the largest output.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.fixed_batch: int | None = None
        self.difference = 0.0

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.program.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.program.output_names

    @property
    def gives_probabilities(self) -> bool:
        """Whether the last thing that it computes is a softmax."""
        steps = self.program.steps
        return bool(steps) and getattr(steps[-1].call, "func", None) is torch.softmax

    # Inputs are named one by one, as torch.export takes the shapes of `*inputs` in another form than a caller knows.
    def forward(
        self,
        x: Tensor,
        second: Tensor | None = None,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
        *more: Tensor,
    ) -> Any:
        inputs = [each for each in (x, second, third, fourth, *more) if each is not None]
        if len(inputs) != len(self.input_names):
            names = ", ".join(self.input_names)
            raise ValueError(f"it takes {len(self.input_names)} inputs ({names}), got {len(inputs)}")
        if self.fixed_batch is not None and inputs[0].shape[0] != self.fixed_batch:
            raise ValueError(
                f"it takes {self.fixed_batch} samples at once, as its ONNX file says, got {inputs[0].shape[0]}; "
                "export it with an open batch axis"
            )
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for step in self.program.steps:
            values |= self.run(step, values)
            for name in step.ends:
                del values[name]
        results = tuple(values[output.name] for output in self.program.outputs)
        return results[0] if len(results) == 1 else results

    def run(self, step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
        """What one step makes, by name.

        Args:
            step: step to run.
            values: values that it reads, by name.
        """
        call = self.get_submodule(step.call) if isinstance(step.call, str) else step.call
        made = call(*(self._resolved(argument, values) for argument in step.arguments))
        if len(step.results) == 1:
            return {step.results[0]: made}
        return dict(zip(step.results, made, strict=True))

    def intermediate(self, *inputs: Tensor) -> Iterator[tuple[Step, str, Any]]:
        """Every value that a forward pass makes, in order: the step, the value's name and the value."""
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        for step in self.program.steps:
            made = self.run(step, values)
            values |= made
            for name, value in made.items():
                yield step, name, value

    def stored(self, path: str) -> Tensor:
        """The parameter or buffer of a dotted path."""
        tensor = reduce(getattr, path.split("."), self)
        assert isinstance(tensor, Tensor)
        return tensor

    def _resolved(self, argument: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(argument, Read):
            return values[argument.name]
        if isinstance(argument, Stored):
            return self.stored(argument.path)
        if isinstance(argument, list):
            return [self._resolved(each, values) for each in argument]
        return argument


def with_ends(steps: Sequence[Step], outputs: Sequence[Read]) -> tuple[Step, ...]:
    """The steps with `ends` filled in, so that a forward pass lets go of a value after its last use.

    Args:
        steps: steps in order.
        outputs: values that are returned.
    """
    kept = {output.name for output in outputs}
    result: list[Step] = []
    for step in reversed(steps):
        touched = dict.fromkeys((*read_names(step.arguments), *step.results))
        ends = tuple(name for name in touched if name not in kept)
        kept |= set(touched)
        result.append(Step(step.node, step.call, step.arguments, step.results, ends))
    return tuple(reversed(result))


def read_names(arguments: Any) -> Iterator[str]:
    """Names of the values among arguments, those in lists too."""
    for argument in arguments:
        if isinstance(argument, Read):
            yield argument.name
        elif isinstance(argument, list):
            yield from read_names(argument)


def is_weight(tensor: Tensor) -> bool:
    """Whether a constant becomes a parameter: floating-point numbers do, integers and truth values are buffers."""
    return tensor.dtype in (torch.float32, torch.float64)
