"""ONNX files that can't be read, trusted or translated: one line that says what to do; and good ones."""

import copy
import pickle

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx_graphs import graph, node, numbers, saved, whole
from torch import nn

from autocompress.errors import InputError
from autocompress.job.outputs import read
from autocompress.models import load_model
from autocompress.models.onnx import load_onnx
from autocompress.models.registry import check_spec, names_function
from autocompress.network import trace


def message(function, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def small(path, **kwargs):
    """A file of one convolution and one linear layer."""
    nodes = [
        node("Conv", "x w b", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f fc.weight fc.bias", "scores", transB=1),
    ]
    constants = {"w": numbers(6, 2, 3, 3), "b": numbers(6), "fc.weight": numbers(3, 6), "fc.bias": numbers(3)}
    return saved(path, nodes, {"x": ("N", 2, 5, 5)}, ["scores"], constants, **kwargs)


# --- files that are refused ------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    path = tmp_path / "net.onnx"
    assert message(load_model, str(path)) == f"`model` must be an existing file, got {path}."


def test_folder(tmp_path):
    assert message(load_onnx, tmp_path) == f"`model` must be a regular file, got {tmp_path}, which is a folder."


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a network", b"just text\n" * 50, "half"])
def test_truncated_file_or_other_format(content, tmp_path):
    path = small(tmp_path / "net.onnx")
    whole_file = (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "net.onnx").write_bytes(whole_file[: len(whole_file) // 2] if content == "half" else content)
    assert message(load_onnx, path) == (
        f"`model` must be an ONNX file, got {path}, which is truncated or of another format."
    )


def test_future_and_old_opset(tmp_path):
    newest = onnx.defs.onnx_opset_version()
    proto = graph([node("Relu", "x", "y")], {"x": ("N", 3)}, ["y"])
    path = tmp_path / "net.onnx"
    proto.opset_import[0].version = newest + 1
    onnx.save(proto, path)
    assert message(load_onnx, path) == (
        f"`model` must be of opset 9 to {newest}, the newest that the installed package onnx knows, got {path} of "
        f"opset {newest + 1}; export it with an older opset, or update onnx and onnxruntime."
    )
    proto.opset_import[0].version = 8
    onnx.save(proto, path)
    assert message(load_onnx, path) == (
        f"`model` must be of opset 9 to {newest}, got {path} of opset 8; "
        "convert it with onnx.version_converter.convert_version(model, 13)."
    )


def test_unknown_operators_are_all_named(tmp_path):
    nodes = [
        node("NonZero", "x", "a", name="first"),
        node("Det", "x", "b", name="/head/Det"),
        node("NonZero", "x", "c", name="second"),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ("N", 3, 3)}, ["a", "b", "c"])
    assert message(load_onnx, path) == (
        f"`model` must have operators that are known here, got NonZero (first, second), Det (/head/Det) in {path}."
    )


def test_operators_of_another_domain_are_named(tmp_path):
    custom = helper.make_node("FusedMatMul", ["x", "x"], ["y"], name="fused", domain="com.microsoft")
    path = saved(tmp_path / "net.onnx", [custom], {"x": ("N", 3, 3)}, ["y"])
    assert message(load_onnx, path) == (
        f"`model` must have operators that are known here, got com.microsoft.FusedMatMul (fused) in {path}."
    )


def test_control_flow(tmp_path):
    branch = helper.make_graph([node("Identity", "x", "out")], "b", [], [helper.make_tensor_value_info("out", 1, None)])
    choice = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    path = saved(tmp_path / "net.onnx", [choice], {"x": ("N", 3), "c": ()}, ["y"], kinds={"c": "bool"})
    assert message(load_onnx, path) == (
        f"`model` must have no control flow, got If (choice) in {path}; "
        "export the network without branches and loops that depend on its input."
    )


def test_quantized_file(tmp_path):
    constants = {"s": np.float32(0.1), "z": np.uint8(0)}
    nodes = [node("QuantizeLinear", "x s z", "q", name="q"), node("DequantizeLinear", "q s z", "y")]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ("N", 3)}, ["y"], constants)
    assert message(load_onnx, path) == (
        f"`model` must compute in floating point, got QuantizeLinear (q) in {path}; "
        "give the file that this one was quantized from."
    )


def test_attributes_that_are_not_known(tmp_path):
    constants = {"w": numbers(1, 12, 3), "r": numbers(1, 12, 4)}
    nodes = [node("GRU", "x w r", "y", name="gru", hidden_size=4)]
    path = saved(tmp_path / "net.onnx", nodes, {"x": (5, "N", 3)}, ["y"], constants)
    assert message(load_onnx, path) == (
        "`model` must have operators that are known here, got GRU (gru) with linear_before_reset 0."
    )


def test_sizes_that_depend_on_the_content_of_the_input(tmp_path):
    nodes = [node("Reshape", "x s", "y")]
    path = saved(tmp_path / "net.onnx", nodes, {"x": (2, 6), "s": (2,)}, ["y"], kinds={"s": "int64"})
    assert "on inputs of its own shapes" in message(load_onnx, path)  # no random sizes fit


def external(tmp_path):
    """A file whose weight is kept in `net.data`."""
    proto = graph([node("MatMul", "x w", "y")], {"x": ("N", 64)}, ["y"], {"w": numbers(64, 64)})
    path = tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="net.data", size_threshold=0)
    return path


