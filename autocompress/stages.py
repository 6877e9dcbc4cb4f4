"""What comes before the last search: L1-regularised fine-tuning, and compressing in stages.

Both change the network that is compressed, the *base*; the original stays the teacher and the measure. A base keeps the
original's architecture: channels that a stage removed are there again, read by nobody, so the next stage removes
them first, and the last stage's plan is a plan for the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autocompress.config import Config
from autocompress.errors import InputError
from autocompress.evaluation.stitch import kept_rows, resolve
from autocompress.execute.compressed import uncompressed
from autocompress.execute.finetune import FineTuning, Tuned
from autocompress.execute.pipeline import Execution, tune
from autocompress.jobs import Loaded, loaded_fields
from autocompress.menus.menus import Menus
from autocompress.network import fold_batch_norms, unfold_batch_norms
from autocompress.recording import weights_bytes
from autocompress.report.progress import Progress
from autocompress.run_folder import write_atomically
from autocompress_envs.numbers import Labeling

BASE = "base.safetensors"  # in a stage's folder


def check_stages(config: Config) -> None:
    """Raises InputError where stages are asked for without fine-tuning between them."""
    if config.stages > 1 and config.finetune == 0:
        raise InputError(f"`stages` above 1 need fine-tuning between them, got {config.stages}; pass --finetune 1.")


def stage_limits(limits: Mapping[str, int], original: Mapping[str, int], stage: int, stages: int) -> dict[str, int]:
    """The budget after `stage` of `stages`: each takes the same factor off.

    >>> stage_limits({"macs": 250}, {"macs": 1000}, 1, 2)
    {'macs': 500}
    """
    share = stage / stages
    return {name: round(original[name] * (limit / original[name]) ** share) for name, limit in limits.items()}


def sparsified(loaded: Loaded, config: Config, tuning: FineTuning, settings: Execution, watcher: Progress) -> Loaded:
    """With a base that was fine-tuned under an L1 penalty, so that less of it matters (Han et al. 2015).

    Args:
        loaded: the network.
        config: `l1_weight`.
        tuning: everything else of the fine-tuning, `l1_epochs` long.
        settings: where and how it runs.
        watcher: told what happens.
    """
    watcher.stage(f"fine-tuning with an L1 penalty before pruning: {tuning.epochs:g} epochs")
    penalised = replace(tuning, objective=replace(tuning.objective, l1=config.l1_weight))
    whole = uncompressed(loaded.folded, loaded.network)
    kept = {name: layer.weight() for name, layer in whole.layers.items()}  # all of its own; `strong` begins there
    tuned = tune(whole, loaded.teacher, loaded.data, settings, penalised, kept, watcher)
    return with_base(loaded, unfold_batch_norms(loaded.model, loaded.network, tuned.compressed.model))


def with_base(loaded: Loaded, base: nn.Module) -> Loaded:
    """The same original, another base."""
    folded = fold_batch_norms(base, loaded.network).cpu().float().eval()
    return Loaded(**{**loaded_fields(loaded), "base": base, "folded": folded})


def expanded(loaded: Loaded, menus: Menus, labeling: Labeling, tuned: Tuned) -> Loaded:
    """With the base that a stage leaves: its fine-tuned weights in the original's places, removed columns at 0.

    Args:
        loaded: the network that was compressed.
        menus: of its base.
        labeling: the stage's plan.
        tuned: what the plan became.
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
    write_atomically(path / BASE, weights_bytes(base.state_dict()))


def load_base(path: Path, loaded: Loaded) -> Loaded | None:
    """With the base in a stage's folder; None where the stage was not finished."""
    if not (path / BASE).is_file():
        return None
    base = unfold_batch_norms(loaded.model, loaded.network, loaded.teacher)  # a copy of the right class
    try:
        base.load_state_dict(safetensors.torch.load_file(path / BASE))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"`resume` must find what the stage left, got {path / BASE}, damaged or another's.") from error
    return with_base(loaded, base)
