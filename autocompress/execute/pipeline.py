"""From a plan to the finished network: the menus' weights, renormalized, re-calibrated, fine-tuned.

The last two steps are judged on the search split, which no weight is fitted to, and are left out where they do not
help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.data import Data
from autocompress.data.sources import View
from autocompress.data.training import trained_on
from autocompress.errors import ExportError
from autocompress.evaluation import DTYPES, torch_device
from autocompress.evaluation.measure import compare
from autocompress.evaluation.number_format import in_format, outputs_within, prepared
from autocompress.evaluation.renormalize import Renormalizer, renormalizing_samples
from autocompress.evaluation.stitch import in_layer_shape, kept_rows, resolve, rows_left
from autocompress.execute.compressed import Compressed, from_menus, renormalized, with_layers_of
from autocompress.execute.finetune import finetune
from autocompress.execute.recalibrate import recalibrate
from autocompress.execute.tuning import FineTuning, KeptParts, Tuned, TuningStep
from autocompress.memory import give_back
from autocompress.menus.menus import Menus
from autocompress.network.structure import EMBEDDING
from autocompress.progress import Progress
from autocompress.samples import Inputs
from autocompress_envs.problem import Labeling

Renormalize = Callable[[Compressed, Collection[str]], Compressed]
"""From a network and the names of the layers that keep their weights to the same network, renormalized."""

Divergence = Callable[[Compressed], float]
"""From a network to its KL divergence from the original in nats."""

_PARTS = 5  # of the layers; re-calibration may end after each


@dataclass(frozen=True)
class Execution:
    """Settings of an execution.

    Attributes:
        recalibration_samples: number of training samples that the layers are fitted to anew, at least 0; with 0 the
            menus' weights are renormalized alone.
        tuning: settings of the fine-tuning; None: there is none.
        device: device that networks run on where they are re-calibrated, fine-tuned and compared, such as `cpu` or
            `cuda:0`.
        dtype: floating-point type of the forward passes in which networks are fine-tuned and compared, a name in
            `DTYPES`; they are compared in float32 in the place of float16.
        checkpoint: file that fine-tuning saves to and continues from; None: it saves nothing.
        memory: most bytes that the process may hold in all, which bounds how many samples run together; None: what it
            holds now and 70 % of what is available.
    """

    recalibration_samples: int
    tuning: FineTuning | None
    device: str = "cpu"
    dtype: str = "float32"
    checkpoint: Path | None = None
    memory: int | None = None


@dataclass(frozen=True, eq=False)
class Executed:
    """The result of an execution.

    Attributes:
        compressed: finished network.
        recalibrated: whether re-calibration brought the network closer to the original on the search split, so that
            its weights were taken, of all layers or of the first ones.
        tuned: result of the fine-tuning; None: there was none.
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
    search_outputs: Callable[[], Tensor] | None = None,
) -> Executed:
    """Make a plan real: the menus' weights, renormalized, re-calibrated and fine-tuned.

    Args:
        menus: menus of the network.
        labeling: plan, as positions on the menus.
        folded: network that the menus were made from, with its norms folded; it is not changed.
        teacher: original network, which fine-tuning learns from; it is not changed.
        data: data whose calibration split and further training samples fit the weights, and whose search split judges
            them.
        settings: settings of both steps.
        watcher: observer that is told of every stage, of progress and of what the user has to know.
        search_outputs: function that gives the (N, classes) logits or (N, P, K) rows of the original on the search
            split, float32; None: the teacher is run.
    """
    plain, renormalize = from_menus(menus, labeling, folded), _renormalizing(menus, labeling, folded, data, settings)
    compressed = renormalize(plain, ())
    fitted = _recalibrated(plain, menus, labeling, folded, data, settings, watcher)
    if fitted is not None:
        reference = None if search_outputs is None else search_outputs()
        divergence = _divergence(menus, teacher, reference, data, settings)
        fitted = _judged(plain, compressed, fitted, renormalize, divergence, watcher)
    current, tuned = fitted or compressed, None
    if settings.tuning is not None:
        watcher.stage(f"fine-tuning: {settings.tuning.epochs:g} epochs, learning from the original")
        kept = kept_parts(menus, labeling)
        tuned = tune(current, teacher, data, settings, settings.tuning, kept, watcher)
        current = tuned.compressed
    return Executed(current, fitted is not None, tuned)