def test_external_data_is_read(tmp_path):
    network = load_onnx(external(tmp_path))
    assert torch.equal(next(network.parameters()), torch.from_numpy(numbers(64, 64)).T)


def test_external_data_that_is_missing_or_short(tmp_path):
    path = external(tmp_path)
    (tmp_path / "net.data").write_bytes(b"\0" * 100)
    assert message(load_onnx, path) == (
        "`model` must come with its whole external data, got net.data with 100 bytes where w ends at byte 16,384."
    )
    (tmp_path / "net.data").unlink()
    assert message(load_onnx, path) == (
        f"`model` must come with its external data, got {path} without net.data, which holds w; put it into {tmp_path}."
    )


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", ""])
def test_external_data_outside_of_the_folder(location, tmp_path):
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    next(entry for entry in proto.graph.initializer[0].external_data if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())
    assert message(load_onnx, path) == (
        f"`model` must keep its external data in the folder of its file, got {location!r} for w in {path}."
    )


def test_a_wrong_translation_is_found_and_its_node_named(tmp_path, monkeypatch):
    from autocompress.models.onnx import operators

    monkeypatch.setitem(operators.OF_TENSORS, "Relu", operators.OF_TENSORS["Abs"])
    nodes = [node("Neg", "x", "a", name="good"), node("Relu", "a", "b", name="bad"), node("Tanh", "b", "y", name="end")]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ("N", 300)}, ["y"])
    text = message(load_onnx, path)
    assert text.startswith("`model` must compute the same in torch as in ONNX Runtime, got a difference of 1")
    assert text.endswith(f"above 0.0001, for 1 random samples of {path}; the first node that differs is bad.")


# --- as a model of a job ---------------------------------------------------------------------------------------------


def test_spec():
    check_spec("some/net.onnx")
    assert not names_function("some/net.onnx")
    assert not names_function("C:/net.onnx")


def test_weights_and_arguments_are_refused(tmp_path):
    path = small(tmp_path / "net.onnx")
    assert message(load_model, path, weights="w.pt") == (
        f"`weights` must not be given for {path}, which holds its own, got w.pt; leave it out."
    )
    assert message(load_model, path, model_args={"width": 2}) == (
        f"`model_args` must not be given for {path}, an ONNX file, got width; leave them out."
    )


def test_weights_that_are_not_finite(tmp_path):
    weight = numbers(3, 3)
    weight[0, 0] = np.nan
    path = saved(
        tmp_path / "net.onnx", [node("MatMul", "x fc.weight", "y")], {"x": ("N", 3)}, ["y"], {"fc.weight": weight}
    )
    assert message(load_model, path) == f"`model` must have finite weights, got NaN or infinity in fc.weight of {path}."


def test_two_inputs_go_through_load_model_but_are_no_classifier(tmp_path):
    path = saved(tmp_path / "net.onnx", [node("Add", "x z", "y")], {"x": ("N", 3), "z": ("N", 3)}, ["y"])
    network = load_model(path)
    assert network.input_names == ("x", "z")
    assert torch.equal(network(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert message(read, network, torch.ones(2, 3), None, (), "auto") == (
        "`model` must take inputs of shape (3,) from `data`, got the error: it takes 2 inputs (x, z), got 1."
    )


def test_two_outputs_are_a_tuple(tmp_path):
    nodes = [node("Relu", "x", "y"), node("Neg", "x", "z")]
    network = load_model(saved(tmp_path / "net.onnx", nodes, {"x": ("N", 3)}, ["y", "z"]))
    assert network.output_names == ("y", "z")
    assert [each.tolist() for each in network(torch.tensor([[-1.0, 2.0, 0.0]]))] == [[[0, 2, 0]], [[1, -2, 0]]]


# --- what becomes of a good file -------------------------------------------------------------------------------------


def test_layers_are_torchs_own_modules_with_the_files_names(tmp_path):
    network = load_onnx(small(tmp_path / "net.onnx"))
    kinds = {name: type(module) for name, module in network.named_modules() if name}
    assert kinds == {"Conv_a": nn.Conv2d, "fc": nn.Linear}
    assert torch.equal(network.fc.weight, torch.from_numpy(numbers(3, 6)))
    assert (network.input_names, network.output_names) == (("x",), ("scores",))
    assert sum(parameter.numel() for parameter in network.parameters()) == 6 * 18 + 6 + 18 + 3


def test_copies_and_pickles_compute_the_same(tmp_path):
    network, x = load_onnx(small(tmp_path / "net.onnx")), torch.randn(4, 2, 5, 5)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), network(x))
        assert twin.output_names == ("scores",)


