"""What the tests of finished runs share."""

import torch
from typer.testing import CliRunner

from autocompress import Label
from autocompress.cli.main import app
from autocompress.data import load_data
from autocompress.progress import Silent

MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Input 1x8x8."""

    def __init__(self, opaque=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Linear(12, 10)
        self.opaque = opaque

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3))
        return self.head(x * 2 if self.opaque and float(x.sum()) > 1e9 else x)


def net():
    return Net()


def opaque():
    return Net(opaque=True)
'''
LAYERS = ["first", "second", "head"]
PLAN = {
    "first": Label(0.25, 8, 8),
    "second": Label(0.5, 4, 8),
    "head": Label(0.0, 8, 8),
}
QUICK = {
    "data": "digits", "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32",
    "recalibration_samples": 64,
}  # fmt: skip


class Watcher(Silent):
    """Keeps notes; interrupts fine-tuning once it has told of `stop_at` steps."""

    def __init__(self, stop_at=None):
        self.notes, self._stop_at = [], stop_at

    def note(self, text):
        self.notes.append(text)

    def tuning(self, step, *_):
        if self._stop_at is not None and step >= self._stop_at:
            raise KeyboardInterrupt


def trained():
    """The network's state after a second of training: enough for answers that differ."""
    namespace: dict = {}
    exec(MODULE, namespace)
    model, (inputs, labels) = namespace["net"](), load_data("digits").calibration()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.state_dict()


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flags(options):
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def refused(done, message):
    """Exit code 2, and this line the last and only one that is no progress."""
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"autocompress: {message}"
    assert "Traceback" not in done.stderr


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
