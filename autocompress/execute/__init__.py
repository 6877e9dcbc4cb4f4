"""Execution: a plan's labels made real, renormalized, re-calibrated and fine-tuned.

`pipeline.execute` goes the whole way: `compressed.from_menus` puts the menus' weights together, `renormalized` gives
their outputs the original's moments, `recalibrate` fits them to the original layer by layer, `finetune` trains them
through their rounding (`rounding_aware`) towards the original's outputs (`distillation`). Every step takes and gives a
`Compressed`.
"""

from autocompress.execute.compressed import Compressed, LayerWeights, from_menus, uncompressed
from autocompress.execute.pipeline import Executed, Execution, execute
from autocompress.execute.tuning import FineTuning, Tuned

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
