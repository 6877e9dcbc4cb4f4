"""What all tests share: they leave alone what the user has let run, and time finished files for moments only."""

import pytest

from autocompress.job import finish
from autocompress.targets.timing import Effort


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory):
    """A state folder of the tests' own, for commands in other processes too."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def short_timings():
    """No test looks at how long a file takes, and seconds of timing each add up to minutes."""
    patch = pytest.MonkeyPatch()
    patch.setattr(finish, "LATENCY_EFFORT", Effort(seconds=0.02, least_rounds=4))
    patch.setattr(finish, "LEADER", Effort(seconds=0.2, least_rounds=100))
    yield
    patch.undo()
