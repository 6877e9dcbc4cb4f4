"""The command `autocompress doctor`: what this installation can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.budget import format_bytes
from autocompress.cli.shell import Format, emit, reported
from autocompress.config import make_config
from autocompress.errors import AutocompressError

if TYPE_CHECKING:
    from rich.console import Console

SelfTest = Annotated[bool, typer.Option("--self-test/--no-self-test", help="Also compress a tiny network.")]


def doctor(self_test: SelfTest = True, format: Format = "table") -> None:
    """Show versions, devices, memory, cache and extras, and compress a tiny network; exit code 1 if that fails."""
    with reported():
        from autocompress.doctor import examine  # here, where an interruption is told in one line: it takes seconds

        shown = make_config({"format": format})
        found = examine(self_test=self_test)
        emit(shown, found, lambda console: _print(console, found))
        tested = found.get("self_test")
        if tested is not None and not tested["passed"]:
            raise AutocompressError(f"the self-test failed: {tested['error'] or 'a check of the file did not pass'}")


def _print(console: Console, found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="This installation", title_justify="left", show_header=False)
    for name, value in _rows(found):
        table.add_row(name, Text(value, overflow="fold"))
    console.print(table)


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, version in found["versions"].items():
        yield name, version or "MISSING"
    machine, memory, cache = found["machine"], found["memory"], found["cache"]
    yield "system", machine["system"]
    yield "processor", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads of PyTorch"
    for device in found["devices"]:
        size = "" if device["memory_bytes"] is None else f", {format_bytes(device['memory_bytes'])}"
        yield f"device {device['device']}", f"{device['name']}{size}"
    yield "memory", f"{format_bytes(memory['available_bytes'])} available"
    yield "memory of a job", f"at most {format_bytes(memory['a_job_takes_at_most_bytes'])} (--memory)"
    limit = "no limit" if cache["limit_bytes"] is None else f"at most {format_bytes(cache['limit_bytes'])}"
    yield "cache", f"{cache['folder']}: {format_bytes(cache['bytes']) if cache['bytes'] else '0 B'}, {limit}"
    for name, extra in found["extras"].items():
        state = "installed" if extra["installed"] else f"missing: pip install 'autocompress[{name}]'"
        yield f"extra {name}", f"{extra['gives']}; {state}"
    if (tested := found.get("self_test")) is not None:
        state = "passed" if tested["passed"] else f"FAILED: {tested['error'] or 'a check did not pass'}"
        yield "self-test", f"{state}, {tested['seconds']:.1f} s: a search, a file, and its check in ONNX Runtime"
