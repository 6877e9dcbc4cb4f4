"""The user's own functions, named as `package.module:callable` or `file.py:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import InputError


def call(argument: str, spec: str, arguments: Mapping[str, Any]) -> Any:
    """The result of the callable that `spec` names, which is imported and called.

    Whatever the callable itself raises comes through unchanged: that traceback is about the user's code.

    Args:
        argument: option that the spec was given for, `model` or `data`; messages name it.
        spec: `package.module:callable` or `path/to/file.py:callable`.
        arguments: keyword arguments of the callable.

    Raises:
        InputError: the module can't be imported, has no such callable, or the arguments don't fit it.
    """
    return call_with(argument, spec, _find(argument, spec), arguments)


def call_with(argument: str, spec: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """The result of `function`, called with keyword `arguments`.

    Args:
        argument: option that the spec was given for, `model` or `data`; messages name it.
        spec: spec that names the function, for messages.
        function: function of the user's.
        arguments: keyword arguments of the function.

    Raises:
        InputError: the arguments don't fit the function.
    """
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"`{argument}_args` must fit {spec}, got {', '.join(sorted(arguments)) or 'none'}: {error}."
        ) from error
    except ValueError:  # some C callables have no signature to check against
        pass
    return function(**arguments)


def _find(argument: str, spec: str) -> Callable[..., Any]:
    """The callable that `spec` names. Raises InputError where it can't be imported or found."""
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise InputError(f"`{argument}` must read package.module:callable or file.py:callable, got {spec!r}.")
    module = _import_file(argument, Path(where)) if where.endswith(".py") else _import_module(argument, where)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"`{argument}` must name a callable, but {where} has no callable {name!r}.")
    return function  # type: ignore[no-any-return]


def _import_module(argument: str, name: str) -> ModuleType:
    """The module of that name. Raises InputError where it can't be imported."""
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError, TypeError) as error:  # TypeError: a relative name such as `.module`
        raise InputError(f"`{argument}` must name a module that can be imported, got {name!r}: {error}.") from error


def _import_file(argument: str, path: Path) -> ModuleType:
    """The file as a module `autocompress_user_NAME`. Raises InputError where it can't be imported."""
    if not path.is_file():
        raise InputError(f"`{argument}` must name an existing Python file, got {path}.")
    name = f"autocompress_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise InputError(f"`{argument}` must name a Python file that can be imported, got {path}: {error}.") from error
    return module
