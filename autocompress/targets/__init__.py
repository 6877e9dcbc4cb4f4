"""Targets: where the result runs, which labels are legal there, and the files that are loaded there."""

from autocompress.targets.sizing import counted_on_file
from autocompress.targets.target import TARGETS, Target

__all__ = ["TARGETS", "Target", "counted_on_file"]
