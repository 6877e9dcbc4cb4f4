"""Weight files: safetensors, or PyTorch files read without unpickling code."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autocompress.errors import InputError

# What torch.load was seen to raise on truncated and overwritten files, besides UnpicklingError.
_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, AssertionError, struct.error)
_SHOWN = 3  # keys listed of each kind of mismatch


def load_weights_(model: nn.Module, path: str | Path) -> None:
    """Load the state dict in `path` into `model`, in place.

    `num_batches_tracked` of batch norms may be missing, for it has no effect on a trained network; every
    other key must match. A `module.` before every key (from `DataParallel`) is taken off.

    Args:
        model: network whose weights are replaced; it stays as it is unless everything matches.
        path: path of a `.safetensors` file, or of a `.pt` or `.pth` file with a state dict, alone or under
            `state_dict` or `model`.

    Raises:
        InputError: the file is missing or corrupt, a key is missing, unexpected or of another shape, or a
            tensor holds NaN or infinity.
    """
    path = Path(path)
    state = _without_data_parallel(_read_state(path))
    expected = model.state_dict()
    _check_match(expected, state, path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"`weights` must be finite, got NaN or infinity in {name} of {path}.")
    model.load_state_dict({**expected, **state})


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a file. Raises InputError where it can't be read."""
    readers = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
    if path.suffix not in readers:
        raise InputError(f"`weights` must end in {', '.join(readers)}, got {path}.")
    if not path.is_file():
        raise InputError(f"`weights` must be an existing file, got {path}.")
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"`weights` must be a readable safetensors file, got {path}: {_line(error)}.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
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
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")  # torch adds advice


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as the bytes of a safetensors file; tensors that share memory are stored one by one."""
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})