def tune(
    compressed: Compressed,
    teacher: nn.Module,
    data: Data,
    settings: Execution,
    tuning: FineTuning,
    kept: KeptParts,
    watcher: Progress,
) -> Tuned:
    """Fine-tune, and tell the user where that diverged or improved nothing.

    Args:
        compressed: network to begin with; it is not changed.
        teacher: original network; it is not changed.
        data: data that is trained on, and whose search split judges.
        settings: device, dtype and checkpoint of the fine-tuning.
        tuning: settings of the fine-tuning.
        kept: what the compressed network kept of the original (`kept_parts`).
        watcher: observer that is told of every step and of what the user has to know.
    """
    tuned = finetune(
        compressed,
        teacher,
        data,
        tuning,
        device=settings.device,
        dtype=DTYPES[settings.dtype],
        kept=kept,
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


def kept_parts(menus: Menus, labeling: Labeling) -> KeptParts:
    """What the network of a plan keeps of the original.

    Args:
        menus: menus of the network.
        labeling: plan, as positions on the menus.
    """
    weights = {}
    for layer, choice in zip(menus.network.layers, resolve(menus, labeling), strict=True):
        rows, columns = kept_rows(menus, layer, choice), menus.kept_columns(layer, choice.reads)
        weight = menus.sources[layer.name].weight[rows][:, columns]
        weights[layer.name] = in_layer_shape(weight.float(), layer)
    tables = {layer.name: torch.arange(layer.width) for layer in menus.network.layers if layer.kind == EMBEDDING}
    return KeptParts(weights, rows_left(menus, labeling) | tables)


def _told(watcher: Progress) -> Callable[[TuningStep], None]:
    """A function that tells the watcher of a step."""
    return lambda step: watcher.tuning(step.step, step.total, step.loss, step.search_accuracy, step.seconds_left)


def _renormalizing(menus: Menus, labeling: Labeling, folded: nn.Module, data: Data, settings: Execution) -> Renormalize:
    """A function that renormalizes the network of a plan on the calibration split."""
    inputs, _ = data.train.load(data.calibration_indices[: renormalizing_samples(menus.network)])
    renormalizer = Renormalizer(folded, menus.network, inputs, torch_device(settings.device))
    rows = rows_left(menus, labeling)
    return lambda compressed, keeping: renormalized(compressed, renormalizer, rows, keeping)


def _recalibrated(
    plain: Compressed,
    menus: Menus,
    labeling: Labeling,
    folded: nn.Module,
    data: Data,
    settings: Execution,
    watcher: Progress,
) -> Compressed | None:
    """The network with the menus' weights, re-calibrated; None where that is not wanted, or not possible."""
    if settings.recalibration_samples == 0:
        return None
    watcher.stage("re-calibration: every layer is fitted to the original on the compressed network's own inputs")
    samples, device = recalibration_inputs(data, settings.recalibration_samples), torch_device(settings.device)
    try:
        return recalibrate(
            plain, folded, menus, labeling, samples, watcher.advance, device=device, memory=settings.memory
        )
    except ExportError as error:
        watcher.note(f"no re-calibration: {error}")
        return None


def _divergence(
    menus: Menus, teacher: nn.Module, reference: Tensor | None, data: Data, settings: Execution
) -> Divergence:
    """A function that measures how far a network is from the original on the search split.

    `reference` holds the original's outputs there; None: the teacher is run.
    """
    inputs, _ = data.search()
    device = torch_device(settings.device)

    def outputs(model: nn.Module, given: Inputs) -> Tensor:
        return outputs_within(model, given, menus.network, device, settings.memory)

    wanted = outputs(teacher, inputs) if reference is None else reference
    dtype = "float32" if settings.dtype == "float16" else settings.dtype  # whose range a network may leave
    there = in_format(inputs, device, DTYPES[dtype])

    def divergence(candidate: Compressed) -> float:
        model = prepared(candidate.rounded(), dtype, device)
        return compare(wanted, outputs(model, there), None).kl

    return divergence


def _judged(
    plain: Compressed,
    compressed: Compressed,
    fitted: Compressed,
    renormalize: Renormalize,
    divergence: Divergence,
    watcher: Progress,
) -> Compressed | None:
    """The network with as many re-calibrated layers, from the first on, as bring it closest; None where none do.

    All layers are tried first, then fewer and fewer until that helps no more. `plain` has the menus' weights as they
    are, `compressed` is the same renormalized.
    """
    best, count, losses = compressed, 0, []
    before = least = divergence(compressed)
    for tried in _counts(len(fitted.layers)):
        candidate = _first_layers(plain, fitted, tried, renormalize)
        losses.append(divergence(candidate))
        give_back()
        if losses[-1] < least:
            best, count, least = candidate, tried, losses[-1]
        elif count:
            break
    whole = losses[0]
    if count == 0:
        watcher.note(
            f"re-calibration is left out: it moved the KL on the search split from {before:.4f} to {whole:.4f}"
        )
        return None
    if count < len(fitted.layers):
        watcher.note(
            f"re-calibration keeps the first {count} of {len(fitted.layers)} layers: KL {least:.4f} on the search "
            f"split, before {before:.4f}, with all layers {whole:.4f}"
        )
    return best


def _counts(layers: int) -> list[int]:
    """Numbers of layers, from the first on, whose new weights are tried.

    >>> _counts(50), _counts(3)
    ([50, 40, 30, 20, 10], [3, 2, 1])
    """
    return sorted({max(1, round(layers * part / _PARTS)) for part in range(1, _PARTS + 1)}, reverse=True)


def _first_layers(plain: Compressed, fitted: Compressed, count: int, renormalize: Renormalize) -> Compressed:
    """The network with the new weights of its first layers, and those behind them renormalized.

    The last layers see few positions, all of one image alike: what is fitted there holds for fewer samples than it
    seems, and a network may be closer without it.
    """
    first = list(fitted.layers)[:count]
    return renormalize(with_layers_of(plain, {name: fitted.layers[name] for name in first}), first)


def recalibration_inputs(data: Data, samples: int) -> View:
    """n samples for re-calibration: the calibration split first, then other training samples.

    The others are drawn, since folders of images are read class by class. None is of the search split.

    Args:
        data: data whose training samples are taken.
        samples: number of samples, n; fewer where the training data has fewer.
    """
    calibration = set(data.calibration_indices)
    others = [index for index in trained_on(data) if index not in calibration]
    missing = max(0, samples - len(calibration))
    drawn = np.random.default_rng(0).permutation(others)[:missing].tolist()
    return View(data.train, [*data.calibration_indices[:samples], *drawn])
