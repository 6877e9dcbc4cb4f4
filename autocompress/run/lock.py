"""One writer a folder: a lock file that names the process which writes there, and that a kill can't leave for good.

The file appears whole and only where there is none (a hard link), which network file systems keep to as well. Where
the system locks open files (`flock`), the holder keeps it locked, and the kernel of its machine says whether it still
lives. Else the process's number and start say it, there too. Of a holder that shares a network file system from another
machine only its user can say whether it still runs.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from autocompress.errors import InputError
from autocompress.files import LOCK, append, is_alive, sweep, this_machine, writing

_TRIES, _PAUSE = 20, 0.05  # seconds between tries, while another process takes over or lets go
_BEING_WRITTEN = 10.0  # seconds for which a lock without content is one that is being written

_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}  # file systems of one machine


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        process: number of the process.
        started: seconds since the epoch at which the process began.
        host: name of its machine.
        machine: `this_machine()` of it.
        task: what it does, such as `search`.
        since: local time at which it took the lock.
        locks_file: whether it keeps the file locked by `flock`.
    """

    process: int
    started: float
    host: str
    machine: str
    task: str
    since: str
    locks_file: bool

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (autocompress {self.task}, since {self.since})"


@contextmanager
def locked(folder: Path, argument: str, task: str) -> Iterator[None]:
    """Be the only process that writes into a folder.

    The folder is made where it is missing, and removed again where nothing was written into it. Temporary files of
    dead processes are removed.

    Args:
        folder: folder to be written.
        argument: option that names the folder, for errors.
        task: command that writes, such as `search`; shown to whoever comes second.

    Raises:
        InputError: another process writes there, or may do so on another machine.
        WriteError: the folder can't be written.
    """
    made = _make(folder)
    try:
        lock = folder / LOCK
        descriptor = _take(lock, argument, task)
        try:
            sweep(folder)
            yield
        finally:
            _release(lock, descriptor)
    finally:
        for each in made:
            with suppress(OSError):  # it holds something
                each.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns the folders that were missing, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(lock: Path, argument: str, task: str) -> int:
    """Hold the lock; returns the open file. Raises InputError where another process holds it."""
    for _ in range(_TRIES):
        descriptor = _create(lock, task)
        if descriptor is not None:
            return descriptor
        holder = _remove_abandoned(lock)
        if holder is not None and (holder.machine != this_machine() or is_alive(holder.process, holder.started)):
            break
        time.sleep(_PAUSE)
    raise InputError(_refusal(lock, argument, _read(lock)))


def _create(lock: Path, task: str) -> int | None:
    """The lock, open and locked; None where there is one. It gets its name when it is whole."""
    own = lock.with_name(f"{lock.name}.{this_machine()}-{os.getpid()}-{time.monotonic_ns()}.tmp")
    descriptor: int | None = None
    try:
        with writing(lock):
            descriptor = os.open(own, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            holder = _this_process(task, locks_file=_flock(descriptor) is True)
            with open(descriptor, "wb", buffering=0, closefd=False) as file:
                append(file, (json.dumps(asdict(holder)) + "\n").encode(), lock)
            if _name(own, lock):
                kept, descriptor = descriptor, None
                return kept
            return None
    finally:
        own.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def _name(own: Path, lock: Path) -> bool:
    """Give a file the lock's name; False where another file has it."""
    try:
        os.link(own, lock)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: an empty file first, which others see as being written
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        os.replace(own, lock)
        return True


def _remove_abandoned(lock: Path) -> Holder | None:
    """Remove the lock of a dead process; returns the holder where there is one that may live."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        free = _flock(descriptor)
        holder = _read(lock)
        if free is False:
            return holder
        if not _is_same(descriptor, lock) or not _is_abandoned(lock, holder, can_lock=free is True):
            return holder
        _unlink(lock, descriptor, is_locked=free is True)
        return None
    finally:
        os.close(descriptor)


def _unlink(lock: Path, descriptor: int, *, is_locked: bool) -> None:
    """Remove the lock of a dead process, which is open, and not that of whoever was faster.

    Whoever has locked the open file is the only one to do so. Else the only one is who makes a second file.
    """
    guard = lock.with_name(f"{lock.name}.guard.tmp")
    with suppress(OSError):
        if not is_locked:
            if guard.exists() and time.time() - guard.stat().st_mtime > _BEING_WRITTEN:
                guard.unlink()  # its process was killed in the middle of the two lines below
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if _is_same(descriptor, lock):
            lock.unlink()
        if not is_locked:
            guard.unlink()


def _is_abandoned(lock: Path, holder: Holder | None, *, can_lock: bool) -> bool:
    """Whether the process that wrote a lock, which nobody keeps locked, is dead for certain."""
    if holder is None:
        return time.time() - lock.stat().st_mtime > _BEING_WRITTEN
    if holder.locks_file and can_lock and (holder.machine == this_machine() or _is_local(lock)):
        return True  # it kept the file locked until it died
    return holder.machine == this_machine() and not is_alive(holder.process, holder.started)


def _is_local(path: Path) -> bool:
    """Whether a file lies on a disk of this machine, so that processes elsewhere can't hold it; False if unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:  # no Linux
        return False
    real = path.resolve()
    found = [(len(where), kind) for _, where, kind, *_ in mounts if real.is_relative_to(where)]
    return bool(found) and max(found)[1] in _LOCAL


def _release(lock: Path, descriptor: int) -> None:
    """Let go of the lock, unless somebody removed it and another process has one of its own."""
    with suppress(OSError):
        if _is_same(descriptor, lock):
            lock.unlink()
    os.close(descriptor)


def _is_same(descriptor: int, lock: Path) -> bool:
    """Whether an open file still has the lock's name."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    return False


def _flock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed: True; False where another process did; None where files can't be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no such locks
        return None


def _read(lock: Path) -> Holder | None:
    """Who holds a lock; None where the file says nothing that can be read."""
    with suppress(OSError, ValueError, TypeError):
        holder = Holder(**json.loads(lock.read_text()))
        return holder if isinstance(holder.process, int) and isinstance(holder.started, float) else None
    return None


def _this_process(task: str, *, locks_file: bool) -> Holder:
    import psutil

    process = psutil.Process()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Holder(process.pid, process.create_time(), platform.node(), this_machine(), task, since, locks_file)


def _refusal(lock: Path, argument: str, holder: Holder | None) -> str:
    """Why a folder can't be written now, and what to do."""
    rule = f"`{argument}` must be a folder that no other process writes, got {lock.parent}"
    if holder is None:
        return f"{rule}, whose lock {lock} can't be read; if no process writes there, remove that file."
    if holder.machine == this_machine():
        return f"{rule}, where {holder} is at work; wait for it, end it, or choose another folder."
    return (
        f"{rule}, where {holder} may be at work, which can't be seen from here; "
        f"if it is not, remove {lock} and try again."
    )
