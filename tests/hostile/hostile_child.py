"""One hostile input in a child process with limits on memory and time, and what came of it."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import autocompress.memory
from autocompress.errors import AutocompressError

MEMORY = 1 << 30  # bytes that a child may take beyond what its parent holds
SECONDS = 30.0
_AVAILABLE = 600_000_000  # bytes that the package believes to be free, so that its own bounds come first

REFUSED, SAME, REBUILT, SAID = "refused", "same", "rebuilt", "as the file says"
TRACEBACK, HANG, MEMORY_BREACH, WRONG = "traceback", "hang", "over memory", "silently wrong"
FAULTS = (TRACEBACK, HANG, MEMORY_BREACH, WRONG)
OUTCOMES = (REFUSED, SAME, REBUILT, SAID, *FAULTS)


class Read(NamedTuple):
    """What the package made of a file: a digest of the result, and whether something was made anew."""

    digest: str
    rebuilt: bool = False


class Told(Exception):
    """The package answered that the file is wrong, and how, without an error: a check that failed."""


@dataclass
class Answer:
    """What came of one input."""

    outcome: str
    detail: str = ""
    peak_bytes: int = 0
    seconds: float = 0.0
    rebuilt: bool = False


def answer(read: Callable[[], Read]) -> Answer:
    """Read in a child process. The outcome of what was accepted is its digest; whoever asks compares it."""
    receive, send = os.pipe()
    started = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _in_child(read, send)
    os.close(send)
    content, late = _received(receive, started + SECONDS)
    os.close(receive)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    if late:
        return Answer(HANG, f"nothing after {SECONDS:.0f} s", 0, seconds)
    if not content:
        code = os.waitstatus_to_exitcode(status)
        return Answer(MEMORY_BREACH if code == -signal.SIGKILL else TRACEBACK, f"died with {code}", 0, seconds)
    found = Answer(**json.loads(content))
    found.seconds = seconds
    return found


def _in_child(read: Callable[[], Read], send: int) -> None:
    """Answer through the pipe and end; never returns, whatever happens."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        warnings.simplefilter("ignore")
        autocompress.memory.available_bytes = lambda *_: _AVAILABLE
        limit = _status("VmData") + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        before = _status("VmRSS")
        found = _found(read)
        found.peak_bytes = max(0, _status("VmHWM") - before)
        os.write(send, json.dumps(asdict(found)).encode()[:60_000])
    finally:
        os._exit(0)


def _found(read: Callable[[], Read]) -> Answer:
    try:
        got = read()
        return Answer(SAME, got.digest, rebuilt=got.rebuilt)
    except Told as told:
        return Answer(REFUSED, str(told)[:500])
    except AutocompressError as error:
        text = str(error)
        is_line = bool(text.strip()) and "\n" not in text.strip() and len(text) < 2000
        return Answer(REFUSED if is_line else TRACEBACK, text[:500] if is_line else f"no single line: {text[:500]!r}")
    except MemoryError:
        return Answer(MEMORY_BREACH, traceback.format_exc()[-800:])
    except BaseException as error:
        text = traceback.format_exc()
        is_memory = "memory" in str(error).lower() and "alloc" in str(error).lower()
        return Answer(MEMORY_BREACH if is_memory else TRACEBACK, text[-1500:])


def _received(pipe: int, until: float) -> tuple[bytes, bool]:
    """All that comes through a pipe, and whether its end was not reached in time."""
    content = b""
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return content, True
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return content, False
        content += piece


def _status(name: str) -> int:
    """A number of bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
