"""Fine-tuning: the compressed network learns from the original, with its rounding and its zeros in the loop."""

from __future__ import annotations

import copy
import io
import math
import pickle
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.data import Data
from autocompress.data.training import Augmentation, Blend, TrainingBatches, trained_on
from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed
from autocompress.execute.distillation import FeatureTap, Objective, features_loss, matched_layers
from autocompress.execute.rounding_aware import finished, rounding_aware, unrounded
from autocompress.files import write_atomically

_WARM_UP = 0.05  # share of all steps
_SAVE_SECONDS = 60.0
_NUMBERS = ("_step", "_best_step", "_seconds", "_best_loss", "_best_accuracy", "_recent")  # of a run, in checkpoints
_PARTS = {"model", "optimizer", "scheduler", "best", "numbers", "made_for"}  # of a checkpoint
_DAMAGE = "`resume` must find a whole checkpoint, got {}, which is damaged; remove that file to start anew."
# What torch.load raises on truncated and overwritten files.
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, struct.error)
_STEP_RATE = 0.1  # of quantization steps, beside weights: at the weights' own rate, 2-bit networks were undone
_HALF = 0.5  # above it, the other sample would be the first
_SMALLEST_SIZE = 1e-3  # of a tensor, for its learning rate


Method = Literal["standard", "weak", "strong"]


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning.

    Attributes:
        epochs: over the training data without the search split; fractions are fine; > 0.
        learning_rate: of Adam at its peak, relative to each tensor's root mean square: 0.005 changes a typical weight
            by half a percent a step.
        batch_size: at least 1.
        labels: who labels the samples for the hard part of the loss: the data or the original (`teacher`).
        objective: the loss.
        augmentation: see `TrainingBatches`.
        mixup: largest share of another sample that is blended into each, in [0, 0.5]. The original answers for what
            it was never trained on, so it is learned from also where it knows all its training samples by heart
            (Beyer et al. 2022).
        clip: largest norm of the gradient.
        seed: of the order and the augmentation; at least 0.
        method: how the original teaches. `standard`: on all training samples, from the weights that were fitted to
            it; `weak`: on the calibration split alone; `strong`: on all, from the original's own kept weights.

    Raises:
        InputError: a value is out of range.
    """

    epochs: float = 2.0
    learning_rate: float = 5e-3
    batch_size: int = 128
    labels: Literal["data", "teacher"] = "data"
    objective: Objective = field(default_factory=Objective)
    augmentation: Augmentation = "shift"
    mixup: float = 0.0
    clip: float = 1.0
    seed: int = 0
    method: Method = "standard"

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if self.batch_size < 1:
            raise InputError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if not 0 <= self.mixup <= _HALF:
            raise InputError(f"`mixup` must be from 0 to {_HALF}, got {self.mixup}.")
        if self.seed < 0:
            raise InputError(f"`seed` must be at least 0, got {self.seed}.")


@dataclass(frozen=True)
class TuningStep:
    """How fine-tuning stands.

    Attributes:
        step: done so far; total: in all.
        loss: mean over the last steps.
        search_loss: the best on the search split so far.
        search_accuracy: there, in [0, 1]; NaN without labels.
        seconds_left: estimated.
    """

    step: int
    total: int
    loss: float
    search_loss: float
    search_accuracy: float
    seconds_left: float


@dataclass(frozen=True, eq=False)
class Tuned:
    """What fine-tuning gives.

    Attributes:
        compressed: the best network that was seen, judged by the loss on the search split; never worse there than
            the one that was given.
        steps: done.
        seconds: taken.
        diverged: whether it stopped early because the loss was no longer finite.
        best_step: at which the best was seen; 0: fine-tuning improved nothing, `compressed` is what was given.
        unrounded: by layer, the best network's (weight, bias) before they were rounded.
    """

    compressed: Compressed
    steps: int
    seconds: float
    diverged: bool
    best_step: int
    unrounded: Mapping[str, tuple[Tensor, Tensor | None]]


def finetune(
    compressed: Compressed,
    teacher: nn.Module,
    data: Data,
    settings: FineTuning,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kept_weights: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[TuningStep], None] | None = None,
) -> Tuned:
    """Fine-tune and return the best network by the search split.

    Args:
        compressed: what to begin with; it is not changed.
        teacher: the original; it is not changed.
        data: the training data without the search split is trained on, the search split judges.
        settings: see there.
        device: where to run.
        dtype: of the forward passes (autocast); weights, gradients and the loss stay float32.
        kept_weights: of the original by layer, in the compressed network's shapes; the method `strong` begins there.
        checkpoint: a file to continue from, where it exists and fits, and to save to every minute.
        progress: told every second or so, and after every judgement.

    Raises:
        InputError: the loss asks for labels that the data does not have or for matched layers that there are none of,
            the method `strong` has no kept weights, or the checkpoint is damaged or another fine-tuning's.
    """
    if settings.method == "strong" and kept_weights is None:
        raise InputError("`kept_weights` must be given with the method strong, got none.")
    start = kept_weights if settings.method == "strong" else None
    return _Run(compressed, start, teacher, data, settings, torch.device(device), dtype, checkpoint, progress).finish()


class _Run:
    """One fine-tuning under way."""

    def __init__(
        self,
        compressed: Compressed,
        start: Mapping[str, Tensor] | None,
        teacher: nn.Module,
        data: Data,
        settings: FineTuning,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Path | None,
        progress: Callable[[TuningStep], None] | None,
    ) -> None:
        self._compressed, self._start, self._settings = compressed, start, settings
        self._device, self._dtype, self._checkpoint = device, dtype, checkpoint
        self._progress = progress or (lambda step: None)
        self._model = _on(rounding_aware(compressed), device)
        self._teacher = _on(copy.deepcopy(teacher).eval().requires_grad_(False), device)
        indices = data.calibration_indices if settings.method == "weak" else trained_on(data)
        self._batches = TrainingBatches(data, indices, settings.batch_size, settings.augmentation, settings.seed)
        self._total = max(1, round(settings.epochs * self._batches.steps_per_epoch))
        self._optimizer = torch.optim.Adam(_parameter_groups(self._model, settings.learning_rate))
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        names = _matched(compressed, teacher, settings.objective)
        self._taps = FeatureTap(self._teacher, names), FeatureTap(self._model, names)
        self._search = data.search()  # once: the data is not asked for it while a thread prepares batches
        if settings.objective.hard and settings.labels == "data" and self._search[1] is None:
            raise InputError("`hard_weight` needs labelled data, got none; pass --labels teacher or --hard-weight 0.")
        self._made_for = repr((settings, self._total, compressed.plan, data.fingerprint))
        self._step, self._best_step, self._seconds = 0, 0, 0.0
        self._best: dict[str, Tensor] = {}
        self._best_loss, self._best_accuracy, self._recent = math.inf, math.nan, math.nan

    def finish(self) -> Tuned:
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
        if self._start is not None:
            self._model.load_state_dict(rounding_aware(self._compressed, self._start).state_dict())

    def _train(self) -> bool:
        """Run to the end; True where the loss ceased to be finite."""
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

    def _update(self, inputs: Tensor, labels: Tensor | None) -> float:
        loss = self._loss(inputs, labels, self._blend(len(inputs)))
        if torch.isfinite(loss):
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip)
            self._optimizer.step()
            self._scheduler.step()
        return float(loss.detach())

    def _blend(self, count: int) -> Blend | None:
        """How the step's samples are blended."""
        if not self._settings.mixup:
            return None
        return Blend.drawn(count, self._settings.mixup, self._settings.seed * 1_000_003 + self._step)

    def _loss(self, inputs: Tensor, labels: Tensor | None, blend: Blend | None) -> Tensor:
        inputs = _in_format(inputs if blend is None else blend(inputs), self._device)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            with torch.no_grad():
                wanted = self._teacher(inputs).flatten(1)
            outputs = self._model(inputs).flatten(1)
        return self._distance(outputs.float(), wanted.float(), labels, blend) + self._penalty()

    def _distance(self, outputs: Tensor, wanted: Tensor, labels: Tensor | None, blend: Blend | None = None) -> Tensor:
        """Mean over the samples that both networks saw last."""
        objective = self._settings.objective
        if self._settings.labels == "teacher":
            labels = wanted.argmax(1)
        elif labels is not None:
            labels = labels.to(self._device)
            labels = labels if blend is None else blend(F.one_hot(labels, outputs.shape[1]).float())
        loss = objective.predictions_loss(outputs, wanted, labels)
        if self._taps[0].outputs:
            loss = loss + objective.features * features_loss(self._taps[1].outputs, self._taps[0].outputs)
        return loss

    def _penalty(self) -> Tensor | float:
        """Of the weights' magnitudes."""
        if not self._settings.objective.l1:
            return 0.0
        modules: list[Any] = [self._model.get_submodule(name) for name in self._compressed.layers]
        return self._settings.objective.l1 * torch.stack([module.weight.abs().sum() for module in modules]).sum()

    @torch.no_grad()
    def _judge(self) -> float:
        """The whole loss on the search split; the network is kept where none was better."""
        inputs, labels = self._search
        total, right = 0.0, 0
        for start in range(0, len(inputs), self._settings.batch_size):
            batch = _in_format(inputs[start : start + self._settings.batch_size], self._device)
            expected = None if labels is None else labels[start : start + len(batch)]
            outputs, wanted = (model(batch).flatten(1).float() for model in (self._model, self._teacher))
            total += len(batch) * float(self._distance(outputs, wanted, expected))
            right += 0 if expected is None else int((outputs.argmax(1).cpu() == expected).sum())
        loss = total / len(inputs) + float(self._penalty())
        if loss < self._best_loss:
            self._best_loss, self._best_step = loss, self._step
            self._best_accuracy = math.nan if labels is None else right / len(inputs)
            self._best = copy.deepcopy(self._model.state_dict())
        return loss

    def _rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine."""
        warm_up = max(1, int(_WARM_UP * self._total))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self._total - warm_up)))

    def _tell(self) -> None:
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
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(self._checkpoint, content.getvalue())

    def _load(self) -> None:
        if self._checkpoint is None or not self._checkpoint.is_file():
            return
        state = _read(self._checkpoint, self._device)
        if state["made_for"] != self._made_for:
            raise InputError(
                f"`resume` must continue a fine-tuning with the same settings, plan and data, got others in "
                f"{self._checkpoint}; remove that file to start anew."
            )
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.last_epoch = state["scheduler"]["last_epoch"]
        self._best = state["best"]
        for name, value in zip(_NUMBERS, state["numbers"], strict=True):
            setattr(self, name, value)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except _DAMAGED as error:
        raise InputError(_DAMAGE.format(path)) from error
    if not isinstance(state, dict) or state.keys() != _PARTS:
        raise InputError(_DAMAGE.format(path))
    return state


def _matched(compressed: Compressed, teacher: nn.Module, objective: Objective) -> list[str]:
    """The layers whose outputs the loss compares."""
    if not objective.features:
        return []
    names = matched_layers(teacher, compressed.model, list(compressed.layers))
    if not names and not objective.soft + objective.hard:
        raise InputError(
            "`features_weight` alone needs a layer that kept all its channels, got none; pass --soft-weight 1."
        )
    return names


def _parameter_groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """One group a tensor, its rate in proportion to its size, as networks differ in the scale of their folded weights.

    A bias learns at its weight's rate; its own size would make it several times faster.
    """
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups = []
    for name, tensor in trained.items():
        weight = name.removesuffix("bias") + "parametrizations.weight.original"
        sized = trained.get(weight, tensor) if name.endswith("bias") else tensor
        relative = rate * (_STEP_RATE if name.endswith(".step") else 1.0)
        groups.append({"params": [tensor], "lr": relative * max(float(_root_mean_square(sized)), _SMALLEST_SIZE)})
    return groups


def _root_mean_square(tensor: Tensor) -> Tensor:
    return tensor.detach().float().square().mean().sqrt()


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    moved: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _in_format(inputs: Tensor, device: torch.device) -> Tensor:
    inputs = inputs.to(device)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
