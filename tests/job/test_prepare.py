"""What `prepare` tells of the samples that losses are judged on."""

import pytest
import torch
from torch import nn

from autocompress import api
from autocompress.progress import Silent


class Watcher(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(("samples", "is_told"), [(31, True), (32, False)])
def test_few_samples_to_judge_on_are_told(samples, is_told, tmp_path):
    torch.manual_seed(0)
    inputs, watcher = torch.randn(120, 4), Watcher()
    api.inspect(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(),
        (inputs, inputs[:, :3].argmax(1)),
        progress=watcher,
        search_samples=samples,
        calibration_samples=20,
        cache=tmp_path,
    )
    told = [note for note in watcher.notes if "judged" in note]
    expected = (
        f"the labels' expected losses are judged on {samples} samples only, and may be off by a factor of 2 and more; "
        "32 or more would do (--search-samples)"
    )
    assert told == ([expected] if is_told else [])
