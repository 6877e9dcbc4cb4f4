"""Execution: a plan's labels made real, re-calibrated and fine-tuned."""

from autocompress.execute.compressed import Compressed, LayerWeights, from_menus, uncompressed
from autocompress.execute.finetune import FineTuning, Tuned
from autocompress.execute.pipeline import Executed, Execution, execute

__all__ = [
    "Compressed",
    "Executed",
    "Execution",
    "FineTuning",
    "LayerWeights",
    "Tuned",
    "execute",
    "from_menus",
    "uncompressed",
]
