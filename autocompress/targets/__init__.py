"""Targets: where the result runs, which labels are legal there, and the files that are loaded there."""
