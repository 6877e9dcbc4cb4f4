import os
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.errors import InputError
from autocompress.models import has_random_weights, load_model, load_weights_
from autocompress.models.digits_net import DIGITS_WEIGHTS

MODEL_SCRIPT = """
from torch import nn

def linear(inputs=4, classes=3):
    return nn.Linear(inputs, classes)

def words():
    return "a model"

def broken():
    model = nn.Linear(2, 2)
    model.weight.data[0, 1] = float("nan")
    return model
"""


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "my_models.py"
    file.write_text(MODEL_SCRIPT)
    return file


@pytest.fixture
def state():
    return load_model("digits").state_dict()


def test_digits_needs_no_weights_and_is_in_eval_mode():
    model = load_model("digits")
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.linear.weight, load_model("digits", DIGITS_WEIGHTS).linear.weight)


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"])
def test_cifar_resnets_need_weights(name):
    expected = f"`weights` must be given for {name}, which has none of its own; pass --weights FILE."
    assert message(load_model, name) == expected


def test_cifar_resnet_with_five_classes(tmp_path):
    from autocompress.models import CifarResNet

    source = CifarResNet(20, num_classes=5)
    save_file(source.state_dict(), tmp_path / "five.safetensors")
    model = load_model("resnet20", tmp_path / "five.safetensors", num_classes=5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("form", ["alone", "state_dict", "model", "data_parallel", "old"])
def test_state_dict_round_trip_through_pytorch_files(tmp_path, state, form):
    changed = {name: value + 1 for name, value in state.items()}
    content = {
        "state_dict": {"state_dict": changed, "epoch": 3},
        "model": {"model": changed},
        "data_parallel": {f"module.{name}": value for name, value in changed.items()},
    }.get(form, changed)
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=form != "old")
    loaded = load_model("digits", tmp_path / "w.pth").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in changed.items())


def test_half_precision_weights_become_float32(tmp_path, state):
    floats = {name: value.bfloat16() for name, value in state.items() if value.is_floating_point()}
    save_file(floats, tmp_path / "w.safetensors")
    model = load_model("digits", str(tmp_path / "w.safetensors"))
    assert model.linear.weight.dtype == torch.float32
    assert torch.equal(model.linear.weight, floats["linear.weight"].float())


def mismatch(state, kind):
    state = dict(state)
    if kind == "missing":
        del state["conv1.weight"], state["linear.bias"]
    elif kind == "unexpected":
        state |= {f"extra{index}": torch.zeros(1) for index in range(5)}
    else:
        state = {name: value for name, value in state.items() if name != "bn1.bias"}
        state |= {"linear.weight": torch.zeros(3, 32), "fc.bias": torch.zeros(3)}
    return state


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "2 missing (conv1.weight, linear.bias)"),
        ("unexpected", "5 unexpected (extra0, extra1, extra2, …)"),
        ("all", "1 missing (bn1.bias); 1 unexpected (fc.bias); 1 of another shape (linear.weight (3, 32) instead of "
         "(10, 32))"),
    ],
)  # fmt: skip
def test_mismatched_weights_are_listed_and_nothing_is_loaded(tmp_path, state, kind, expected):
    file = tmp_path / "w.pt"
    torch.save(mismatch(state, kind), file)
    model = load_model("digits")
    nn.init.zeros_(model.layer1[0].conv1.weight)
    assert message(load_weights_, model, file) == f"`weights` must match the model, got {file} with {expected}."
    assert model.layer1[0].conv1.weight.abs().sum().item() == 0


