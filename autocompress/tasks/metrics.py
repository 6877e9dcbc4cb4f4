"""Metrics: how good outputs are, beside labels. Taken batch by batch, so that no outputs are held.

Computed by torchmetrics (extra `metrics`), and mean average precision by pycocotools under it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor

from autocompress.errors import InputError, unknown_name

_BOX = 5  # numbers of a box: x1, y1, x2, y2, class


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: short name, as in files.
        title: name in tables.
        make: function from the number of classes (0: outputs are no classes) to an object with `update(predictions,
            labels)` and `compute()`, as those of torchmetrics are.
        kind: what it compares: `classes`, whole numbers of any shape; `numbers`; `columns`, numbers (N, D) of which
            each column counts by itself; `vectors`, along the last axis; or `boxes`.
        is_share: whether values are in [0, 1] and shown in percent.
        larger_is_better: whether a larger value is better.
    """

    name: str
    title: str
    make: Callable[[int], Any]
    kind: str = "numbers"
    is_share: bool = False
    larger_is_better: bool = True

    def text(self, value: float) -> str:
        """A value as tables show it.

        >>> METRICS["miou"].text(0.5), METRICS["mae"].text(0.25)
        ('50.00 %', '0.2500')
        """
        return f"{100 * value:.2f} %" if self.is_share else f"{value:.4f}"


def _of(path: str, **options: Any) -> Callable[[int], Any]:
    """Makes a metric of torchmetrics, which is imported then."""

    def make(classes: int) -> Any:
        module, _, name = path.rpartition(".")
        kind: Any = getattr(importlib.import_module(f"torchmetrics.{module}"), name)
        return kind(**options, **({"num_classes": classes} if classes else {}))

    return make


METRICS: Mapping[str, Metric] = {
    each.name: each
    for each in (
        Metric(
            "accuracy", "accuracy", _of("classification.MulticlassAccuracy", average="micro"), "classes", is_share=True
        ),
        Metric("f1", "F1, mean over classes", _of("classification.MulticlassF1Score"), "classes", is_share=True),
        Metric("miou", "mean IoU", _of("classification.MulticlassJaccardIndex"), "classes", is_share=True),
        Metric("r2", "R²", _of("regression.R2Score"), "columns"),
        Metric("mae", "mean absolute error", _of("regression.MeanAbsoluteError"), larger_is_better=False),
        Metric("spearman", "Spearman's rank correlation", _of("regression.SpearmanCorrCoef")),
        Metric("cosine", "cosine with the labels", _of("regression.CosineSimilarity", reduction="mean"), "vectors"),
        Metric(
            "map50",
            "mAP at 0.5",
            _of("detection.MeanAveragePrecision", iou_thresholds=[0.5]),
            "boxes",
            is_share=True,
        ),
    )
}
"""Metrics by name."""


def share_interval(share: float, samples: int) -> tuple[float, float]:
    """95 % interval of a share of samples, by Wilson's score.

    >>> [round(end, 4) for end in share_interval(0.5, 100)]
    [0.4038, 0.5962]
    """
    z = float(ndtri(0.975))
    spread, shift = math.sqrt(share * (1 - share) / samples + (z / samples) ** 2 / 4), z * z / (2 * samples)
    low, high = ((share + shift + sign * z * spread) / (1 + 2 * shift) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)  # rounding may put an end a last digit beyond


def missing_package(metrics: Sequence[Metric]) -> str:
    """Name of a package that these metrics need and that is not installed; empty where all are there."""
    needed = ["torchmetrics"] + ["pycocotools"] * any(each.kind == "boxes" for each in metrics)
    return next((name for name in needed if metrics and importlib.util.find_spec(name) is None), "")


def find_metrics(names: Sequence[str | Metric]) -> tuple[Metric, ...]:
    """Metrics by name; metrics that are given stay. Raises InputError for an unknown name."""
    for name in names:
        if isinstance(name, str) and name not in METRICS:
            raise unknown_name("metrics", name, list(METRICS))
    return tuple(METRICS[each] if isinstance(each, str) else each for each in names)


