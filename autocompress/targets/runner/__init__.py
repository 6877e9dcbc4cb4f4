"""Files timed on another machine, through a command that runs Python there."""

from autocompress.targets.runner.runner import Runner

__all__ = ["Runner"]
