"""Whole jobs on small networks of recurrent layers, transposed convolutions, Conv1D, shared layers: random data."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress
from autocompress.job.results import Result
from autocompress.targets.onnxruntime.session import open_session

CLASSES = 5


class Listener(nn.Module):
    """Input (4, 6): a convolution, a bidirectional GRU, an LSTM whose last state goes to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.gru = nn.GRU(8, 16, batch_first=True, bidirectional=True)
        self.lstm, self.head = nn.LSTM(32, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.gru(torch.relu(self.conv(x)).transpose(1, 2))
        _, (last, _) = self.lstm(outputs.transpose(0, 1))
        return 20 * self.head(last[-1])


class Hourglass(nn.Module):
    """Input (2, 3, 8, 8): convolutions along three axes and two, then transposed ones, one of them in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv3d(2, 8, 3, padding=(0, 1, 1), bias=False), nn.BatchNorm3d(8)
        self.down, self.up = nn.Conv2d(8, 12, 3, 2, 1), nn.ConvTranspose2d(12, 8, 4, 2, 1)
        self.up_norm, self.in_groups = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.deep(x))).flatten(1, 2)
        x = torch.relu(self.up_norm(self.up(torch.relu(self.down(x)))))
        return 20 * self.head(torch.relu(self.in_groups(x)).mean((2, 3)))


def run(model: nn.Module, inputs: object, folder: Path, budget: str, **options: object) -> Result:
    """A search of 3 evaluations on 200 training samples and 60 others, labels drawn at random."""
    y = torch.randint(CLASSES, (260,), generator=torch.Generator().manual_seed(2))

    def cut(part: slice) -> object:
        return {name: each[part] for name, each in inputs.items()} if isinstance(inputs, dict) else inputs[part]

    train, test = slice(0, 200), slice(200, 260)
    settings = {
        "episodes": 3, "search_samples": 50, "calibration_samples": 80, "selection_samples": 0,
        "recalibration_samples": 32, "sparsity_levels": 4,
    }  # fmt: skip
    data = ((cut(train), y[train]), (cut(test), y[test]))
    return autocompress.search(model, data, budget, out=folder / "run", cache=folder / "cache", **(settings | options))


def check(result: Result, original: nn.Module, budget: float) -> None:
    """The claims hold, the budget is met by the file, and the original is as it was."""
    assert result.verification is not None
    assert [each.name for each in result.verification.checks if not each.passed] == []
    assert result.outcome.resources["size"] <= budget * result.original_outcome.resources["size"]
    assert math.isfinite(result.outcome.kl)
    assert result.outcome.agreement > 0.7
    assert not any(type(module).__name__ in ("Recurrent", "TransposedConv2d") for module in original.modules())


def test_recurrent_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Listener().eval(), torch.randn(260, 4, 6)
    result = run(model, x, tmp_path, "size=0.5")
    check(result, model, 0.5)
    matrices = [name for name in result.plan.labels if ".weight_" in name]
    assert len(matrices) == 6
    assert {result.plan.labels[name].activation_bits for name in matrices} == {32}
    assert {result.plan.labels[name].sparsity for name in matrices} == {0.0}
    loaded = autocompress.load(result.run_folder)(x[:8])
    torch.testing.assert_close(loaded, result.model(x[:8]), atol=1e-4, rtol=1e-4)
    length = next(each for each in result.verification.checks if each.name == "length")
    assert length.detail == "the file was run on inputs (N, 4, 6) and takes sequences of this length alone"
    with pytest.raises(Exception, match="Got: 7 Expected: 6"):  # whatever ONNX Runtime raises
        open_session((result.run_folder / "model.onnx").read_bytes()).run(torch.zeros(2, 4, 7))
    told = json.loads((result.run_folder / "outcome.json").read_text())
    assert told["checked_on"] == {"inputs": {"input": [4, 6]}, "tokens": []}
    report = (result.run_folder / "report.html").read_text()
    assert "on the finished files, run on inputs (N, 4, 6): what was found holds for inputs like these." in report


def test_recurrent_layers_are_fine_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Listener().eval(), torch.randn(260, 4, 6)
    options = {"target": "packed", "granularity": "element", "finetune": 1.0, "features_weight": 1.0}
    result = run(model, x, tmp_path, "size=0.3", **options)
    check(result, model, 0.3)


def test_convolutions_of_all_kinds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Hourglass().eval(), torch.randn(260, 2, 3, 8, 8)
    with torch.no_grad():
        for norm in (model.norm, model.up_norm):
            norm.running_var.uniform_(0.5, 1.5)
    result = run(model, x, tmp_path, "size=0.45", finetune=0.5)
    check(result, model, 0.45)
    assert list(result.plan.labels) == ["deep", "down", "up", "in_groups", "head"]
    assert result.executed.tuned.steps == 10  # of batches of 8, inner layers matched
    assert {label.activation_bits for label in result.plan.labels.values()} == {8}


def test_conv1d_of_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": CLASSES}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **tokens)).eval()
    ids = torch.randint(2, 50, (260, 9))
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    result = run(model, texts, tmp_path, "size=0.6", recalibration_samples=0, finetune=0.5)
    check(result, model, 0.6)
    block = "transformer.h.0."
    names = ["transformer.wte", *[block + name for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]]
    assert list(result.plan.labels) == [*names, "score"]


def test_layers_that_run_several_times_are_stored_once(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_labels": CLASSES}
    more = {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}
    model = transformers.AlbertForSequenceClassification(transformers.AlbertConfig(**sizes, **more)).eval()
    ids = torch.randint(2, 50, (260, 9))
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    result = run(model, texts, tmp_path, "size=0.6", recalibration_samples=0, target="packed")
    check(result, model, 0.6)
    query = [name for name in result.plan.labels if name.endswith("query")]
    assert len(query) == 1  # two blocks of one weight
