"""Fine-tuning: the compressed network learns from the original, with its rounding and its zeros in the loop.

A step takes a batch, runs the original and the rounding-aware copy (`rounding_aware.py`) on it, and takes one step of
Adam on their distance (`distillation.py`). After every epoch the loss is taken on the search split, that of outputs
without that of inner layers, and the best network so far is kept, the one that was given among them: fine-tuning never
gives a worse one there.

    for each batch:  loss = distance(model(x), teacher(x), labels) + l1 · Σ |weight|;  backward;  clip;  Adam step
    after an epoch:  loss on the search split < best so far?  keep a copy

The state is saved every minute (`checkpoint.py`), and a fine-tuning that was interrupted ends with the same bits:
batches, augmentation and mixup of a step depend on the seed and the step's number alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.data import Data
from autocompress.data.training import Blend, TrainingBatches, trained_on
from autocompress.errors import InputError
from autocompress.evaluation import torch_device
from autocompress.evaluation.number_format import channels_last
from autocompress.execute.checkpoint import read_checkpoint, write_checkpoint
from autocompress.execute.compressed import Compressed
from autocompress.execute.distillation import FeatureTap, Objective, features_loss, matched_layers
from autocompress.execute.learning_rates import parameter_groups, rate_at
from autocompress.execute.rounding_aware import finished, rounding_aware, unrounded
from autocompress.execute.tuning import FineTuning, KeptParts, Tuned, TuningStep, batch_size_for, features_for
from autocompress.samples import Inputs, call, images_channels_last

_SAVE_SECONDS = 60.0  # between two checkpoints
_NUMBERS = ("_step", "_best_step", "_seconds", "_best_loss", "_best_accuracy", "_recent")  # fields in checkpoints


def finetune(
    compressed: Compressed,
    teacher: nn.Module,
    data: Data,
    settings: FineTuning,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kept: KeptParts | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[TuningStep], None] | None = None,
) -> Tuned:
    """Fine-tune and return the best network by the search split.

    Args:
        compressed: network to begin with; it is not changed.
        teacher: original network; it is not changed.
        data: data whose training samples without the search split are trained on, and whose search split judges.
        settings: settings of the fine-tuning.
        device: device that both networks run on, such as `cpu` or `cuda:0`; `auto`: CUDA where there is one.
        dtype: floating-point type of the forward passes (autocast); weights, gradients and the loss stay float32. In
            place of float16, another is taken (`trainable`).
        kept: what the compressed network kept of the original; needed for the method `strong`, which begins with its
            weights, and to match layer outputs.
        checkpoint: file that is saved to every minute, and continued from where it exists; None: nothing is saved.
        progress: function that is called about once a second, and after every loss on the search split; None: nothing
            is told.

    Raises:
        InputError: the loss asks for labels that the data does not have or for matched layers that there are none of,
            `kept` is missing, the device's memory is too small for a step, or the checkpoint is damaged or another
            fine-tuning's.
    """
    if kept is None and (settings.method == "strong" or settings.objective.features):
        raise InputError("`kept` must be given with the method strong and to match layer outputs, got none.")
    if settings.objective.features is None:
        weight = features_for(len(_indices(data, settings))) if kept is not None else 0.0
        settings = replace(settings, objective=replace(settings.objective, features=weight))
    there = torch_device(device)
    chosen = trainable(dtype, there)
    try:
        return _Run(compressed, kept, teacher, data, settings, there, chosen, checkpoint, progress).finish()
    except torch.OutOfMemoryError as error:  # a smaller batch would be another training, so the user has to choose
        size = settings.batch_size or batch_size_for(len(_indices(data, settings)))
        smaller = max(1, size // 2)
        raise InputError(
            f"`batch_size` of fine-tuning must fit into the memory of {there}, got {size}; "
            f"pass --batch-size {smaller} or --device cpu."
        ) from error


def _indices(data: Data, settings: FineTuning) -> Sequence[int]:
    """Indices of the samples that are trained on."""
    return data.calibration_indices if settings.method == "weak" else trained_on(data)


def trainable(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which forward passes are run that gradients come back through.

    float16 begins at 6e-8, where many gradients lie, so they would be 0. bfloat16 has float32's range and takes its
    place, or float32 where the device has no bfloat16.

    >>> trainable(torch.float16, torch.device("cpu"))
    torch.bfloat16

    Args:
        dtype: dtype of evaluations.
        device: device that is trained on.
    """
    if dtype == torch.float32 or (
        device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return torch.float32
    return torch.bfloat16


class _Run:
    """One fine-tuning under way."""

    def __init__(
        self,
        compressed: Compressed,
        kept: KeptParts | None,
        teacher: nn.Module,
        data: Data,
        settings: FineTuning,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Path | None,
        progress: Callable[[TuningStep], None] | None,
    ) -> None:
        self._compressed, self._settings = compressed, settings
        self._start = kept.weights if kept is not None and settings.method == "strong" else None
        self._device, self._dtype, self._checkpoint = device, dtype, checkpoint
        self._progress = progress or (lambda step: None)
        self._model = _on(rounding_aware(compressed), device)
        self._teacher = _on(copy.deepcopy(teacher).eval().requires_grad_(False), device)
        indices = _indices(data, settings)
        self._batch_size = settings.batch_size or batch_size_for(len(indices))
        self._batches = TrainingBatches(data, indices, self._batch_size, settings.augmentation, settings.seed)
        self._total = max(1, round(settings.epochs * self._batches.steps_per_epoch))
        self._optimizer = torch.optim.Adam(parameter_groups(self._model, settings.learning_rate))
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: rate_at(step, self._total))
        matched = _matched(compressed, teacher, settings.objective, kept)
        self._taps = FeatureTap(self._teacher, matched), FeatureTap(self._model, dict.fromkeys(matched))
        self._search = data.search()  # once: the data is not asked for it while a thread prepares batches
        if settings.objective.hard and settings.labels == "data" and self._search[1] is None:
            raise InputError("`hard_weight` needs labelled data, got none; pass --labels teacher or --hard-weight 0.")
        self._made_for = repr((settings, self._total, compressed.plan, data.fingerprint))
        self._step, self._best_step, self._seconds = 0, 0, 0.0
        self._best: dict[str, Tensor] = {}
        self._best_loss, self._best_accuracy, self._recent = math.inf, math.nan, math.nan

    def finish(self) -> Tuned:
        """Run to the end, from a checkpoint where there is one."""
        self._load()
        with self._taps[0], self._taps[1]:
            if not self._best:
                self._judge()  # what was given: nothing worse is handed back
                self._begin()
            diverged = self._train()
        self._model.load_state_dict(self._best)
        model = self._model.cpu()
        compressed, floats = finished(model, self._compressed), unrounded(model, self._compressed)
        return Tuned(compressed, self._step, self._seconds, diverged, self._best_step, floats)

    def _begin(self) -> None:
        """Take the weights that training begins with, where they are not those that were given."""
        if self._start is not None:
            self._model.load_state_dict(rounding_aware(self._compressed, self._start).state_dict())

    def _train(self) -> bool:
        """Take all steps that are left. Returns whether the loss ceased to be finite, which ends it."""
        started, before, saved, told = time.monotonic(), self._seconds, time.monotonic(), 0.0
        for inputs, labels in self._batches.steps(self._step, self._total):
            loss = self._update(inputs, labels)
            if not math.isfinite(loss):
                return True
            self._step += 1
            self._seconds = before + time.monotonic() - started
            self._recent = loss if math.isnan(self._recent) else 0.95 * self._recent + 0.05 * loss
            judged = self._step % self._batches.steps_per_epoch == 0 or self._step == self._total
            if judged and not math.isfinite(self._judge()):
                return True
            if time.monotonic() - saved > _SAVE_SECONDS:
                saved = time.monotonic()
                self._save()
            if judged or time.monotonic() - told > 1:
                told = time.monotonic()
                self._tell()
        return False

    def _update(self, inputs: Inputs, labels: Tensor | None) -> float:
        """Take one step of the optimizer, unless the loss is not finite. Returns the loss."""
        loss = self._loss(inputs, labels, self._blend(len(inputs)))
        if torch.isfinite(loss):
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip)
            self._optimizer.step()
            self._scheduler.step()
        return float(loss.detach())

    def _blend(self, count: int) -> Blend | None:
        """The blend of the step's `count` samples, which depends on the seed and the step alone; None: no mixup."""
        if not self._settings.mixup:
            return None
        return Blend.drawn(count, self._settings.mixup, self._settings.seed * 1_000_003 + self._step)

    def _loss(self, inputs: Inputs, labels: Tensor | None, blend: Blend | None) -> Tensor:
        """The loss of a batch: inputs (n, …), labels (n,) or None."""
        inputs = _in_format(inputs if blend is None else blend.of_inputs(inputs), self._device)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            with torch.no_grad():
                wanted = call(self._teacher, inputs)
            outputs = call(self._model, inputs)
        return self._distance(outputs.float(), wanted.float(), labels, blend) + self._mismatch() + self._penalty()

    def _distance(self, outputs: Tensor, wanted: Tensor, labels: Tensor | None, blend: Blend | None = None) -> Tensor:
        """The loss's parts `soft` and `hard`, the mean over n samples; outputs (n, …, K)."""
        objective = self._settings.objective
        if self._settings.labels == "teacher":
            labels = wanted.argmax(-1)
        elif labels is not None:
            labels = labels.to(self._device)
            labels = labels if blend is None else blend(F.one_hot(labels, outputs.shape[1]).float())
        return objective.predictions_loss(outputs, wanted, labels)

    def _mismatch(self) -> Tensor | float:
        """The loss's part `features`, of the samples that both networks ran last."""
        if not self._taps[0].outputs:
            return 0.0
        return (self._settings.objective.features or 0.0) * features_loss(
            *(tap.outputs for tap in reversed(self._taps))
        )

    def _penalty(self) -> Tensor | float:
        """The loss's part `l1`: the sum of the weights' magnitudes, times its weight."""
        if not self._settings.objective.l1:
            return 0.0
        modules: list[Any] = [self._model.get_submodule(name) for name in self._compressed.layers]
        return self._settings.objective.l1 * torch.stack([module.weight.abs().sum() for module in modules]).sum()

    @torch.no_grad()
    def _judge(self) -> float:
        """The loss on the search split; a copy of the network is kept where no other had a lower one.

        Matched layers are a means: they count only where nothing else does.
        """
        inputs, labels = self._search
        total, right, objective = 0.0, 0, self._settings.objective
        of_outputs = objective.soft + objective.hard > 0
        for start in range(0, len(inputs), self._batch_size):
            batch = _in_format(inputs[start : start + self._batch_size], self._device)
            expected = None if labels is None else labels[start : start + len(batch)]
            outputs, wanted = (call(model, batch).float() for model in (self._model, self._teacher))
            loss = self._distance(outputs, wanted, expected) if of_outputs else self._mismatch()
            total += len(batch) * float(loss)
            right += 0 if expected is None else int((outputs.argmax(1).cpu() == expected).sum())
        loss = total / len(inputs) + float(self._penalty())
        if loss < self._best_loss:
            self._best_loss, self._best_step = loss, self._step
            self._best_accuracy = math.nan if labels is None else right / len(inputs)
            self._best = copy.deepcopy(self._model.state_dict())
        return loss

    def _tell(self) -> None:
        """Tell how far it is; the time left is that of the steps done, a step."""
        left = (self._total - self._step) * self._seconds / max(1, self._step)
        self._progress(TuningStep(self._step, self._total, self._recent, self._best_loss, self._best_accuracy, left))

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        state = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": {"last_epoch": self._scheduler.last_epoch},
            "best": self._best,
            "numbers": [getattr(self, name) for name in _NUMBERS],
            "made_for": self._made_for,
        }
        write_checkpoint(self._checkpoint, state)

    def _load(self) -> None:
        if self._checkpoint is None or not self._checkpoint.is_file():
            return
        own = self._model.state_dict()
        state = read_checkpoint(self._checkpoint, self._device, self._made_for, own, self._optimizer)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.last_epoch = state["scheduler"]["last_epoch"]
        self._best = state["best"]
        for name, value in zip(_NUMBERS, state["numbers"], strict=True):
            setattr(self, name, value)


def _matched(
    compressed: Compressed, teacher: nn.Module, objective: Objective, kept: KeptParts | None
) -> dict[str, Tensor]:
    """The channels that the loss compares, by layer (`matched_layers`); none where `features` is 0."""
    if not objective.features or kept is None:
        return {}
    whole = {name: kept.channels[name] for name in compressed.layers if name in kept.channels}  # no factors of low rank
    matched = matched_layers(teacher, whole)
    if not matched and not objective.soft + objective.hard:
        raise InputError("`features_weight` alone needs layers before the last one, got none; pass --soft-weight 1.")
    return matched


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, moved to a device, channels last."""
    return channels_last(model.to(device))


def _in_format(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs (n, …) on a device, images channels last."""
    return images_channels_last(inputs.to(device))
