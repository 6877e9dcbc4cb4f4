"""What all tests share: they leave alone what the user has let run."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory):
    """A state folder of the tests' own, for commands in other processes too."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    yield
    patch.undo()
