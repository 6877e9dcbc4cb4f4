"""Execution: a plan's weights as the file that is shipped."""

from autocompress.execute.packed import load_packed, pack

__all__ = ["load_packed", "pack"]
