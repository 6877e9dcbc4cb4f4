"""Weight files: safetensors, or PyTorch files read without unpickling code.

PyTorch's zip files carry a checksum for every record, which is verified. Its files of before 1.6
(`_use_new_zipfile_serialization=False`) and safetensors carry none: there, a flipped bit in a weight goes unnoticed.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autocompress.budget import format_bytes
from autocompress.errors import InputError, reason_of
from autocompress.files import check_regular
from autocompress.memory import memory_limit

# What torch.load was seen to raise on truncated and overwritten files, besides UnpicklingError.
_DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, AssertionError, TypeError, AttributeError, ArithmeticError,
    MemoryError, struct.error,
)  # fmt: skip
_ZIP = b"PK\x03\x04"  # by which PyTorch knows its zip files
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 3  # keys listed of each kind of mismatch


def load_weights_(model: nn.Module, path: str | Path) -> None:
    """Load the state dict in `path` into `model`, in place.

    `num_batches_tracked` of batch norms may be missing, for it has no effect on a trained network; every
    other key must match. A `module.` before every key (from `DataParallel`) is taken off.

    Args:
        model: network whose weights are replaced; it stays as it is unless everything matches.
        path: path of a `.safetensors` file, or of a `.pt` or `.pth` file with a state dict, alone or under
            `state_dict` or `model`.

    Numbers are cast between float16, bfloat16, float32 and float64, and between integers of different width. All
    other differences of type are errors: integers in place of weights are codes, whose scales would be lost.

    Raises:
        InputError: the file is missing or corrupt, a key is missing, unexpected, of another shape or of another kind
            of number, or a tensor is sparse or quantized, or holds NaN or infinity.
    """
    path = Path(path)
    state = _without_data_parallel(_read_state(path))
    expected = model.state_dict()
    for name, tensor in state.items():
        _check_plain(name, tensor, path)
    _check_match(expected, state, path)
    _check_kinds(expected, state, path)
    for name, tensor in state.items():
        if tensor.dtype in FLOATS and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"`weights` must be finite, got NaN or infinity in {name} of {path}.")
    model.load_state_dict({**expected, **state})


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file. Raises InputError where it can't be read."""
    readers = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
    if path.suffix not in readers:
        raise InputError(f"`weights` must end in {', '.join(readers)}, got {path}.")
    check_regular("`weights`", path)
    if not path.is_file():
        raise InputError(f"`weights` must be an existing file, got {path}.")
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:  # unknown dtypes
        raise InputError(f"`weights` must be a readable safetensors file, got {path}: {_line(error)}.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    check_checksums(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"`weights` must hold tensors only, got {path}, damaged or with other objects; save model.state_dict()."
        ) from error
    except LookupError as error:  # its message is a bare key
        raise InputError(f"`weights` must be a readable PyTorch file, got {path}, which is damaged.") from error
    except _DAMAGED as error:
        raise InputError(f"`weights` must be a readable PyTorch file, got {path}: {_line(error)}.") from error
    return _state_of(content, path)


def check_checksums(path: Path) -> None:
    """Verify the checksums of a PyTorch file's records; a file that is no zip file has none and is left to PyTorch.

    Args:
        path: path of the file.

    Raises:
        InputError: a checksum is wrong, or the records take more memory than a job may.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return
        with zipfile.ZipFile(path) as archive:
            size, limit = sum(record.file_size for record in archive.infolist()), memory_limit(None)
            damaged = None if size > limit else archive.testzip()
    except _BAD_ZIP as error:
        raise InputError(f"`weights` must be an undamaged PyTorch file, got {path}: {_line(error)}.") from error
    if size > limit:
        raise InputError(
            f"`weights` must fit into the {format_bytes(limit)} of memory that are left, got {path} with "
            f"{format_bytes(size)}."
        )
    if damaged is not None:
        raise InputError(
            f"`weights` must be an undamaged PyTorch file, got {path}: the checksum of {damaged} is wrong."
        )


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in the content of a PyTorch file. Raises InputError where there is none."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"`weights` must hold a state dict, alone or under state_dict or model, got none in {path}.")
    return {str(name): value for name, value in content.items()}


def _without_data_parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the `module.` before its keys, if it stands before all."""
    prefix = "module."
    if not state or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Raise InputError where a tensor is not numbers one after the other in memory."""
    kind = special_form(tensor)
    if kind:
        raise InputError(
            f"`weights` must hold plain tensors, got {name} of {path}, which is {kind}; save a state dict of float32 "
            "tensors."
        )


def special_form(tensor: Tensor) -> str:
    """The form of a tensor that is not numbers one after the other in memory, in one word; empty for all others.

    Args:
        tensor: any tensor.
    """
    forms = {
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout != torch.strided,
        "empty (meta)": tensor.is_meta,
    }
    return next((form for form, is_so in forms.items() if is_so), "")


def _check_kinds(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError where a tensor holds another kind of number than the model's."""
    for name, tensor in state.items():
        wanted = _kind(expected[name].dtype)
        if _kind(tensor.dtype) != wanted and not name.endswith("num_batches_tracked"):
            raise InputError(
                f"`weights` must hold {wanted} in {name}, as the model does, got {tensor.dtype} in {path}; save the "
                "weights as the network computes with them."
            )


def _kind(dtype: torch.dtype) -> str:
    """The kind of numbers of a dtype, in words; kinds are not cast into another."""
    if dtype in FLOATS:
        return "float16, bfloat16, float32 or float64"
    if dtype == torch.bool:
        return "true and false"
    if dtype.is_complex:
        return "complex numbers"
    return str(dtype) if dtype.is_floating_point else "integers"


def _check_match(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError where a key is missing, unexpected or of another shape."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    parts = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in found.items() if names]
    if parts:
        raise InputError(f"`weights` must match the model, got {path} with {'; '.join(parts)}.")


def _listed(names: list[str]) -> str:
    """The first names in words."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _line(error: Exception) -> str:
    """The first sentence of an error's message; the name of its type where it has none."""
    return reason_of(error).split(". ")[0].rstrip(".")  # torch adds advice


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as the bytes of a safetensors file; tensors that share memory are stored one by one."""
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})
