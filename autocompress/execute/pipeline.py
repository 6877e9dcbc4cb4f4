"""From a plan to the finished network: the menus' weights, re-calibrated, fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Data
from autocompress.data.training import trained_on
from autocompress.errors import ExportError
from autocompress.evaluation import measure
from autocompress.evaluation.stitch import in_layer_shape, kept_rows, resolve
from autocompress.execute.compressed import Compressed, from_menus
from autocompress.execute.finetune import FineTuning, Tuned, TuningStep, finetune
from autocompress.execute.recalibrate import recalibrate
from autocompress.menus.menus import Menus
from autocompress.progress import Progress
from autocompress_envs.problem import Labeling


@dataclass(frozen=True)
class Execution:
    """How plans are made real.

    Attributes:
        recalibration_samples: training samples that the layers are fitted to anew; 0 leaves the menus' weights.
        tuning: or None: no fine-tuning.
        device: where fine-tuning runs.
        dtype: of its forward passes.
        checkpoint: file that fine-tuning saves to and continues from.
    """

    recalibration_samples: int
    tuning: FineTuning | None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    checkpoint: Path | None = None


@dataclass(frozen=True, eq=False)
class Executed:
    """A plan made real.

    Attributes:
        compressed: the network.
        recalibrated: whether re-calibration brought it closer to the original on the search split.
        tuned: what fine-tuning did, or None.
    """

    compressed: Compressed
    recalibrated: bool
    tuned: Tuned | None


def execute(
    menus: Menus,
    labeling: Labeling,
    folded: nn.Module,
    teacher: nn.Module,
    data: Data,
    settings: Execution,
    watcher: Progress,
) -> Executed:
    """Make a plan real.

    Args:
        menus: of the network.
        labeling: the plan.
        folded: the network that the menus were made from, with its norms folded.
        teacher: the original.
        data: its calibration split and further training samples re-calibrate, its search split judges.
        settings: see there.
        watcher: told what happens.
    """
    compressed = from_menus(menus, labeling, folded)
    fitted = _recalibrated(compressed, menus, labeling, folded, data, settings, watcher)
    current, tuned = fitted or compressed, None
    if settings.tuning is not None:
        watcher.stage(f"fine-tuning: {settings.tuning.epochs:g} epochs, learning from the original")
        kept = original_weights(menus, labeling)
        tuned = tune(current, teacher, data, settings, settings.tuning, kept, watcher)
        current = tuned.compressed
    return Executed(current, fitted is not None, tuned)


def tune(
    compressed: Compressed,
    teacher: nn.Module,
    data: Data,
    settings: Execution,
    tuning: FineTuning,
    kept_weights: Mapping[str, Tensor],
    watcher: Progress,
) -> Tuned:
    """Fine-tune, and say what the user has to know of it."""
    tuned = finetune(
        compressed,
        teacher,
        data,
        tuning,
        device=settings.device,
        dtype=settings.dtype,
        kept_weights=kept_weights,
        checkpoint=settings.checkpoint,
        progress=_told(watcher),
    )
    if tuned.diverged:
        watcher.note(
            f"fine-tuning diverged at step {tuned.steps}; the best network before that is kept. "
            "Lower --learning-rate to go further"
        )
    elif tuned.best_step == 0:
        watcher.note("fine-tuning did not come closer to its objective on the search split; its start is kept")
    return tuned


def original_weights(menus: Menus, labeling: Labeling) -> dict[str, Tensor]:
    """By layer, what a plan keeps of the original's own weights: float32, in the compressed network's shapes."""
    found = {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        rows, columns = kept_rows(menus, layer, choice), menus.kept_columns(layer, choice.reads)
        weight = menus.sources[layer.name].weight[rows][:, columns]
        found[layer.name] = in_layer_shape(weight.float(), layer)
    return found


def _told(watcher: Progress) -> Callable[[TuningStep], None]:
    return lambda step: watcher.tuning(step.step, step.total, step.loss, step.search_accuracy, step.seconds_left)


def _recalibrated(
    compressed: Compressed,
    menus: Menus,
    labeling: Labeling,
    folded: nn.Module,
    data: Data,
    settings: Execution,
    watcher: Progress,
) -> Compressed | None:
    """None where it is not wanted, not possible, or no gain on the search split."""
    if settings.recalibration_samples == 0:
        return None
    watcher.stage("re-calibration: every layer is fitted to the original on the compressed network's own inputs")
    inputs = recalibration_inputs(data, settings.recalibration_samples)
    try:
        fitted = recalibrate(compressed, folded, menus, labeling, inputs, watcher.advance)
    except ExportError as error:
        watcher.note(f"no re-calibration: {error}")
        return None
    search = [data.search()]
    before, after = (measure(folded, each.rounded(), search).kl for each in (compressed, fitted))
    if after < before:
        return fitted
    watcher.note(f"re-calibration is left out: it moved the KL on the search split from {before:.4f} to {after:.4f}")
    return None


def recalibration_inputs(data: Data, samples: int) -> Tensor:
    """The calibration split first, then drawn from the other training samples, never those of the search split.

    Drawn, since folders of images are read class by class.
    """
    calibration = set(data.calibration_indices)
    others = [index for index in trained_on(data) if index not in calibration]
    missing = max(0, samples - len(calibration))
    drawn = np.random.default_rng(0).permutation(others)[:missing].tolist()
    inputs, _ = data.train.load([*data.calibration_indices[:samples], *drawn])
    return inputs