class Meter:
    """Takes metrics over batches.

    Args:
        metrics: the metrics.
        classes: number of classes; 0: predictions are no classes.
    """

    def __init__(self, metrics: Sequence[Metric], classes: int) -> None:
        self._metrics = {each: each.make(classes if each.kind == "classes" else 0) for each in metrics}
        for metric, meter in self._metrics.items():
            if metric.kind == "columns":
                meter.set_dtype(torch.float64)
        self._classes = classes
        self._units: tuple[Tensor, Tensor] | None = None  # of columns

    def update(self, predictions: Any, labels: Tensor) -> None:
        """Add a batch.

        Args:
            predictions: classes, numbers or vectors of the labels' shape; or a list with a dict of `boxes` (B, 4),
                `scores` (B,) and `labels` (B,) for every sample.
            labels: (n, …) labels; of boxes (n, B, 5) corners and class, filled up with classes below 0.

        Raises:
            InputError: labels have another shape than predictions.
        """
        for metric, meter in self._metrics.items():
            if metric.kind == "boxes":
                meter.update(predictions, [_boxes(each) for each in labels])
                continue
            given = _in_shape(predictions, labels)
            if metric.kind == "classes":
                known = (labels >= 0) & (labels < self._classes)
                meter.update(given[known], labels[known])
            elif metric.kind == "vectors":
                meter.update(*(each.float().reshape(-1, each.shape[-1]) for each in (given, labels)))
            elif metric.kind == "columns":
                meter.update(*self._in_units(given, labels))
            else:
                meter.update(*(each.float().reshape(-1) for each in (given, labels)))

    def _in_units(self, given: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both as (n, D) columns, or one, in units of the first labels: torchmetrics takes small numbers for 0."""
        width = labels.shape[1] if labels.ndim == 2 else 1
        both = [each.double().reshape(-1, width) for each in (given, labels)]
        if self._units is None:
            spread = both[1].std(0, correction=0)
            self._units = both[1].mean(0), torch.where(spread > 0, spread, torch.ones_like(spread))
        first, second = ((each - self._units[0]) / self._units[1] for each in both)
        return (first, second) if width > 1 else (first[:, 0], second[:, 0])

    def values(self) -> dict[str, float]:
        """Values by name."""
        return {metric.name: _value(meter.compute()) for metric, meter in self._metrics.items()}


def _value(found: Any) -> float:
    return float(found["map_50"] if isinstance(found, Mapping) else found)


def _in_shape(predictions: Tensor, labels: Tensor) -> Tensor:
    """Predictions in the shape of the labels: axes of length 1 may be missing on one side."""
    check_shape(predictions, labels)
    return predictions.reshape(labels.shape)


def check_shape(predictions: Tensor, labels: Tensor) -> None:
    """Raise InputError where labels (N, …) have not the shape of predictions (N, …), axes of length 1 aside."""
    short, wanted = ([size for size in each.shape[1:] if size != 1] for each in (predictions, labels))
    if short != wanted:
        raise InputError(f"`data` must hold labels of the outputs' shape {_shape(predictions)}, got {_shape(labels)}.")


def _shape(of: Tensor) -> str:
    """Shape of any number of samples, such as (N, 3)."""
    return f"({', '.join(['N', *map(str, of.shape[1:])])})"


def _boxes(label: Tensor) -> dict[str, Tensor]:
    """Boxes of one sample from (B, 5) numbers; rows of a class below 0 are none."""
    if label.ndim != 2 or label.shape[1] != _BOX:
        raise InputError(f"`data` must hold boxes (N, B, {_BOX}), got labels of shape (N, {tuple(label.shape)}).")
    real = label[label[:, 4] >= 0]
    return {"boxes": real[:, :4].float(), "labels": real[:, 4].to(torch.int64)}