def test_only_num_batches_tracked_may_be_missing(tmp_path, state):
    save_file({name: value for name, value in state.items() if "tracked" not in name}, tmp_path / "w.safetensors")
    assert load_model("digits", tmp_path / "w.safetensors").bn1.num_batches_tracked.item() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, state, value):
    file = tmp_path / "w.safetensors"
    state["layer2.1.conv2.weight"][3, 2, 1, 0] = value
    save_file(state, file)
    expected = f"`weights` must be finite, got NaN or infinity in layer2.1.conv2.weight of {file}."
    assert message(load_model, "digits", file) == expected


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2"])
def test_weights_of_another_kind_of_number(tmp_path, state, ending, dtype):
    file = tmp_path / f"w.{ending}"
    state = {**state, "linear.weight": state["linear.weight"].to(getattr(torch, dtype))}
    save_file(state, file) if ending == "safetensors" else torch.save(state, file)
    model = load_model("digits")
    before = model.linear.weight.clone()
    assert message(load_weights_, model, file) == (
        "`weights` must hold float16, bfloat16, float32 or float64 in linear.weight, as the model does, got "
        f"torch.{dtype} in {file}; save the weights as the network computes with them."
    )
    assert torch.equal(model.linear.weight, before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_counters_of_any_width(tmp_path, state, dtype):
    torch.save({**state, "bn1.num_batches_tracked": torch.tensor(3, dtype=dtype)}, tmp_path / "w.pt")
    assert load_model("digits", tmp_path / "w.pt").bn1.num_batches_tracked.item() == 3


def test_buffers_keep_their_kind(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("index", torch.arange(3))
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    file = tmp_path / "w.pt"
    torch.save({**model.state_dict(), "index": torch.arange(3, dtype=torch.int16)}, file)
    load_weights_(model, file)
    for name, wanted in (("index", "integers"), ("mask", "true and false")):
        torch.save({**model.state_dict(), name: torch.ones(3)}, file)
        assert message(load_weights_, model, file) == (
            f"`weights` must hold {wanted} in {name}, as the model does, got torch.float32 in {file}; save the weights "
            "as the network computes with them."
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["sparse", "quantized", "empty (meta)"])
def test_tensors_that_are_not_plain(tmp_path, state, form):
    weight, file = state["linear.weight"], tmp_path / "w.pt"
    state["linear.weight"] = {
        "sparse": lambda: weight.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "empty (meta)": lambda: weight.to("meta"),
    }[form]()
    torch.save(state, file)
    assert message(load_model, "digits", file) == (
        f"`weights` must hold plain tensors, got linear.weight of {file}, which is {form}; save a state dict of "
        "float32 tensors."
    )


def test_models_of_tensors_that_are_not_plain(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, dtype=None):\n"
        "        super().__init__()\n"
        "        eye = torch.eye(2)\n"
        "        self.register_buffer('eye', eye.to(getattr(torch, dtype)) if dtype else eye.to_sparse())\n"
    )
    for arguments, form in (({}, "sparse"), ({"dtype": "float8_e5m2"}, "torch.float8_e5m2")):
        assert message(load_model, f"{tmp_path / 'nets.py'}:Net", model_args=arguments) == (
            f"`model` must have plain tensors such as float32, got eye of {tmp_path / 'nets.py'}:Net, which is {form}."
        )


def test_flipped_bits_in_a_pytorch_file(tmp_path, state):
    file = tmp_path / "w.pt"
    torch.save(state, file)
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        record = max(archive.infolist(), key=lambda each: each.file_size)
    start = content.index(record.filename.encode(), record.header_offset) + record.file_size // 2 + 100
    file.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    assert message(load_model, "digits", file) == (
        f"`weights` must be an undamaged PyTorch file, got {file}: the checksum of {record.filename} is wrong."
    )


def test_no_flipped_bit_in_a_pytorch_file_changes_a_weight(tmp_path):
    model = nn.Linear(3, 2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    content, file = (tmp_path / "w.pt").read_bytes(), tmp_path / "flipped.pt"
    for position in range(0, len(content), 7):
        file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        other = nn.Linear(3, 2)
        try:
            load_weights_(other, file)
        except InputError:
            continue
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items()), position


def test_a_pytorch_file_that_bursts(tmp_path, state, monkeypatch):
    file = tmp_path / "w.pt"
    torch.save(state, file)
    monkeypatch.setattr("autocompress.models.weights.memory_limit", lambda _: 10_000)
    text = message(load_model, "digits", file)
    assert text.startswith(f"`weights` must fit into the 10 kB of memory that are left, got {file} with ")


def test_pipes_and_devices_are_no_weights(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    os.symlink("/dev/zero", tmp_path / "w.safetensors")
    for name, kind in (("w.pt", "a pipe"), ("w.safetensors", "a device")):
        assert message(load_model, "digits", tmp_path / name) == (
            f"`weights` must be a regular file, got {tmp_path / name}, which is {kind}."
        )


class Unsafe:
    """Pickles to a call that would leave a folder."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_code_in_a_weight_file_never_runs(tmp_path):
    file = tmp_path / "w.pt"
    torch.save({"state_dict": Unsafe(tmp_path / "trace")}, file)
    assert message(load_model, "digits", file) == (
        f"`weights` must hold tensors only, got {file}, damaged or with other objects; save model.state_dict()."
    )
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.pt", None, "`weights` must be an existing file, got {file}."),
        ("w.bin", b"", "`weights` must end in .safetensors, .pt, .pth, got {file}."),
        ("w.pt", b"", "`weights` must be a readable PyTorch file, got {file}: EOFError."),
        ("w.pth", b"<html>", "`weights` must hold tensors only, got {file}, damaged or with other objects; save "
         "model.state_dict()."),
        ("w.safetensors", b"", "`weights` must be a readable safetensors file, got {file}: Error while deserializing "
         "header: header too small."),
        ("w.safetensors", DIGITS_WEIGHTS.read_bytes()[:-4], "`weights` must be a readable safetensors file, got {file}"
         ": Error while deserializing header: incomplete metadata, file not fully covered."),
    ],
)  # fmt: skip
def test_missing_and_corrupt_files(tmp_path, name, content, expected):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    assert message(load_model, "digits", file) == expected.format(file=file)


def test_truncated_pytorch_file(tmp_path, state):
    file = tmp_path / "w.pt"
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-3000])
    assert message(load_model, "digits", file) == (
        f"`weights` must be an undamaged PyTorch file, got {file}: File is not a zip file."
    )


def test_a_list_is_not_a_state_dict(tmp_path):
    file = tmp_path / "w.pt"
    torch.save([torch.zeros(1)], file)
    assert message(load_model, "digits", file) == (
        f"`weights` must hold a state dict, alone or under state_dict or model, got none in {file}."
    )


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"])
def test_zoo_models_get_the_same_random_weights_and_leave_the_random_state(spec):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model(spec, num_classes=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = load_model(spec, model_args={"num_classes": 7})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with torch.inference_mode():
        assert first(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert has_random_weights(spec, None)
    assert not has_random_weights(spec, "w.pt")


def test_only_zoo_models_without_weights_count_as_random(script):
    assert [has_random_weights(spec, None) for spec in ("digits", "resnet20", f"{script}:linear")] == [False] * 3


@pytest.mark.parametrize(
    ("zoo", "name", "near"), [("torchvision", "resnet19", "resnet18"), ("timm", "resnet51t", "resnet51")]
)
def test_unknown_zoo_name_lists_near_ones(zoo, name, near):
    text = message(load_model, f"{zoo}:{name}")
    assert text.startswith(f"`model` {zoo}:NAME must be one of its ")
    assert near[:6] in text.split("such as ")[1].split(", got")[0]
    assert text.endswith(f", got {name!r}.")


def test_detection_models_are_not_offered():
    assert "got 'fasterrcnn_resnet50_fpn'." in message(load_model, "torchvision:fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_missing_package(monkeypatch, zoo):
    monkeypatch.setitem(sys.modules, zoo, None)
    assert message(load_model, f"{zoo}:resnet18") == (
        f"`model` {zoo}:NAME needs the package {zoo}, got none; run pip install 'autocompress[vision]'."
    )


def test_arguments_that_do_not_fit(script):
    assert message(load_model, "torchvision:squeezenet1_1", model_args={"depth": 3}) == (
        "`model_args` must fit torchvision:squeezenet1_1, got depth: "
        "SqueezeNet.__init__() got an unexpected keyword argument 'depth'."
    )
    assert message(load_model, "digits", model_args={"depth": 3}) == (
        "`model_args` of digits must be num_classes only, got depth."
    )
    assert message(load_model, "digits", model_args={"num_classes": 3}, num_classes=4) == (
        "`num_classes` must agree with `model_args`, got 4 and 3."
    )
    assert message(load_model, f"{script}:linear", model_args={"depth": 3}) == (
        f"`model_args` must fit {script}:linear, got depth: got an unexpected keyword argument 'depth'."
    )


@pytest.mark.parametrize(
    ("spec", "argument"),
    [
        ("torchvision:squeezenet1_1", {"weights": "DEFAULT"}),
        ("timm:mobilenetv3_small_050", {"pretrained": True}),
        ("timm:mobilenetv3_small_050", {"checkpoint_path": "evil.pt"}),
        ("timm:mobilenetv3_small_050", {"pretrained_cfg_overlay": {"url": "http://x"}}),
    ],
)
def test_arguments_that_download_or_unpickle(spec, argument):
    assert message(load_model, spec, model_args=argument) == (
        f"`model_args` of {spec} must not load weights, got {next(iter(argument))}: nothing is downloaded, and a "
        "checkpoint may hold code; pass --weights FILE."
    )


def test_digits_with_another_class_count_names_the_shapes():
    assert message(load_model, "digits", num_classes=3) == (
        f"`weights` must match the model, got {DIGITS_WEIGHTS} with 2 of another shape "
        "(linear.weight (10, 32) instead of (3, 32), linear.bias (10,) instead of (3,))."
    )


def test_callable_in_a_file_and_in_a_module(script, monkeypatch):
    assert load_model(f"{script}:linear", model_args={"inputs": 7}).weight.shape == (3, 7)
    monkeypatch.syspath_prepend(script.parent)
    assert load_model("my_models:linear", num_classes=9).weight.shape == (3, 4)  # takes its own arguments only


def test_callable_with_weights(script, tmp_path):
    save_file({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert load_model(f"{script}:linear", tmp_path / "w.safetensors").weight.sum().item() == 12


def test_wrong_callables(script):
    assert message(load_model, f"{script}:words") == (
        f"`model` must give a torch.nn.Module, got str from {script}:words."
    )
    assert message(load_model, f"{script}:broken") == (
        f"`model` must have finite weights, got NaN or infinity in weight of {script}:broken."
    )
    assert (
        message(load_model, f"{script}:nothing")
        == f"`model` must name a callable, but {script} has no callable 'nothing'."
    )
    assert message(load_model, "my model:") == (
        "`model` must read package.module:callable or file.py:callable, got 'my model:'."
    )
    assert message(load_model, "no.such:thing") == (
        "`model` must name a module that can be imported, got 'no.such': No module named 'no'."
    )


def test_unknown_model():
    assert message(load_model, "resnet21") == (
        "`model` must be one of FILE.onnx, digits, file.py:callable, hf:FOLDER, package.module:callable, resnet110, "
        "resnet20, resnet32, resnet44, resnet56, timm:NAME, torchvision:NAME, got 'resnet21' (did you mean "
        "resnet20?)."
    )
