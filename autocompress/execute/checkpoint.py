"""Checkpoints of fine-tuning: everything that going on exactly where it stopped needs, in one file."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.files import regular_file, write_atomically
from autocompress.models.weights import FLOATS, check_checksums, special_form

NUMBERS = 6  # numbers that a fine-tuning keeps beside its tensors
_PARTS = {"model", "optimizer", "scheduler", "best", "numbers", "made_for"}
_DAMAGE = "`resume` must find a whole checkpoint, got {}, which is damaged; remove that file to start anew."
# What zipfile and torch.load raise on truncated and overwritten files.
_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; a process that dies meanwhile leaves the old file whole.

    Args:
        path: file to be written or replaced.
        state: parts by name: `model`, `optimizer`, `scheduler`, `best`, `numbers` and `made_for`.
    """
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(path, content.getvalue())


def read_checkpoint(
    path: Path, device: torch.device, made_for: str, model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The parts of a checkpoint by name.

    Args:
        path: existing file.
        device: device that its tensors are loaded onto.
        made_for: text that says which fine-tuning goes on; the checkpoint must hold the same.
        model: state of the model that goes on, for its names, shapes and types.
        optimizer: its optimizer, likewise.

    Raises:
        InputError: the file is damaged or another fine-tuning's.
    """
    if not regular_file(path):
        raise InputError(_DAMAGE.format(path))
    try:
        check_checksums(path)
        state = torch.load(path, weights_only=True, map_location=device)
    except _DAMAGED as error:
        raise InputError(_DAMAGE.format(path)) from error
    if not isinstance(state, dict) or state.keys() != _PARTS:
        raise InputError(_DAMAGE.format(path))
    if state["made_for"] != made_for:
        raise InputError(
            f"`resume` must continue a fine-tuning with the same settings, plan and data, got others in "
            f"{path}; remove that file to start anew."
        )
    if not _is_whole(state, model, optimizer):
        raise InputError(_DAMAGE.format(path))
    return state


def _is_whole(state: Mapping[str, Any], model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> bool:
    """Whether the parts are those of a fine-tuning of that model."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        moments, last = state["optimizer"]["state"], state["scheduler"]["last_epoch"]
        return (
            _are_like(state["model"], model)
            and (state["best"] == {} or _are_like(state["best"], model))
            and all(_are_moments(moments[index], parameters[index]) for index in moments)
            and _settings(state["optimizer"]) == _settings(optimizer.state_dict())
            and all(type(number) in (int, float) for number in (*state["numbers"], last))
            and len(state["numbers"]) == NUMBERS
        )
    except (TypeError, LookupError, AttributeError):
        return False


def _are_like(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names, shapes and types of others."""
    return found.keys() == wanted.keys() and all(
        not special_form(found[name]) and (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        for name, tensor in wanted.items()
    )


def _are_moments(found: Mapping[str, Tensor], parameter: Tensor) -> bool:
    """Whether they are a parameter's numbers in Adam: a count of steps, and two moments of its own shape."""
    return all(_is_plain(each) for each in found.values()) and {name: each.shape for name, each in found.items()} == {
        "step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape,
    }  # fmt: skip


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is ordinary floats one after the other; a tuning that diverges has some that are not finite."""
    return tensor.dtype in FLOATS and not special_form(tensor)


def _settings(optimizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings of an optimizer's groups without the learning rate, which changes in every step."""
    groups = optimizer["param_groups"]
    return [{name: value for name, value in group.items() if name != "lr"} for group in groups]
