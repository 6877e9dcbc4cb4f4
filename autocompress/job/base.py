"""The base: the network that is compressed, where stages or an L1 penalty have changed the original before the search.

A base keeps the original's architecture: channels that a stage removed are there again, read by nobody, so the next
stage removes them first, and the last stage's plan is a plan for the original.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.checked_tensors import load_checked, save_checked
from autocompress.errors import InputError
from autocompress.evaluation.stitch import kept_rows, resolve
from autocompress.execute.tuning import Tuned
from autocompress.job.load import Loaded, loaded_fields
from autocompress.menus.menus import Menus
from autocompress.network import fold_batch_norms, unfold_batch_norms
from autocompress_envs.problem import Labeling

BASE = "base.safetensors"  # in a stage's folder


def with_base(loaded: Loaded, base: nn.Module) -> Loaded:
    """The same original, another base."""
    folded = fold_batch_norms(base, loaded.network).cpu().float().eval()
    return Loaded(**{**loaded_fields(loaded), "base": base, "folded": folded})


def expanded(loaded: Loaded, menus: Menus, labeling: Labeling, tuned: Tuned) -> Loaded:
    """With the base that a stage leaves: its fine-tuned weights in the original's places, removed columns at 0.

    Args:
        loaded: the network that was compressed.
        menus: menus of its base.
        labeling: the stage's plan.
        tuned: the fine-tuned network that the plan became.
    """
    folded = fold_batch_norms(loaded.base, loaded.network).cpu().float().eval()
    with torch.no_grad():
        for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
            weight, bias = tuned.unrounded[layer.name]
            rows, columns = kept_rows(menus, layer, choice), menus.kept_columns(layer, choice.reads)
            module = folded.get_submodule(layer.name)
            module.get_parameter("weight").copy_(_put_back(module.get_parameter("weight"), weight, rows, columns))
            if bias is not None:
                module.get_parameter("bias")[rows] = bias
    return with_base(loaded, unfold_batch_norms(loaded.model, loaded.network, folded))


def _put_back(full: Tensor, weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`full` with `weight` in its rows and columns; what else these rows read is removed."""
    flat = full.flatten(1).clone()
    removed = torch.ones(flat.shape[1], dtype=torch.bool)
    removed[columns] = False
    flat[:, removed] = 0
    flat[rows[:, None], columns] = weight.flatten(1)
    return flat.view_as(full)


def save_base(path: Path, base: nn.Module) -> None:
    """Write a base into a stage's folder, which exists."""
    save_checked(path / BASE, base.state_dict())


def load_base(path: Path, loaded: Loaded) -> Loaded | None:
    """With the base in a stage's folder; None where the stage was not finished."""
    if not (path / BASE).is_file():
        return None
    base, weights = unfold_batch_norms(loaded.model, loaded.network, loaded.teacher), load_checked(path / BASE)
    try:
        base.load_state_dict(weights or {})
    except RuntimeError as error:
        raise InputError(f"`resume` must find what the stage left, got {path / BASE}, damaged or another's.") from error
    return with_base(loaded, base)
