"""From options to a run folder that this process alone writes, and that can be resumed after a kill at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from autocompress.config import Config
from autocompress.errors import AutocompressError, WriteError
from autocompress.files import write_atomically
from autocompress.run.folder import claim, config_text
from autocompress.run.lock import locked
from autocompress.run.names import NEXT_CONFIG


@contextmanager
def opened(config: Config, task: str, versions: Mapping[str, str]) -> Iterator[tuple[Path, Config]]:
    """Hold the folder of a run. Its options are written there at once, as those of a run that has yet to begin.

    A run that lies there (`force`) is left alone until `begin` replaces it: menus take minutes, and the options may
    turn out to be wrong. Then nothing has changed. After a kill meanwhile, `resume` begins with the options there.

    Args:
        config: options of the run.
        task: command that writes, such as `search`; shown to whoever comes second.
        versions: versions of the software by name; written as comments.

    Yields:
        The folder, and the options to go on with: `resume` is not set where the run has yet to begin.

    Raises:
        InputError: see `claim` and `locked`.
        WriteError: the folder can't be written.
    """
    path = claim(config)
    with locked(path, "out", task):
        claim(config.model_copy(update={"out": path}))  # again: another process may have used it until now
        following = path / NEXT_CONFIG
        if config.resume:
            begun = not following.is_file()
            yield path, config if begun else config.model_copy(update={"resume": False, "force": True})
            return
        write_atomically(following, config_text(config, path, versions))
        try:
            yield path, config
        except WriteError:
            raise
        except AutocompressError:
            following.unlink(missing_ok=True)
            raise
