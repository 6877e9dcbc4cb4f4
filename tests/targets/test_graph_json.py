"""Graphs as text: what is written is read again exactly, and a text can call nothing but operators that compute."""

import copy
import json
import math
import operator

import pytest
import torch
from torch import fx, nn

from autocompress.errors import ExportError, InputError
from autocompress.targets.graph.operators import FUNCTIONS, find_operator, operator_name
from autocompress.targets.packed.graph_json import graph_from_json, graph_tensors, graph_to_json

aten = torch.ops.aten


def graph_of(build, root=None):
    """A graph module with one input, its output what `build(graph, x)` gives."""
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return fx.GraphModule(root or nn.Module(), graph)


def text_of(*nodes, output="%1"):
    return json.dumps({"nodes": list(nodes), "output": output})


def exported(model, x):
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    graph = program.run_decompositions({}).module()
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


class Attention(nn.Module):
    """Input 4x8. Sizes computed from the batch size, a constant, several results of one operator, a deep name."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"mix": nn.MultiheadAttention(8, 2, batch_first=True)})
        self.last = nn.Linear(8, 6)
        self.offset = torch.arange(8.0)

    def forward(self, x):
        samples, steps, width = x.shape
        y = self.inner["mix"](x, x, x, need_weights=False)[0] + self.offset
        y = y.reshape(samples * steps, width)[: samples * 4 - samples % 2]
        return self.last(torch.nn.functional.gelu(y, approximate="tanh")).chunk(2, 1)[1]


def test_text_of_a_small_graph_is_as_documented():
    root = nn.Module()
    root.conv = nn.Conv2d(1, 1, 1)

    def build(graph, x):
        weight = graph.get_attr("conv.weight")
        y = graph.call_function(aten.conv2d.default, (x, weight, None, [2, 2]))
        return (graph.call_function(aten.add.Tensor, (y, x), {"alpha": 2}),)

    text = graph_to_json(graph_of(build, root))
    assert text == (
        '{"nodes":[["aten.conv2d.default",["%1","@conv.weight",null,[2,2]]],'
        '["aten.add.Tensor",["%1","%2"],{"alpha":2}]],"output":"%1"}'
    )
    read = graph_from_json(text, {"conv.weight": torch.full((1, 1, 1, 1), 3.0)})
    assert torch.equal(read(torch.ones(1, 1, 1, 1)), torch.full((1, 1, 1, 1), 5.0))
    assert [type(each) for each in (read.conv.weight, read)] == [nn.Parameter, type(read)]
    assert not read.training
    assert not read.conv.weight.requires_grad


def test_free_batch_size_constants_and_copies():
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(7, 4, 8)
    graph = exported(model, x[:2])
    tensors = {name: tensor.clone() for name, tensor in graph_tensors(graph).items()}
    read = graph_from_json(graph_to_json(graph), tensors)
    assert read.state_dict().keys() == graph.state_dict().keys() == model.state_dict().keys()
    assert graph_to_json(read) == graph_to_json(graph)
    with torch.no_grad():
        for samples in (1, 7):
            assert torch.equal(read(x[:samples]), graph(x[:samples]))
        expected = read(x)
        copied = copy.deepcopy(read)
        read.last.weight.zero_()
        assert torch.equal(copied(x), expected)
        assert copied.to("meta").inner.mix.in_proj_weight.is_meta
        assert next(iter(copied.buffers())).is_meta


PLAIN = [
    None,
    True,
    False,
    0,
    -3,
    2**62,
    0.1,
    1.0,
    -0.0,
    1e-300,
    1 / 3,
    math.inf,
    -math.inf,
    float(torch.tensor(1 / 3)),
]
TAGGED = [
    torch.float16,
    torch.int64,
    torch.device("cpu"),
    torch.channels_last,
    torch.preserve_format,
    torch.strided,
    "none",
    "@text",
    "",
]


@pytest.mark.parametrize("value", [*PLAIN, *TAGGED, [1, [2.5, None]]], ids=repr)
def test_arguments_come_back_exactly(value):
    module = graph_of(lambda graph, x: graph.call_function(aten.permute.default, (x, value)))
    node = list(graph_from_json(graph_to_json(module), {}).graph.nodes)[1]
    assert repr(node.args[1]) == repr(value)
    assert type(node.args[1]) is type(value) or isinstance(value, list)


def test_not_a_number_comes_back_and_tuples_become_lists():
    module = graph_of(lambda graph, x: graph.call_function(aten.permute.default, (x, (math.nan, 1))))
    node = list(graph_from_json(graph_to_json(module), {}).graph.nodes)[1]
    assert math.isnan(node.args[1][0])
    assert list(node.args[1])[1:] == [1]


def test_scales_take_few_digits():
    scale = float(torch.tensor(0.0123456789))
    rounding = torch.ops.autocompress.round_activation.default
    text = graph_to_json(graph_of(lambda graph, x: graph.call_function(rounding, (x, scale, 3, 8))))
    assert text == '{"nodes":[["autocompress.round_activation.default",["%1","f0.012345679",3,8]]],"output":"%1"}'
    assert list(graph_from_json(text, {}).graph.nodes)[1].args[1] == scale


def test_devices_become_the_processor():
    made = (aten.zeros.default, ([2],), {"device": torch.device("meta"), "pin_memory": False})
    text = graph_to_json(graph_of(lambda graph, x: graph.call_function(*made)))
    assert graph_from_json(text, {})(torch.zeros(1)).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda graph, x: graph.call_function(print, (x,)),
            "A file can hold ATen operators that only compute, got print.",
        ),
        (
            lambda graph, x: graph.call_function(aten.relu_.default, (x,)),
            "A file can hold ATen operators that only compute, got aten.relu_.default.",
        ),
        (
            lambda graph, x: graph.call_method("relu", (x,)),
            "A file can hold inputs and calls of ATen operators, got call_method relu.",
        ),
        (
            lambda graph, x: (graph.call_function(aten.relu.default, (x,)), graph.placeholder("y")),
            "A file can hold inputs and calls of ATen operators, got placeholder y.",
        ),
        (lambda graph, x: (x, 3), "A file can hold a network that gives tensors, got (x, 3)."),
        (
            lambda graph, x: graph.call_function(aten.mul.Scalar, (x, 1j)),
            "A file can't hold an argument of aten.mul.Scalar: 1j of type complex.",
        ),
        (
            lambda graph, x: graph.call_function(aten.add.Tensor, (x, graph.get_attr("half"))),
            "A file can't hold a tensor of the name 'half': 'half' has another meaning.",
        ),
    ],
)
def test_what_a_file_may_not_hold_is_named(build, message):
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    module = fx.GraphModule({"half": torch.zeros(1)}, fx.Graph())
    module._graph = graph
    with pytest.raises(ExportError) as caught:
        graph_to_json(module)
    assert str(caught.value) == message


HARMFUL = ["os.system", "operator.attrgetter", "operator.methodcaller", "builtins.eval", "eval", "aten.nothing.default"]
HARMFUL += ["aten.relu.nothing", "aten.relu", "aten.from_file.default", "aten.relu_.default", "aten.add.out", ""]
HARMFUL += [
    "prim.Print.default",
    "aten.__class__.mro",
    "aten.relu.__class__",
    "aten.set_.source_Storage",
    "aten.save.default",
]
HARMFUL += ["torch.load", "math.prod", "autocompress.nothing.default", "aten.manual_seed.default", "aten.warn.default"]
HARMFUL += ["aten.set_grad_enabled.default", "quantized.add.default", "aten.relu.default\n", "aten._print.default"]


@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_but_computing_operators_is_called(name):
    assert find_operator(name) is None
    with pytest.raises(InputError) as caught:
        graph_from_json(text_of([name, ["%1"]]), {})
    assert str(caught.value) == f"The graph must call ATen operators that only compute, got {name!r}."


def test_functions_on_sizes_keep_their_names():
    assert len(FUNCTIONS) == 23
    assert all(operator_name(function) == name for name, function in FUNCTIONS.items())
    assert operator_name(operator.attrgetter) is None
    assert operator_name([]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "The graph must be JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        ('{"nodes": NaN}', "The graph must be JSON: NaN is no JSON."),
        ("[]", "The graph must be a mapping with a list `nodes`, got something else."),
        (text_of(output=1), "The graph must have values as `output`, got 1."),
        (text_of("a"), "The graph must have nodes of a name, arguments and named arguments, got another."),
        (text_of(["aten.relu.default", ["%2"]]), "The graph must refer to values before, got '%2' at value 1."),
        (text_of(["aten.relu.default", ["%0"]]), "The graph must refer to values before, got '%0' at value 1."),
        (text_of(["aten.relu.default", ["%-1"]]), "The graph must refer to values before, got '%-1' at value 1."),
        (text_of(["aten.relu.default", ["?"]]), "The graph must have arguments of a known kind, got '?'."),
        (text_of(["aten.relu.default", ["dfloat8"]]), "The graph must have arguments of a known kind, got 'dfloat8'."),
        (text_of(["aten.relu.default", [{}]]), "The graph must have arguments without mappings, got one."),
        (text_of(["aten.relu.default", [[[[[[]]]]]]]), "The graph must have lists of at most 4 levels, got more."),
        (
            text_of(["aten.relu.default", ["%1"], {"a); import os": 1}]),
            "The graph must call aten.relu.default with its arguments, "
            "got 1 by position and ['a); import os'] by name.",
        ),
        (
            text_of(["operator.add", ["%1", 1], {"a": 1}]),
            "The graph must call operator.add with its arguments, got 2 by position and ['a'] by name.",
        ),
        (
            text_of(["operator.add", ["%1"]]),
            "The graph must call operator.add with its arguments, got 1 by position and [] by name.",
        ),
        (
            text_of(["aten.relu.default", ["%1"], {"self": "%1"}]),
            "The graph must call aten.relu.default with its arguments, got 1 by position and ['self'] by name.",
        ),
        (
            text_of(["aten.add.Tensor", ["%1"], {"alpha": 2}]),
            "The graph must call aten.add.Tensor with its arguments, got 1 by position and ['alpha'] by name.",
        ),
        (
            text_of(["aten.add.Tensor", ["%1", 1, 2]]),
            "The graph must call aten.add.Tensor with its arguments, got 3 by position and [] by name.",
        ),
        (
            text_of(["aten.relu.default", ["@a.b"]]),
            "The graph must have tensors that are in the file, got a.b, which is not.",
        ),
        (
            text_of(["aten.add.Tensor", ["@a", "&a"]]),
            "The graph must have one kind for each tensor, got two for a.",
        ),
        (
            text_of(["aten.add.Tensor", ["@a", "@a.c"]]),
            "The graph must have names that do not contain another, got a.c.",
        ),
        (
            text_of(["aten.add.Tensor", ["@d.e", "@d"]]),
            "The graph must have names that do not contain another, got d.",
        ),
    ],
)  # fmt: skip
def test_damaged_graphs_are_refused(text, message):
    tensors = {name: torch.zeros(1) for name in ("a", "a.c", "d", "d.e")}
    with pytest.raises(InputError) as caught:
        graph_from_json(text, tensors)
    assert str(caught.value) == message


INJECTION = 'a"); import os; os.abort(); ("'


@pytest.mark.parametrize(
    "name", [INJECTION, "forward", "_parameters.a", "a.class", "a..b", "", "ä", ".".join("a" * 65)]
)
def test_names_that_python_or_modules_would_take_otherwise_are_refused(name):
    """fx writes names into source code: none may say more than a name."""
    with pytest.raises(InputError) as caught:
        graph_from_json(text_of(["aten.relu.default", [f"@{name}"]]), {name: torch.zeros(1)})
    assert str(caught.value) == f"The graph must have tensors with names of modules, got {name[:80]!r}."


def test_texts_are_no_code():
    """A string argument is written into the source as a literal."""
    text = text_of(["aten.gelu.default", ["%1"], {"approximate": "=none'); import os; os.abort(); ('"}])
    with pytest.raises(RuntimeError, match="approximate argument must be either none or tanh"):
        graph_from_json(text, {})(torch.zeros(1))


def test_deep_nesting_is_refused():
    with pytest.raises(InputError, match=r"^The graph must be JSON: it is nested too deeply"):
        graph_from_json("[" * 100_000, {})


def test_two_outputs_come_back_in_their_order():
    graph = graph_of(lambda graph, x: (graph.call_function(torch.ops.aten.relu.default, (x,)), x))
    text = graph_to_json(graph)
    assert '"output":["%1","%2"]' in text
    x = torch.randn(3, 4)
    first, second = graph_from_json(text, {})(x)
    assert torch.equal(first, x.relu())
    assert torch.equal(second, x)
