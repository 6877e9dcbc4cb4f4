"""Compressed transformers as files: heads gone, whole blocks gone, texts of any length."""

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformer_toys import TOYS

from autocompress.execute.compressed import Compressed, from_menus
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress.network.exported import takes_any_length
from autocompress.samples import Inputs, call, tensors_of
from autocompress.targets.graph.lengths import shorter, tokens_of
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress.targets.lengths import check_length, lengths_run
from autocompress.targets.loading import restored
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.packed.file import load_packed_weights, pack, rebuilt
from autocompress.targets.pt2.archive import write_pt2
from autocompress_envs.problem import Labeling

PARTS = ("some", "whole")


@dataclass(frozen=True)
class Given:
    model: nn.Module
    menus: Menus
    inputs: Inputs

    def compressed(self, part: str, bits: int) -> Compressed:
        """Two thirds or all of every second group gone, beginning with the first heads."""
        layers, index = self.menus.problem().layers, self.menus.network.layer_index()
        sparsity = np.zeros(len(layers), np.int64)
        for group in self.menus.network.groups[::2]:
            options = self.menus.kept_options(group)
            whole = len(options) - 1
            wanted = next(k for k, kept in enumerate(options) if kept <= group.width / 3 or kept == 1)
            sparsity[index[group.owner]] = {"some": wanted, "whole": whole}[part]
        position = self.menus.settings.weight_bits.index(bits)
        weight_bits = np.minimum(position, [len(layer.weight_bits) - 1 for layer in layers])
        activation_bits = np.minimum(position, [len(layer.activation_bits) - 1 for layer in layers])
        labeling = Labeling(sparsity, weight_bits, activation_bits)
        return from_menus(self.menus, labeling, fold_batch_norms(self.model, self.menus.network))


@cache
def given(name: str) -> Given:
    model, _ = TOYS[name].made()
    inputs = TOYS[name].samples(48)
    settings = MenuSettings(weight_bits=(8, 32), activation_bits=(8, 32), sparsity_levels=4, remove_branches=True)
    menus = build_menus(model, trace(model, inputs[:1]), inputs, settings, data_fingerprint="toy")
    return Given(model, menus, inputs)


def run(module: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return call(module, inputs)


def run_graph(lowered: Lowered, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found = lowered.graph(*tensors_of(inputs))
    return found[0] if isinstance(found, tuple | list) else found


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["timm", "encoder", "llama"])
def test_files_hold_what_the_module_computes(name: str, part: str, tmp_path) -> None:
    toy = given(name)
    compressed = toy.compressed(part, 32)
    expected = run(compressed.model, toy.inputs)
    scale = float(expected.abs().max())
    lowered = lower(compressed, toy.inputs, integer=False)
    session = open_session(write_onnx(lowered))
    torch.testing.assert_close(session.run(toy.inputs), expected, rtol=0, atol=2e-5 * scale)
    (tmp_path / "model.safetensors").write_bytes(pack(lowered))
    weights = load_packed_weights(tmp_path / "model.safetensors")
    torch.testing.assert_close(run_graph(rebuilt(weights, "file"), toy.inputs), expected, rtol=0, atol=2e-5 * scale)
    again = restored(weights, toy.model, toy.menus.network)  # as a module of the original's class
    torch.testing.assert_close(run(again.model, toy.inputs), expected, rtol=0, atol=2e-5 * scale)
    if part == "whole":
        assert {len(weights.layers[group.owner].values) for group in toy.menus.network.groups[::2]} == {0}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_texts_may_have_any_length(name: str, part: str, tmp_path) -> None:
    toy = given(name)
    compressed = toy.compressed(part, 8)
    lowered = lower(compressed, toy.inputs, integer=True)
    assert takes_any_length(lowered.graph)
    session = open_session(write_onnx(lowered))
    (tmp_path / "model.pt2").write_bytes(write_pt2(lowered))
    archive = torch.export.load(tmp_path / "model.pt2").module()
    # Without the 34th: cut in half, Llama rounds a number of it that lies 1.5e-5 of a step from half-way between codes.
    few = toy.inputs[:33]
    for inputs in (few, shorter(few)):
        expected = run_graph(lowered, inputs)
        tolerance = {"rtol": 0, "atol": 2e-5 * float(expected.abs().max())}
        torch.testing.assert_close(session.run(inputs), expected, **tolerance)
        with torch.no_grad():
            torch.testing.assert_close(archive(*tensors_of(inputs)), expected, **tolerance)
    check = check_length("ONNX Runtime", lowered.graph, session, toy.inputs, toy.menus.network)
    assert check is not None
    assert (check.name, check.passed) == ("length", True)
    assert lengths_run(lowered.graph, toy.inputs) == (10, 5)
    assert check.detail.startswith("at 5 instead of 10 tokens, ONNX Runtime agrees with PyTorch on 100.00 % ")


class Fixed(nn.Module):
    """Input 10 token numbers: the code knows their number."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(80, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).view(-1, 80))


def test_a_network_of_one_length_says_so() -> None:
    ids = torch.randint(0, 50, (24, 10), generator=torch.Generator().manual_seed(0))
    model = Fixed().eval()
    network = trace(model, ids[:1])
    menus = build_menus(
        model, network, ids, MenuSettings(weight_bits=(8,), activation_bits=(32,)), data_fingerprint="x"
    )
    none = np.zeros(2, np.int64)
    lowered = lower(from_menus(menus, Labeling(none, none, none), model), ids, integer=True)
    assert not takes_any_length(lowered.graph)
    check = check_length("ONNX Runtime", lowered.graph, open_session(write_onnx(lowered)), ids, network)
    assert check is not None
    assert check.passed
    assert check.detail == "the file takes texts of exactly 10 tokens: no graph holds at other lengths"
    assert lengths_run(lowered.graph, ids) == (10,)


def test_what_counts_as_text() -> None:
    assert tokens_of(TOYS["bert"].samples(2)) == 10
    assert tokens_of(torch.zeros(2, 7)) == 0
    assert tokens_of(torch.zeros(2, 7, 3, dtype=torch.int64)) == 0
    none = SimpleNamespace(layers=())
    assert check_length("ONNX Runtime", nn.Identity(), None, torch.zeros(2, 7), none) is None  # type: ignore[arg-type]
