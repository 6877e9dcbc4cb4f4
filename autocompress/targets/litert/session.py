"""LiteRT's interpreter: runs `.tflite` files on the CPU, with the XNNPACK kernels that it has built in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.network.verification import first_line
from autocompress.samples import Inputs
from autocompress.targets.litert.runtime import interpreter
from autocompress.targets.timing.session import feeds_of
from autocompress.tasks.outputs import Outputs, single


class LiteRtSession:
    """A network that LiteRT's interpreter has loaded. Made by `open_litert`.

    Args:
        loaded: the interpreter.
    """

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self._inputs = loaded.get_input_details()
        self._outputs = [each["index"] for each in loaded.get_output_details()]
        self._samples = 0

    def run(self, inputs: Inputs) -> Tensor | Outputs:
        """(N, …) float32 outputs of (N, …) `inputs`, any N: a tensor, or several in a tuple."""
        self.prepared(inputs)()
        return single(tuple(torch.from_numpy(self._loaded.get_tensor(index)) for index in self._outputs))

    def prepared(self, inputs: Inputs) -> Callable[[], None]:
        """A function that runs the network on these (N, …) `inputs`.

        The interpreter holds tensors for one N at a time: for another N it makes them anew, outside of what is timed.
        """
        feeds = feeds_of(inputs, [each["name"] for each in self._inputs])

        def call() -> None:
            self._resize(len(inputs))
            for each in self._inputs:
                self._loaded.set_tensor(each["index"], feeds[each["name"]])
            self._loaded.invoke()

        self._resize(len(inputs))
        return call

    def _resize(self, samples: int) -> None:
        if samples == self._samples:
            return
        for each in self._inputs:
            self._loaded.resize_tensor_input(each["index"], np.array([samples, *each["shape"][1:]], np.int32))
        self._loaded.allocate_tensors()
        self._samples = samples


def open_litert(content: bytes, threads: int = 1) -> LiteRtSession:
    """Load a LiteRT file on the CPU.

    Args:
        content: bytes of the file.
        threads: number of threads that one operator may use, at least 1.

    Raises:
        InputError: the extra `litert` is not installed, or the file is damaged, or holds what this version of LiteRT
            can't run.
    """
    package = interpreter()
    try:
        loaded = package.Interpreter(model_content=content, num_threads=threads)
        loaded.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"`path` must be a file that LiteRT loads, got {len(content):,} bytes: {first_line(error)}"
        ) from error
    return LiteRtSession(loaded)
