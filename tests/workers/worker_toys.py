"""Work for workers that needs no network, in a module that they import in no time."""

import os
import signal
import time
from pathlib import Path


def make(offset):
    """Runs tasks whose first word says what goes wrong, the first time or always; the second is a number."""

    def run(task, tell):
        what, number, folder = task
        tell(number)
        mark = Path(folder) / str(number)
        is_second = mark.exists()
        mark.touch()
        if what == "dies" or (what == "dies-once" and not is_second):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exits":
            raise SystemExit(3)
        if what == "sleeps" and is_second:
            time.sleep(600)
        return number + offset

    return run
