"""`python -m autocompress`, and the entry point of the command `autocompress`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. An interruption while it is imported is one line and exit code 130 too."""
    signal.signal(signal.SIGINT, _end_at_once)  # a command has a handler of its own, see `autocompress.cli.shell`
    from autocompress.cli.main import main as run

    run()


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """End the process: an exception in the middle of an import may be swallowed, or leave a traceback."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"autocompress: interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
