"""Graphs of networks whose activations write over their input, and who else sees that."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from autocompress.network.exported import export_graph


class Overwriting(nn.Module):
    """Input 2x6x6; `way` says who reads the memory that the activation writes over."""

    def __init__(self, way: str, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.other, self.activation = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3), activation
        self.way = way

    def forward(self, x):
        made = self.conv(x)
        if self.way == "a view of it":
            rows = made[:, :2]
            self.activation(rows)
            return self.other(made)
        result = self.activation(made)
        return self.other(result if self.way == "nobody else" else made + result)


ACTIVATIONS = [
    nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Hardtanh(-0.5, 0.25, inplace=True), nn.Hardswish(inplace=True),
    nn.LeakyReLU(0.3, inplace=True), nn.ELU(0.7, inplace=True), nn.SiLU(inplace=True), nn.Mish(inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("way", ["nobody else", "the network after it", "a view of it"])
def test_activations_that_write_over_their_input_give_the_same_outputs(way, activation):
    torch.manual_seed(0)
    model, x = Overwriting(way, activation).eval(), torch.randn(3, 2, 6, 6)
    graph = export_graph(model, x[:1])
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=1e-6)
    schemas = [getattr(node.target, "_schema", None) for node in graph.graph.nodes]
    assert [schema.name for schema in schemas if schema is not None and schema.is_mutable] == []


def test_a_bounded_activation_stays_one_operator():
    graph = export_graph(Overwriting("nobody else", nn.ReLU6(inplace=True)).eval(), torch.randn(1, 2, 6, 6))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["aten.conv2d.default", "aten.hardtanh.default", "aten.conv2d.default"]


def test_functions_count_as_modules_do():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            made = self.conv(x)
            functional.relu_(made)
            return made

    model, x = Functional().eval(), torch.randn(2, 2, 6, 6)
    with torch.no_grad():
        assert torch.equal(export_graph(model, x[:1])(x), model(x))
