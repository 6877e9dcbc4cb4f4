"""OpenVINO IR: the ONNX file once more, for OpenVINO's runtime. Needs the extra `openvino`."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import ExportError, InputError, missing_extra
from autocompress.files import write_atomically, write_error
from autocompress.network.verification import first_line
from autocompress.targets.onnxruntime.exporter import OPSET
from autocompress.targets.onnxruntime.file import IR_VERSION
from autocompress.targets.onnxruntime.weights import packed


def write_openvino(content: bytes | str | Path, out_dir: str | Path) -> tuple[Path, Path]:
    """Write a network as `model.xml` (its graph) and `model.bin` (its weights).

    INT8 and INT4 weights keep their width. OpenVINO has no INT2: those become INT4.

    Args:
        content: ONNX file of `write_onnx`: its bytes or its path.
        out_dir: existing folder for both files.

    Returns:
        The paths of both files.

    Raises:
        InputError: OpenVINO is not installed, or `content` is missing.
        ExportError: OpenVINO can't read the network.
        WriteError: a file can't be written.
    """
    openvino = openvino_module()
    path = Path(out_dir) / "model.xml"
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        write_atomically(source, for_openvino(content if isinstance(content, bytes) else Path(content).read_bytes()))
        try:
            model = openvino.convert_model(source, share_weights=False)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"OpenVINO must be able to read the network, got {first_line(error)}") from error
        try:
            openvino.save_model(model, made, compress_to_fp16=False)
        except RuntimeError as error:
            raise write_error(made, None, first_line(error)) from error
        for file in (path.with_suffix(".bin"), path):
            write_atomically(file, made.with_suffix(file.suffix).read_bytes())
    return path, path.with_suffix(".bin")


def for_openvino(content: bytes) -> bytes:
    """An ONNX file as OpenVINO reads it: without INT2, and without the casts to INT8, which it would carry out.

    Args:
        content: ONNX file of `write_onnx`.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    proto = onnx.load_from_string(content)
    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT2:
            codes = numpy_helper.to_array(tensor).astype(np.int8)
            tensor.CopyFrom(packed(codes, 4, tensor.name))
    proto.opset_import[0].version, proto.ir_version = OPSET, IR_VERSION
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT4}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in narrow}
    kept = [node for node in graph.node if node.output[0] not in casts]
    for node in kept:
        if node.input and node.input[0] in casts:
            node.input[0] = casts[node.input[0]]
    del graph.node[:]
    graph.node.extend(kept)
    changed: bytes = proto.SerializeToString()
    return changed


def run_openvino(path: str | Path, inputs: Tensor) -> Tensor:
    """Outputs of a network in OpenVINO, on the CPU in float32.

    Args:
        path: .xml file of a network, with its .bin file beside it.
        inputs: (N, …) float32 samples.

    Raises:
        InputError: OpenVINO is not installed, or can't load the file.
    """
    openvino = openvino_module()
    try:
        model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise InputError(f"`path` must be an IR that OpenVINO loads, got {path}: {first_line(error)}") from error
    return torch.from_numpy(model(inputs.detach().cpu().float().contiguous().numpy())[0].copy())


def openvino_module() -> Any:
    """The package `openvino`, an extra. Raises InputError, which says how to install it, where it is missing."""
    try:
        return importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        raise missing_extra("format", "openvino", "openvino") from error
