"""Tasks: what a network's outputs mean, how two networks' outputs are compared, and how good they are.

    classification, token-classification, segmentation      logits of classes: one row, or one for each position
    regression, detection                                   numbers
    embedding                                               directions

A task turns outputs into rows of logits (`rows`), and all that lies above compares rows by one divergence, that of
class probabilities. Labels only add metrics (`metrics`); no task needs them.
"""

from autocompress.tasks.choice import choose
from autocompress.tasks.outputs import OutputForm, Outputs, named_outputs, together
from autocompress.tasks.reading import AUTO, Reading, read_as
from autocompress.tasks.tasks import TASKS, Seen, Task

__all__ = [
    "AUTO",
    "TASKS",
    "OutputForm",
    "Outputs",
    "Reading",
    "Seen",
    "Task",
    "choose",
    "named_outputs",
    "read_as",
    "together",
]
