"""The package's version, and those of what it computes with."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of what computes, by name."""
    import torch  # `--version` needs none

    return {"autocompress": __version__, "python": platform.python_version(), "torch": torch.__version__}
