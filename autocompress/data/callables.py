"""The user's own functions, named as `package.module:callable` or `file.py:callable`.

A name is never resolved to Python's standard library, whoever gives it: nothing there makes a network or data, and
much of it runs commands or reads and deletes files. `autocompress.job.trust` says whose names are followed at all.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import InputError


def call(argument: str, spec: str, arguments: Mapping[str, Any]) -> Any:
    """The result of the callable that `spec` names, which is imported and called.

    A file may import modules that lie beside it, as where Python runs it; those that are installed come first. Whatever
    the callable itself raises comes through unchanged: that traceback is about the user's code.

    Args:
        argument: option that the spec was given for, `model` or `data`; messages name it.
        spec: `package.module:callable` or `path/to/file.py:callable`.
        arguments: keyword arguments of the callable.

    Raises:
        InputError: the name leads to the standard library, the module can't be imported, has no such callable, or the
            arguments don't fit it.
    """
    with _beside(Path(spec.rpartition(":")[0])):
        return call_with(argument, spec, _find(argument, spec), arguments)


@contextmanager
def _beside(file: Path) -> Iterator[None]:
    """Let modules be imported that lie beside a Python file."""
    folder = str(file.resolve().parent)
    if file.suffix != ".py" or folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have removed it itself
            sys.path.remove(folder)


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
    if _is_standard_file(Path(where)) if where.endswith(".py") else _is_standard(where):
        raise _standard(argument, spec)
    module = _import_file(argument, Path(where)) if where.endswith(".py") else _import_module(argument, where)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"`{argument}` must name a callable, but {where} has no callable {name!r}.")
    if _is_standard(_home(function)):  # as where a module says `from os import system`
        raise _standard(argument, spec)
    return function  # type: ignore[no-any-return]


def _standard(argument: str, spec: str) -> InputError:
    """The error for a name that leads to the standard library."""
    return InputError(
        f"`{argument}` must name a function of your own, got {spec!r}, which is in Python's standard library."
    )


def _is_standard(module: str) -> bool:
    """Whether a module is of the standard library, builtins included; nothing is imported to find out."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    try:
        found = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):  # ValueError: a module without a spec, such as `__main__`
        return False
    return found is not None and found.origin is not None and _is_standard_file(Path(found.origin))


def _is_standard_file(path: Path) -> bool:
    """Whether a file lies in the folder of the standard library, installed packages aside."""
    folder, path = Path(sysconfig.get_path("stdlib")).resolve(), path.resolve()
    inside = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    return bool(inside) and inside[0] not in ("site-packages", "dist-packages")


def _home(function: Any) -> str:
    """The module that a callable was written in; of a partial, that of its function."""
    while isinstance(function, functools.partial):
        function = function.func
    home = getattr(function, "__module__", None)
    return home if isinstance(home, str) else type(function).__module__


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
