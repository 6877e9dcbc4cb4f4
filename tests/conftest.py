"""What all tests share: one seed, no touch of what the user has let run, and timings of finished files for moments."""

import pytest
import torch

from autocompress.job import finish
from autocompress.targets.timing import Effort


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector):
    """Modules and parameters of tests draw networks while they are imported: the same ones every time."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seed():
    """A test that draws without a seed of its own draws the same every time, whichever tests ran before it."""
    torch.manual_seed(0)


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
