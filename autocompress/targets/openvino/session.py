"""OpenVINO as a runtime: the file of its target, and networks that it has loaded. Needs the extra `openvino`.

The file is one ONNX file as OpenVINO loads it itself, and not its own pair of graph and weights: a single file, whose
bytes are all that a device must hold, and without some kilobytes of XML for every layer. `export --format openvino`
writes the pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import ExportError, InputError
from autocompress.network.verification import first_line
from autocompress.samples import Inputs
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.openvino.ir import for_openvino, openvino_module
from autocompress.targets.timing.session import feeds_of
from autocompress.tasks.outputs import Outputs, single

INTEGER_BITS = (8,)
"""Weight bits at which OpenVINO's CPU plugin runs integer kernels; narrower weights are unpacked to float32."""


def write_openvino_onnx(lowered: Lowered) -> bytes:
    """The ONNX file of a network, in the form that OpenVINO loads.

    Args:
        lowered: network to be written.

    Raises:
        ExportError: OpenVINO can't read the network.
    """
    content = for_openvino(write_onnx(lowered))
    try:
        openvino_module().Core().read_model(content)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO must be able to read the network, got {first_line(error)}") from error
    return content


class OpenVinoSession:
    """A network that OpenVINO has loaded on the CPU. Made by `open_openvino`.

    Args:
        core: OpenVINO's core.
        model: the network as it was read; batches of any size.
        settings: settings of the CPU plugin.
    """

    def __init__(self, core: Any, model: Any, settings: dict[str, Any]) -> None:
        self._core, self._model, self._settings = core, model, settings
        self._names: list[str] = [each.any_name for each in model.inputs]
        self._compiled = core.compile_model(model, "CPU", settings)

    def run(self, inputs: Inputs) -> Tensor | Outputs:
        """(N, …) float32 outputs of (N, …) `inputs`, any N: a tensor, or several in a tuple."""
        found = self._compiled(feeds_of(inputs, self._names))
        return single(tuple(torch.from_numpy(np.array(found[index])) for index in range(len(self._compiled.outputs))))

    def prepared(self, inputs: Inputs) -> Callable[[], Any]:
        """A function that runs the network on these (N, …) `inputs`, compiled for their shapes.

        Where a program knows its shapes, OpenVINO chooses its kernels for them; that is what is timed.
        """
        feeds, model = feeds_of(inputs, self._names), self._model.clone()
        model.reshape({name: list(feed.shape) for name, feed in feeds.items()})
        request = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        request.infer(feeds)
        return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)


def open_openvino(content: bytes, threads: int = 1) -> OpenVinoSession:
    """Load a file of the target in OpenVINO, on the CPU, in the numbers that the file says.

    Nothing is rounded that the file does not round: no half precision, and no rounding of inputs on the fly.

    Args:
        content: bytes of the file.
        threads: number of threads, at least 1; one request at a time.

    Raises:
        InputError: OpenVINO is not installed, or can't load the file.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino_module().Core()
    try:
        return OpenVinoSession(core, core.read_model(content), settings)
    except RuntimeError as error:
        raise InputError(
            f"`path` must be a file that OpenVINO loads, got {len(content):,} bytes: {first_line(error)}"
        ) from error