def test_names_that_collide_or_that_torch_reserves(tmp_path):
    weights = {"train.weight": numbers(3, 3), "a.weight": numbers(3, 3, seed=1), "a.b.weight": numbers(3, 3, seed=2)}
    nodes = [node("MatMul", f"x{i} {name}", f"x{i + 1}") for i, name in enumerate(weights)]
    network = load_onnx(saved(tmp_path / "net.onnx", nodes, {"x0": ("N", 3)}, ["x3"], weights))
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    assert linears == ["train_2", "a", "a.b_2"] or linears == ["train_2", "a", "a_2.b"]
    assert torch.equal(network.get_submodule(linears[2]).weight, torch.from_numpy(numbers(3, 3, seed=2)).T)


def test_constant_nodes_are_parameters_like_initializers(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(numbers(4, 3), "w"))
    network = load_onnx(saved(tmp_path / "net.onnx", [constant, node("MatMul", "x w", "y")], {"x": ("N", 4)}, ["y"]))
    assert [tuple(parameter.shape) for parameter in network.parameters()] == [(3, 4)]


def test_an_addition_behind_a_product_is_its_bias(tmp_path):
    nodes = [node("MatMul", "x w", "a"), node("Add", "b a", "y")]
    constants = {"w": numbers(4, 3), "b": numbers(3)}
    network = load_onnx(saved(tmp_path / "net.onnx", nodes, {"x": ("N", 5, 4)}, ["y"], constants))
    (linear,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    assert torch.equal(linear.bias, torch.from_numpy(numbers(3)))
    assert len(network.program.steps) == 1


def test_a_table_that_is_also_the_last_layer_is_one_parameter(tmp_path):
    nodes = [
        node("Gather", "table.weight x", "e"),
        node("Transpose", "table.weight", "t", perm=[1, 0]),
        node("MatMul", "e t", "y"),
    ]
    path = saved(
        tmp_path / "net.onnx", nodes, {"x": ("N", 3)}, ["y"], {"table.weight": numbers(7, 4)}, kinds={"x": "int64"}
    )
    network = load_onnx(path)
    kinds = [type(module) for module in network.modules() if list(module.parameters(recurse=False))]
    assert kinds == [nn.Embedding, nn.Linear]
    assert sum(parameter.numel() for parameter in network.parameters()) == 28


def test_a_batch_that_the_file_fixes_is_free(tmp_path):
    nodes = [
        node("Reshape", "x shape", "a"),  # (1, 8, 3) to 2 groups, their channels shuffled
        node("Transpose", "a", "b", perm=[0, 2, 1, 3]),
        node("Reshape", "b back", "c"),
        node("Concat", "token c", "y", axis=1),
    ]
    constants = {"shape": whole(1, 2, 4, 3), "back": whole(1, 8, 3), "token": numbers(1, 1, 3)}
    network = load_onnx(saved(tmp_path / "net.onnx", nodes, {"x": (1, 8, 3)}, ["y"], constants))
    assert network.fixed_batch is None
    x = torch.randn(5, 8, 3)
    shuffled = x.view(5, 2, 4, 3).transpose(1, 2).reshape(5, 8, 3)
    token = torch.from_numpy(numbers(1, 1, 3)).expand(5, 1, 3)
    assert torch.equal(network(x), torch.cat([token, shuffled], 1))


def test_a_batch_that_can_not_be_freed_is_said(tmp_path):
    path = saved(tmp_path / "net.onnx", [node("Softmax", "x", "y", axis=0)], {"x": (4, 3)}, ["y"])
    network = load_onnx(path)
    assert network.fixed_batch == 4
    assert message(read, network, torch.ones(2, 3), None, (), "auto") == (
        "`model` must take inputs of shape (3,) from `data`, got the error: it takes 4 samples at once, as its ONNX "
        "file says, got 2; export it with an open batch axis."
    )


def test_sizes_are_computed_from_the_tensors(tmp_path):
    """Shape → Gather → Div → Concat → Reshape, as PyTorch's older exporter writes `x.view(n, 2, c // 2, …)`."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s i0", "n"),
        node("Gather", "s i1", "c"),
        node("Div", "c two", "half"),
        node("Unsqueeze", "n zero", "n1"),
        node("Unsqueeze", "half zero", "h1"),
        node("Concat", "n1 two1 h1 rest", "to", axis=0),
        node("Reshape", "x to", "y"),
    ]
    constants = {
        "i0": whole(0)[0],
        "i1": whole(1)[0],
        "two": whole(2)[0],
        "zero": whole(0),
        "two1": whole(2),
        "rest": whole(-1),
    }
    network = load_onnx(saved(tmp_path / "net.onnx", nodes, {"x": ("N", 6, 5)}, ["y"], constants))
    assert network(torch.zeros(7, 6, 5)).shape == (7, 2, 3, 5)
    assert network(torch.zeros(7, 4, 5)).shape == (7, 2, 2, 5)  # a layer before it has lost 2 channels


def test_other_open_axes(tmp_path):
    nodes = [node("Shape", "x", "s"), node("Slice", "s a b", "hw"), node("Concat", "nc hw", "to", axis=0),
             node("Resize", "small   to", "y", mode="nearest")]  # fmt: skip
    nodes.insert(0, node("MaxPool", "x", "small", kernel_shape=[2, 2], strides=[2, 2]))
    nodes[3:3] = [node("Slice", "s zero a", "nc")]
    constants = {"a": whole(2), "b": whole(4), "zero": whole(0)}
    path = saved(tmp_path / "net.onnx", nodes, {"x": ("N", 2, "H", "W")}, ["y"], constants)
    network = load_onnx(path)
    assert network(torch.zeros(3, 2, 10, 14)).shape == (3, 2, 10, 14)


def test_the_manner_of_tf2onnx(tmp_path):
    """Images as (N, H, W, C) that are transposed, padding at the end only, a mean over space, MatMul and Add."""
    nodes = [
        node("Transpose", "image t0", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t conv/kernel", "c", name="net/conv/Conv2D", pads=[0, 0, 1, 1], strides=[2, 2]),
        node("Add", "c conv/bias", "a"),
        node("Clip", "a low high", "r"),
        node("ReduceMean", "r", "m", axes=[2, 3], keepdims=0),
        node("MatMul", "m dense/kernel", "d", name="net/dense/MatMul"),
        node("Add", "d dense/bias", "l", name="net/dense/BiasAdd"),
        node("Softmax", "l", "scores", axis=1),
    ]
    nodes[0].input.pop()
    constants = {
        "conv/kernel": numbers(4, 3, 3, 3), "conv/bias": numbers(1, 4, 1, 1), "low": np.float32(0),
        "high": np.float32(6),
        "dense/kernel": numbers(4, 5), "dense/bias": numbers(5),
    }  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"image": ("unk", 8, 8, 3)}, ["scores"], constants)
    network = load_onnx(path)
    layers = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert layers == ["net.conv.Conv2D", "net.dense"]
    assert network.gives_probabilities
    traced = trace(network, torch.randn(1, 8, 8, 3))
    assert [(group.owner, group.width) for group in traced.groups] == [("net.conv.Conv2D", 4)]


def test_local_functions_are_inlined(tmp_path):
    body = [node("Mul", "a a", "b"), node("Relu", "b", "c")]
    function = helper.make_function("own", "SquareRelu", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("SquareRelu", ["x"], ["y"], domain="own")
    network = load_onnx(saved(tmp_path / "net.onnx", [call], {"x": ("N", 2)}, ["y"], functions=[function]))
    assert network(torch.tensor([[3.0, -2.0]])).tolist() == [[9.0, 4.0]]


def test_codes_of_weights_are_dequantized(tmp_path):
    constants = {"codes": np.array([[1, -2], [3, 4]], np.int8), "scale": np.array([0.5, 2.0], np.float32)}
    nodes = [node("DequantizeLinear", "codes scale", "w", axis=0), node("MatMul", "x w", "y")]
    network = load_onnx(saved(tmp_path / "net.onnx", nodes, {"x": ("N", 2)}, ["y"], constants))
    (linear,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    assert linear.weight.tolist() == [[0.5, 6.0], [-1.0, 8.0]]


def test_half_precision_computes_in_float32(tmp_path):
    weight = numbers(4, 3).astype(np.float16)
    path = saved(
        tmp_path / "net.onnx",
        [node("MatMul", "x w", "y")],
        {"x": ("N", 4)},
        ["y"],
        {"w": weight},
        kinds={"x": "float16"},
    )
    network = load_onnx(path)
    assert next(network.parameters()).dtype == torch.float32
    assert network(torch.ones(1, 4)).dtype == torch.float32
