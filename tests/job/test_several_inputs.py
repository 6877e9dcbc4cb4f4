"""A text encoder that takes tokens and a mask by name: the whole job, and the file beside PyTorch."""

import inspect

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

import autocompress
from autocompress.targets.onnxruntime.session import open_session

LENGTH, WORDS, WIDTH = 10, 40, 24


class Output(dict[str, Tensor]):
    """What networks of Hugging Face give: a mapping whose entries are attributes too."""

    __getattr__ = dict.__getitem__


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        heads = [layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        seen = scaled_dot_product_attention(*heads, attn_mask=attention_mask[:, None, None].bool())
        x = self.norm(x + self.out(seen.transpose(1, 2).flatten(2)))
        x = x + self.down(gelu(self.up(x)))
        weight = attention_mask[..., None].to(x)
        return Output(logits=self.head((x * weight).sum(1) / weight.sum(1)))


def texts(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (count, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    model, folder = Encoder().eval(), tmp_path_factory.mktemp("texts")
    train, test = texts(240, 1), texts(60, 2)
    with torch.no_grad():
        labels = [model(**each).logits.argmax(1) for each in (train, test)]
    result = autocompress.search(
        model, ((train, labels[0]), (test, labels[1])), "size=0.45", episodes=5, out=folder / "run",
        cache=folder / "cache", search_samples=80, calibration_samples=60, dtype="float32",
        sparsity_levels=4, recalibration_samples=32,
    )  # fmt: skip
    return model, test, result, folder


def test_the_budget_is_met_and_the_file_agrees(made):
    model, _, result, _ = made
    assert result.outcome.resources["size"] <= result.limits["size"]
    assert result.verification.passed
    assert result.verification.runtime.agreement == 1.0
    assert result.verification.inputs == {"input_ids": (LENGTH,), "attention_mask": (LENGTH,)}
    assert result.verification.lengths == (LENGTH, LENGTH // 2)
    assert result.outcome.agreement > 0.9
    assert type(model) is Encoder


def test_tables_are_labelled_and_positions_that_no_input_decides_are_not(made):
    _, _, result, _ = made
    names = [layer.name for layer in result.network.layers]
    assert names == ["words", "query", "key", "value", "out", "up", "down", "head"]
    assert [group.owner for group in result.network.groups] == ["up"]
    assert result.plan.labels["words"].activation_bits == 32
    assert [(field.name, field.shape, field.dtype) for field in result.network.inputs] == [
        ("input_ids", (LENGTH,), "int64"), ("attention_mask", (LENGTH,), "int64"),
    ]  # fmt: skip


def test_the_result_takes_what_the_original_takes(made):
    _, test, result, folder = made
    outputs = result.model(**test)
    assert isinstance(outputs, Output)
    spread = float(outputs.logits.detach().std())
    loaded = autocompress.load(folder / "run")  # it rounds between layers too, as the runtime does
    assert (loaded(*test.values()) - outputs.logits).abs().max() < 0.1 * spread
    assert torch.equal(loaded(**test), loaded(*test.values()))
    assert list(inspect.signature(loaded.forward).parameters) == ["input_ids", "attention_mask"]
    session = open_session(folder / "run" / "model.onnx")
    found = session._session.run(None, {name: tensor.numpy() for name, tensor in test.items()})[0]
    assert np.abs(found - outputs.logits.detach().numpy()).max() < 0.1 * spread
    assert session._session.run(None, {name: tensor[:1].numpy() for name, tensor in test.items()})[0].shape == (1, 3)


def test_rows_are_looked_up_as_codes(made):
    _, _, _, folder = made
    graph = onnx.load(folder / "run" / "model.onnx").graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    integers = (onnx.TensorProto.INT2, onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    (table,) = (each for each in graph.initializer if tuple(each.dims) == (WORDS, WIDTH))
    assert table.data_type in integers


def test_fine_tuning_and_verifying_go_on_from_the_folder(made):
    model, _, _, folder = made
    train, test = texts(240, 1), texts(60, 2)
    with torch.no_grad():
        data = tuple((each, model(**each).logits.argmax(1)) for each in (train, test))
    tuned = autocompress.finetune(folder / "run", model=model, data=data, finetune=1)
    assert tuned.verification.passed
    assert autocompress.verify(folder / "run", model=model, data=data).passed


@pytest.mark.parametrize("bits", [2, 16])
def test_every_bit_width_of_a_table_gives_the_same_in_the_file(made, bits):
    model, test, result, folder = made
    labels = {
        name: {"sparsity": 0.0, "weight_bits": bits if name == "words" else 8, "activation_bits": label.activation_bits}
        for name, label in result.plan.labels.items()
    }
    plan = autocompress.Plan.from_dict(result.plan.to_dict() | {"labels": labels})
    with torch.no_grad():
        data = tuple((each, model(**each).logits.argmax(1)) for each in (texts(240, 1), test))
    found = autocompress.apply(
        model, data, plan, out=folder / f"bits{bits}", cache=folder / "cache", search_samples=80,
        calibration_samples=60, recalibration_samples=0,
    )  # fmt: skip
    assert found.verification.passed
    assert found.verification.runtime.difference < 0.05
