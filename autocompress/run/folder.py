"""The folder of a run: who may use it, how it is made, and how a kill leaves it valid."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from autocompress.config import Config, first_difference, load_config
from autocompress.errors import InputError
from autocompress.files import append, is_passing, regular_file, write_atomically, writing
from autocompress.run.journal import JOURNAL_VERSION, Entry, Indices, read_journal, stamped
from autocompress.run.names import (
    CONFIG,
    JOURNAL,
    JOURNAL_BEFORE,
    NEXT_CONFIG,
    OUTCOME,
    RUN_FILES,
    STAGE,
    TENSORBOARD,
    TOLERANCE,
)


def default_path(model: str, budget: str | None, root: Path = Path("runs")) -> Path:
    """runs/MODEL-BUDGET, or runs/MODEL-plan without a budget, with -2, -3, … where that exists.

    >>> default_path("torchvision:resnet18", "size=40kB, macs=50%", Path("nowhere")).as_posix()
    'nowhere/torchvision-resnet18-size=40kB-macs=50'
    """
    name = re.sub(r"[^A-Za-z0-9._=]+", "-", f"{model}-{budget or 'plan'}").strip("-.")
    number, path = 1, root / name
    while path.exists():
        number += 1
        path = root / f"{name}-{number}"
    return path


def check_finished(path: Path, needed: Iterable[str]) -> None:
    """Raise InputError where a folder is not that of a finished run.

    Args:
        path: folder.
        needed: names of the files that a finished run must have here.
    """
    for name in needed:
        if regular_file(path / name):
            continue
        if regular_file(path / TOLERANCE):
            raise InputError(
                f"`run` must be the folder of one run, got {path}, which holds the tries of a tolerance; name one of "
                f"them, such as {path / 'try-1'} ({TOLERANCE} says which was chosen)."
            )
        raise InputError(f"`run` must be the folder of a finished run, got {path}, which has no {name}.")


def claim(config: Config) -> Path:
    """The folder that a run may use; nothing is written or removed yet.

    Raises:
        InputError: the folder holds a run and neither `force` nor `resume` is given, or holds other things,
            or there is nothing to resume, or the run to resume had other options.
    """
    if config.force and config.resume:
        raise InputError("`force` and `resume` exclude each other, got both: --force starts anew, --resume continues.")
    if config.resume:
        return _resumable(config)
    path = config.out or default_path(config.model, config.budget)
    if not path.exists():
        return path
    if not path.is_dir():
        raise InputError(f"`out` must be a folder, got {path}, which is a file.")
    if (path / JOURNAL).exists():
        if not config.force:
            raise InputError(
                f"`out` must be a new folder, got {path}, which holds a run; "
                "pass --force to replace it or --resume to continue it."
            )
    elif any(each.name != NEXT_CONFIG and not is_passing(each.name) for each in path.iterdir()):
        raise InputError(f"`out` must be a new or empty folder, got {path}, which holds files that are no run's.")
    return path


def _resumable(config: Config) -> Path:
    if config.out is None:
        raise InputError("`resume` needs the folder of the run to continue, got none; pass --out FOLDER.")
    options = options_file(config.out)
    if not options.is_file() or not (options.name == NEXT_CONFIG or (config.out / JOURNAL).is_file()):
        raise InputError(f"`resume` needs the folder of a run, got {config.out}, which has no {CONFIG} and {JOURNAL}.")
    before = load_config(options, {}).model_copy(update={"device": config.device})  # another machine may have others
    option = first_difference(before, config)
    if option is not None:
        raise InputError(
            f"`{option}` must be as in the run to resume, {getattr(before, option)!r}, "
            f"got {getattr(config, option)!r}; leave it out, or choose another --out."
        )
    return config.out


def options_file(path: Path) -> Path:
    """The file with the options of the run in a folder; of the run that has yet to begin there, where there is one."""
    following = path / NEXT_CONFIG
    return following if following.is_file() else path / CONFIG


def config_text(config: Config, path: Path, versions: Mapping[str, str]) -> str:
    """The options of the run in `path` as YAML, with versions of the software as comments."""
    made_by = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return made_by + config.model_copy(update={"force": False, "resume": False, "out": path}).to_yaml()


def begin(path: Path, config: Config, versions: Mapping[str, str]) -> Config:
    """Make the folder of a run that can be resumed from now on, though it has not evaluated anything.

    Args:
        path: folder from `claim`; a run that lies there is removed.
        config: options of the run.
        versions: versions of the software by name; written as comments.

    Returns:
        The options with which the run goes on from here.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    for name in (*RUN_FILES, *_written_files(path)):
        (path / name).unlink(missing_ok=True)
    for folder in (path / TENSORBOARD, *path.glob(f"{STAGE}*")):
        shutil.rmtree(folder, ignore_errors=True)
    write_atomically(path / CONFIG, config_text(config, path, versions))
    write_atomically(path / JOURNAL, "")
    (path / NEXT_CONFIG).unlink(missing_ok=True)  # last: until here a kill leaves a run that has yet to begin
    return config.model_copy(update={"force": False, "resume": True})


