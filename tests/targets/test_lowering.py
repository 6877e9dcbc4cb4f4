"""Lowered graphs: the same numbers as the module, and integers on every side of a runtime's integer kernels."""

import io

import pytest
import torch
from lowering_toys import SHAPES, Concat, Depthwise, Residual, Tokens, toy
from torch import Tensor, nn

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import Compressed
from autocompress.plan import Plan
from autocompress.samples import Field
from autocompress.targets.graph.lowering import lower
from autocompress.targets.graph.rounding_points import ROUND_ACTIVATION, rounding_nodes
from autocompress.targets.pt2.archive import write_pt2

ATEN = torch.ops.aten


def roundings(lowered):
    return [(str(node.args[0]), found.bits) for node, found in rounding_nodes(lowered.graph.graph)]


@pytest.mark.parametrize("kind", SHAPES)
def test_graph_computes_what_the_rounding_module_does_bit_for_bit(kind):
    compressed, x = toy(kind, (1, 2, 3, 4, 5, 8, 16, 32), (4, 8, 32, 6))
    before = {name: tensor.clone() for name, tensor in compressed.model.state_dict().items()}
    lowered = lower(compressed, x, integer=False)
    rounded = compressed.rounded()
    with torch.no_grad():
        for samples in (1, 7):
            assert torch.equal(lowered.graph(x[:samples]), rounded(x[:samples]))
    wanted = sum(layer.input_range is not None for layer in compressed.layers.values())
    twice = kind is Tokens  # `again` runs twice
    assert len(roundings(lowered)) == wanted + twice
    assert lowered.inputs == (Field("input", SHAPES[kind]),)
    assert all(torch.equal(before[name], tensor) for name, tensor in compressed.model.state_dict().items())


def test_integer_graph_rounds_each_tensor_once_for_all_that_read_it():
    """Layer inputs: x, two sums' relus and the pooled; extra: both convolutions before a sum, the last relu.

    Repeated behind moves: the padded shortcut and the flattened view.
    """
    compressed, x = toy(Residual, (8,))
    lowered = lower(compressed, x, integer=True)
    assert len(roundings(lowered)) == 4 + 3 + 2
    for node in lowered.graph.graph.nodes:
        if node.target in (ATEN.add.Tensor, ATEN.conv2d.default, ATEN.linear.default, ATEN.adaptive_avg_pool2d.default):
            activations = node.all_input_nodes if node.target is ATEN.add.Tensor else node.all_input_nodes[:1]
            assert [each.target for each in activations] == [ROUND_ACTIVATION] * len(activations)
    output = lowered.graph.graph.output_node().all_input_nodes[0]
    assert output.target is ATEN.linear.default


def test_tensors_that_a_layer_reads_unrounded_stay_unrounded():
    """Only `join` wants a rounded input; what follows it but no layer reads is rounded for its kernel and the next."""
    compressed, x = toy(Concat, (8,), (32, 32, 8, 32))
    lowered = lower(compressed, x, integer=True)
    assert sorted(name for name, _ in roundings(lowered)) == ["cat", "cat_1", "conv2d_2"]
    shared = next(node for node, _ in rounding_nodes(lowered.graph.graph) if node.args[0].name == "cat")
    assert {user.target for user in shared.users} == {ATEN.conv2d.default, ATEN.cat.default}


def test_float_weights_ask_for_no_further_rounding():
    compressed, x = toy(Residual, (16,), (8,))
    lowered = lower(compressed, x, integer=True)
    assert [name for name, _ in roundings(lowered)] == ["x", "relu", "relu_1", "adaptive_avg_pool2d", "view"]


def test_biases_of_integer_kernels_are_whole_steps_of_input_scale_times_weight_scale():
    compressed, x = toy(Residual, (2,))
    lowered = lower(compressed, x, integer=True)
    layer = compressed.layers["stem"]
    steps = lowered.graph.get_parameter("stem.bias") / (layer.scale * layer.input_range.scale)
    assert torch.allclose(steps, steps.round(), rtol=0, atol=1e-4)
    assert torch.equal(compressed.model.stem.bias, layer.bias)


@pytest.mark.parametrize("kind", [Residual, Depthwise])
def test_integer_graph_stays_close_to_the_module(kind):
    compressed, x = toy(kind, (8,))
    lowered, rounded = lower(compressed, x, integer=True), compressed.rounded()
    with torch.no_grad():
        expected = rounded(x)
        assert (lowered.graph(x) - expected).square().mean() < 2e-3 * expected.var()


def test_pt2_archive_holds_plain_operators_and_the_same_numbers():
    compressed, x = toy(Residual, (4, 8, 16), (8, 4))
    lowered = lower(compressed, x, integer=False)
    program = torch.export.load(io.BytesIO(write_pt2(lowered)))
    assert {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"} == {
        "aten"
    }
    with torch.no_grad():
        assert torch.equal(program.module()(x[:7]), lowered.graph(x[:7]))


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(2, 3)


def compressed_without_layers(model):
    return Compressed(model.eval(), {}, Plan({}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), r"`model` must be a network that torch\.export can follow: [^\n]*data-dependent[^\n]*"),
        (FixedBatch(), r"`model` must be a network that torch\.export can follow: [^\n]*"),
    ],
)  # fmt: skip
def test_network_that_is_no_graph_is_refused_in_one_line(model, message):
    with pytest.raises(ExportError, match=rf"\A{message}\Z") as caught:
        lower(compressed_without_layers(model), torch.randn(4, 3), integer=False)
    assert caught.value.exit_code == 1


def test_two_outputs_have_numbers_for_names():
    lowered = lower(compressed_without_layers(TwoOutputs()), torch.randn(4, 3), integer=False)
    assert lowered.names == ("input", "output_0", "output_1")
    assert lowered.outputs == ("output_0", "output_1")
    x = torch.randn(5, 3)
    assert [torch.equal(found, each) for found, each in zip(lowered.graph(x), (x + 1, x), strict=True)] == [True, True]


def test_calibration_without_samples_is_refused():
    compressed, x = toy(Residual, (8,))
    with pytest.raises(InputError, match=r"^`calibration` must hold at least one sample, got none\.$"):
        lower(compressed, x[:0], integer=True)
