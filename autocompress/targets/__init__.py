"""Targets: where the result runs, which labels are legal there, and the files that are loaded there.

The way through, for one compressed network: `graph.lowering` makes a graph of it, with every rounding as a node; a
target's `write` makes a file of that graph (`onnxruntime`, `openvino`, `litert`, `executorch`, `packed`); `verify` runs
the file and checks what the plan claims. `sizing` counts a plan's bytes before any file is written, `timing` and
`runner` time files, `kernels` fits costs to times, `loading` reads packed files again, and `pt2` and `openvino.ir`
write further formats. `target` has the table of targets, which packages from outside add to.
"""

from autocompress.targets.sizing import counted_on_file
from autocompress.targets.target import TARGETS, Target

__all__ = ["TARGETS", "Target", "counted_on_file"]
