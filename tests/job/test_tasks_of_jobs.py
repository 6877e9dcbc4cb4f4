"""Whole jobs of every task: from a network whose outputs are no classes to a file that gives what it gave."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import autocompress
from autocompress.targets.onnxruntime.session import open_session

QUICK = {
    "episodes": 4,
    "search_samples": 60,
    "calibration_samples": 40,
    "dtype": "float32",
    "recalibration_samples": 40,
}
IMAGES = (2, 16, 16)
RANDOM = torch.Generator().manual_seed(0)


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))


class Regressor(Trunk):
    """Three numbers of quite different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x).mean((2, 3))) * torch.tensor([1.0, 1000.0, 0.01])


class Binary(Trunk):
    """One logit."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(super().forward(x).mean((2, 3)))
        return 20 * (logits - logits.detach().mean() * 0)


class Segmenter(Trunk):
    """In a container, as torchvision's give it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": 5 * self.head(super().forward(x))}


class Detector(Trunk):
    """Two maps: scores and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Conv2d(24, 3, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.max_pool2d(super().forward(x), 4)
        return torch.sigmoid(self.scores(x)), self.boxes(x)


class Embedder(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(super().forward(x).mean((2, 3))), dim=1)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(30, 16), nn.Conv1d(16, 24, 3, padding=1), nn.Linear(24, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) * attention_mask[:, :, None]
        return {"logits": 3 * self.head(torch.relu(self.mix(x.transpose(1, 2))).transpose(1, 2))}


def images(count: int) -> Tensor:
    """Noise on a level that differs from image to image."""
    levels = 2 * torch.randn(count, 2, 1, 1, generator=RANDOM)
    return levels + torch.randn(count, *IMAGES, generator=RANDOM)


def texts(count: int) -> dict[str, Tensor]:
    ids = torch.randint(1, 30, (count, 12), generator=RANDOM)
    mask = (torch.arange(12) < torch.randint(3, 13, (count, 1), generator=RANDOM)).long()
    return {"input_ids": ids, "attention_mask": mask}


def searched(network, samples, labels_of, folder, **options):
    """The job on 200 + 50 random samples, labels from the network's own outputs: (network, test, result)."""
    torch.manual_seed(0)
    model = network().eval()
    data = []
    for inputs in (samples(200), samples(50)):
        with torch.no_grad():
            outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        data.append((inputs, None if labels_of is None else labels_of(outputs)))
    result = autocompress.search(
        model, tuple(data), "size=0.5", out=folder / "run", cache=folder / "cache", **QUICK, **options
    )
    return model, data[1][0], result


def in_runtime(result, inputs):
    """Names and values of the file's outputs."""
    content = (result.run_folder / "model.onnx").read_bytes()
    found = open_session(content).run(autocompress.samples.from_tree(inputs))
    names = [value.name for value in onnx.load_from_string(content).graph.output]
    return names, [found] if isinstance(found, Tensor) else list(found)


def checked(result):
    assert result.verification.passed, result.verification.failures()
    assert result.meets_budget
    outcome = json.loads((result.run_folder / "outcome.json").read_text())
    assert outcome["verified"]
    return outcome


def test_regression(tmp_path):
    model, test, result = searched(Regressor, images, lambda outputs: outputs, tmp_path)
    outcome = checked(result)
    assert set(result.metrics) == {"r2", "mae"}
    before, after = result.metrics["r2"]
    assert before == pytest.approx(1.0, abs=1e-6)
    # KL = ½ Δ² in spreads of the calibration samples, and R² = 1 - Δ² in spreads of the test samples.
    assert 1 - after == pytest.approx(2 * result.outcome.kl, rel=0.5)
    assert after > 0.9
    assert np.isnan(result.outcome.accuracy)
    assert outcome["metrics"]["r2"]["compressed"] == after
    assert outcome["compressed"]["accuracy"] is None
    assert (outcome["task"], outcome["compressed"]["agreement"], outcome["search"]["agreement"]) == (
        "regression", None, None,
    )  # fmt: skip
    assert outcome["runtime"]["agreement_with_pytorch"] is None
    assert next(check["detail"] for check in outcome["checks"] if check["name"] == "agreement").startswith(
        "outputs in ONNX Runtime and in PyTorch differ by "
    )
    names, (found,) = in_runtime(result, test)
    assert names == ["output"]
    assert found.shape == model(test).shape
    assert autocompress.verify(result.run_folder, model, _again(test, model)).passed is not None


