"""The package `ai-edge-litert`, which is an extra: the file's schema and its interpreter."""

from __future__ import annotations

import importlib
from typing import Any

from autocompress.errors import missing_extra


def schema() -> Any:
    """The module with the tables of the file format.

    Raises:
        InputError: the extra `litert` is not installed.
    """
    return _module("schema_py_generated")


def interpreter() -> Any:
    """The module with the interpreter.

    Raises:
        InputError: the extra `litert` is not installed.
    """
    return _module("interpreter")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ModuleNotFoundError as error:
        raise missing_extra("target", "litert", "litert") from error
