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

from autocompress.errors import InputError
from autocompress.files import regular_file, write_atomically
from autocompress.models.weights import check_checksums

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


def read_checkpoint(path: Path, device: torch.device, made_for: str) -> dict[str, Any]:
    """The parts of a checkpoint by name.

    Args:
        path: existing file.
        device: device that its tensors are loaded onto.
        made_for: text that says which fine-tuning goes on; the checkpoint must hold the same.

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
    return state
