"""ExecuTorch's runtime: runs `.pte` files on the CPU, with the XNNPACK kernels that it has built in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.network.verification import first_line
from autocompress.quiet import quiet
from autocompress.samples import Inputs, cast, tensors_of
from autocompress.targets.executorch import schema
from autocompress.targets.executorch.program import MOST_SAMPLES
from autocompress.tasks import together
from autocompress.tasks.outputs import Outputs, single


class ExecuTorchSession:
    """A network that ExecuTorch's runtime has loaded. Made by `open_executorch`.

    Args:
        program: the loaded program.
        content: content of its file, which it reads as long as it runs.
    """

    def __init__(self, program: Any, content: bytes) -> None:
        self._program, self._content = program, content
        self._method = program.load_method("forward")

    def run(self, inputs: Inputs) -> Tensor | Outputs:
        """(N, …) float32 outputs of (N, …) `inputs`, any N: a tensor, or several in a tuple."""
        found: Tensor | Outputs = together([single(tuple(self._method(each))) for each in _parts(inputs)])
        return found

    def prepared(self, inputs: Inputs) -> Callable[[], None]:
        """A function that runs the network on these (N, …) `inputs`, in turns where they are more than 32."""
        parts = _parts(inputs)

        def call() -> None:
            for each in parts:
                self._method(each)

        return call


def _parts(inputs: Inputs) -> list[list[Tensor]]:
    """The tensors of as many samples as a file takes at once."""
    given = cast(inputs.detach(), "cpu", torch.float32)
    return [[each.contiguous() for each in tensors_of(part)] for part in given.split(MOST_SAMPLES)]


def open_executorch(content: bytes) -> ExecuTorchSession:
    """Load an ExecuTorch file on the CPU, on one thread.

    Args:
        content: bytes of the file.

    Raises:
        InputError: the extra `executorch` is not installed, or the file is damaged, or holds what this version of
            ExecuTorch can't run.
    """
    with quiet():
        package = schema.runtime()
        _run_on_one_thread()
        try:
            return ExecuTorchSession(package._load_program_from_buffer(content), content)
        except RuntimeError as error:
            raise InputError(
                f"`path` must be a file that ExecuTorch loads, got {len(content):,} bytes: {first_line(error)}"
            ) from error


@functools.cache
def _run_on_one_thread() -> None:
    """Give ExecuTorch's runtime a pool of one thread, once: all files share it, and those that are loaded keep it."""
    schema.runtime()._unsafe_reset_threadpool(1)