def _written_files(path: Path) -> tuple[str, ...]:
    """Names of the files that the run in `path` says it wrote; targets from outside have names of their own."""
    try:
        names = json.loads((path / OUTCOME).read_text()).get("file_bytes", {})
    except (OSError, ValueError, AttributeError):
        return ()
    return tuple(name for name in names if name == Path(name).name)


class RunFolder:
    """The folder of a run that is under way.

    Args:
        path: folder from `claim`; a run that lies there is replaced unless `config.resume` is set.
        config: options of the run.
        versions: versions of the software by name; written as comments.
        made_on: identity of network, weights, data and settings, which has to be the same when the run is resumed.

    Attributes:
        replayed: entries of the journal of a resumed run, which the search is expected to repeat.
        before: entries of a journal that the search departed from; their plans need not be measured again.
    """

    def __init__(self, path: Path, config: Config, versions: Mapping[str, str], made_on: Mapping[str, Any]) -> None:
        self.path = path
        header = {"journal": JOURNAL_VERSION, **made_on}
        if not config.resume:
            begin(path, config, versions)
        self.replayed = self._reopen(header)
        before = path / JOURNAL_BEFORE
        self.before = read_journal(before)[1] if regular_file(before) else []
        with writing(path / JOURNAL):
            self._journal = (path / JOURNAL).open("ab", buffering=0)
        if self._journal.tell() == 0:
            self._write_line(stamped(header))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def append(self, entry: Entry) -> None:
        """Add a line to the journal at once. An entry that the resumed run had already written is left alone.

        Raises:
            WriteError: the line can't be written; the journal is as it was.
        """
        if entry.index >= len(self.replayed):
            self._write_line(entry.to_line())

    def departs(self, index: int, labels: Indices) -> bool:
        """Whether a resumed search evaluates another plan than before, as other machines and versions round otherwise.

        Args:
            index: number of the evaluation.
            labels: its plan.
        """
        return index < len(self.replayed) and self.replayed[index].labels != labels

    def depart(self, index: int) -> None:
        """Go on from here with a journal that ends before an evaluation; what it held is kept as knowledge.

        Args:
            index: number of the evaluation.

        Raises:
            WriteError: the files can't be written.
        """
        content = (self.path / JOURNAL).read_bytes()
        self.write(JOURNAL_BEFORE, content)
        with writing(self.path / JOURNAL):
            os.truncate(self.path / JOURNAL, sum(map(len, content.splitlines(keepends=True)[: index + 1])))
        self.before, self.replayed = self.replayed, self.replayed[:index]

    def write(self, name: str, content: str | bytes) -> None:
        """Write one of the run's files, at once or not at all."""
        write_atomically(self.path / name, content)

    def _reopen(self, header: Mapping[str, Any]) -> list[Entry]:
        path = self.path / JOURNAL
        before, entries = read_journal(path)
        for name, value in header.items():
            if before and before.get(name) != value:
                raise InputError(
                    f"`resume` must find the same {name} as the run in {self.path}, {before.get(name)}, got {value}; "
                    "put it back, or start anew with --force."
                )
        content = path.read_bytes()
        with writing(path):
            os.truncate(path, content.rfind(b"\n") + 1)
        shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)  # the replay writes all of it again
        return entries

    def _write_line(self, line: str) -> None:
        append(self._journal, line.encode(), self.path / JOURNAL)