def _again(test, model):
    with torch.no_grad():
        return ((test, model(test)), (test, model(test)))


def test_one_logit_is_two_classes(tmp_path):
    def labels(outputs):
        return (outputs[:, 0] > outputs[:, 0].median()).long()

    _, _, result = searched(Binary, images, labels, tmp_path)
    checked(result)
    assert result.metrics == {}
    assert 0 <= result.outcome.accuracy <= 1
    assert result.outcome.agreement > 0.9


def test_segmentation(tmp_path):
    def labels(outputs):
        found = outputs["out"].argmax(1)
        found[:, 0] = 255  # the first row has no labels
        return found

    _, test, result = searched(Segmenter, images, labels, tmp_path)
    checked(result)
    assert result.metrics["miou"][0] == pytest.approx(1.0)
    assert 0.6 < result.metrics["miou"][1] <= result.metrics["accuracy"][1] <= 1.0
    names, (found,) = in_runtime(result, test)
    assert (names, found.shape) == (["out"], (50, 4, 16, 16))


def test_two_outputs_without_labels(tmp_path):
    model, test, result = searched(Detector, images, None, tmp_path, task="detection")
    checked(result)
    assert result.metrics == {}
    names, found = in_runtime(result, test)
    assert names == ["output_0", "output_1"]
    report = (result.run_folder / "report.html").read_text()
    assert "top-1" not in report.partition("<body>")[2]
    assert '<th scope="row">divergence from the original, ½ (Δ / spread)², nats</th>' in report
    assert "of the original; outputs within " in report
    for expected, got in zip(map(Tensor.detach, model(test)), found, strict=True):
        assert got.shape == expected.shape
        assert float((got - expected).square().mean() / expected.var()) < 0.2
    packed = autocompress.load(result.run_folder)(test)
    assert [tuple(each.shape) for each in packed] == [tuple(each.shape) for each in found]
    assert [tuple(each.shape) for each in result.model(test)] == [tuple(each.shape) for each in found]


def test_embedding_and_finetuning(tmp_path):
    """The divergence is 1 - cosine, up to its estimate by sums; fine-tuning lowers it, inner layers weighing little."""
    model, test, result = searched(
        Embedder, images, None, tmp_path, finetune=10, batch_size=20, features_weight=1, weight_bits=(2,)
    )
    checked(result)
    with torch.no_grad():
        cosine = nn.functional.cosine_similarity(model(test), result.model(test)).mean()
    assert result.outcome.kl == pytest.approx(float(1 - cosine), rel=0.4)
    assert result.executed.tuned.best_step > 0


def test_tokens(tmp_path):
    def labels(outputs):
        return outputs["logits"].argmax(2)

    model, test, result = searched(Tagger, texts, labels, tmp_path)
    checked(result)
    assert result.metrics["accuracy"][0] == 1.0
    assert result.metrics["f1"][1] > 0.5
    names, (found,) = in_runtime(result, test)
    assert (names, found.shape) == (["logits"], (50, 12, 5))
    # What stands at padding is nobody's business: other words there change no row.
    other = {**test, "input_ids": torch.where(test["attention_mask"] == 1, test["input_ids"], 7)}
    valid = test["attention_mask"] == 1
    assert torch.equal(model(**test)["logits"][:, :2], model(**other)["logits"][:, :2])
    assert bool(valid[:, :3].all())


def test_a_reward_on_accuracy_needs_classes(tmp_path):
    with pytest.raises(autocompress.InputError) as error:
        searched(Regressor, images, lambda outputs: outputs, tmp_path, method="local", reward="accuracy")
    assert str(error.value) == "`reward` accuracy needs labelled data, got tensors without labels; choose kl."


def test_a_task_by_name(tmp_path):
    notes = []

    class Watcher(autocompress.progress.Silent):
        def note(self, text):
            notes.append(text)

    searched(Segmenter, images, None, tmp_path, task="regression", progress=Watcher())
    assert notes[0] == "task: regression; --task NAME names another"
