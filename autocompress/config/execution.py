"""Options of execution: what is done to a plan's network after the search."""

from __future__ import annotations

from typing import ClassVar, Literal

from autocompress.config.part import Part, option


class ExecutionOptions(Part):
    """How a plan is made real: re-calibration, fine-tuning, stages."""

    TITLE: ClassVar[str] = "Execution"

    recalibration_samples: int = option(
        1024, "Training samples, used without labels, for fitting the finished plan's layers again; 0: none.", ge=0
    )
    finetune: float = option(0.0, "Epochs of fine-tuning; 0: calibration only.", ge=0)
    stages: int = option(
        1, "Number of steps in which the budget is reached; every step has its own search and fine-tuning.", ge=1
    )
    l1_epochs: float = option(0.0, "Epochs of fine-tuning with an L1 penalty before pruning.", ge=0)
    l1_weight: float = option(1e-5, "Weight of that penalty, the sum of all weights' magnitudes, in the loss.", ge=0)
    distillation: Literal["standard", "weak", "strong"] = option(
        "standard",
        "How the original teaches: standard (on all training samples), weak (on the calibration split only), "
        "strong (starts from the original's own weights).",
    )
    learning_rate: float = option(
        5e-3, "Peak learning rate of fine-tuning (Adam), relative to the size of each layer's weights.", gt=0
    )
    batch_size: int | None = option(
        None,
        "Batch size of fine-tuning. Default: 128, or fewer, at least 8, where an epoch would have less than 64 steps.",
        ge=1,
    )
    labels: Literal["data", "teacher"] = option(
        "data", "Source of the hard labels in fine-tuning: the data, or the original's predictions (teacher)."
    )
    soft_weight: float = option(
        1.0, "Weight of the divergence from the original's predictions in fine-tuning's loss.", ge=0
    )
    hard_weight: float | None = option(
        None, "Weight of the cross-entropy with hard labels in that loss. Default: 0.5 where there are labels.", ge=0
    )
    features_weight: float | None = option(
        None,
        "Weight of the difference of inner layers' outputs in that loss. Default: 3 for fewer than 8192 training "
        "samples, else 0.",
        ge=0,
    )
    temperature: float = option(2.0, "Temperature that softens predictions in fine-tuning.", gt=0)
    augmentation: Literal["none", "shift", "shift+flip"] = option(
        "shift", "Augmentation of images in fine-tuning: shift (by up to an eighth), flip (left and right)."
    )
    mixup: float = option(
        0.0,
        "Largest share of another sample that is blended into each sample in fine-tuning; the original labels the "
        "blends.",
        ge=0,
        le=0.5,
    )
    clip: float = option(1.0, "Largest norm of the gradient in fine-tuning.", gt=0)
