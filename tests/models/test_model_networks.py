import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from autocompress.data import load_data
from autocompress.models import CifarResNet, DigitsNet, load_model
from autocompress.models.cifar_resnet import BasicBlock
from autocompress.models.digits_net import DIGITS_WEIGHTS

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared"
needs_shared = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared/models and ../shared/data")


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def resnet_parameters(depth):
    """Counted by hand: n blocks of two 3x3 convolutions a stage, two numbers a batch-norm channel, a bare shortcut."""
    blocks = (depth - 2) // 6
    stem = 3 * 16 * 9 + 2 * 16
    first = blocks * 2 * (16 * 16 * 9 + 2 * 16)
    second = (16 * 32 + 32 * 32) * 9 + 4 * 32 + (blocks - 1) * 2 * (32 * 32 * 9 + 2 * 32)
    third = (32 * 64 + 64 * 64) * 9 + 4 * 64 + (blocks - 1) * 2 * (64 * 64 * 9 + 2 * 64)
    return stem + first + second + third + 64 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "expected"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_resnet_parameters(depth, expected):
    assert resnet_parameters(depth) == expected
    assert parameters(CifarResNet(depth)) == expected


@pytest.mark.parametrize("depth", [20, 56])
@needs_shared
def test_resnet_names_and_shapes_are_the_checkpoints(depth):
    state = load_file(SHARED / f"models/resnet{depth}-cifar10-jpeg.safetensors")
    model = CifarResNet(depth).state_dict()
    ours = {name: tensor.shape for name, tensor in model.items() if not name.endswith("num_batches_tracked")}
    assert ours == {name: tensor.shape for name, tensor in state.items()}


def test_resnet_shortcut_takes_every_second_pixel_and_pads_a_quarter_on_each_side():
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = block(x)
    assert out[0, 1].tolist() == [[0, 2], [8, 10]]
    assert out[0, 2].tolist() == [[16, 18], [24, 26]]
    assert out[0, [0, 3]].abs().sum().item() == 0
    assert out.shape == (1, 4, 2, 2)


@needs_shared
def test_resnet20_accuracy_on_500_test_images():
    model = load_model("resnet20", SHARED / "models/resnet20-cifar10-jpeg.safetensors")
    inputs, labels = next(load_data(f"parquet:{SHARED / 'data/cifar10-jpeg'}").test_batches(500))
    with torch.inference_mode():
        accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
    assert 0.85 <= accuracy <= 0.93  # 87.4 % on all 5,000


def test_digits_net_parameters():
    stem, first = 9 * 16 + 32, 2 * (16 * 16 * 9 + 32)
    strided = (16 * 32 + 32 * 32) * 9 + 16 * 32 + 3 * 64  # two 3x3, the 1x1 shortcut, three norms
    last = 2 * (32 * 32 * 9 + 64)
    assert stem + first + strided + last + 32 * 10 + 10 == 38_266
    assert parameters(DigitsNet()) == 38_266


def test_digits_net_as_shipped_gets_356_of_360_test_images():
    model = load_model("digits")
    inputs, labels = next(load_data("digits").test_batches(360))
    with torch.inference_mode():
        correct = int((model(inputs).argmax(1) == labels).sum())
    assert abs(correct - 356) <= 1  # 98.9 %; a tie may fall the other way on another machine


def test_digits_net_learns_in_eight_epochs_and_repeats_itself():
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "benchmarks/train_digits.py")
    script = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    try:
        spec.loader.exec_module(script)
        inputs, labels = load_data("digits").search()
        first, second = (script.train(inputs, labels, epochs=8) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert script.accuracy(first, inputs, labels) > 0.5


def test_digits_training_shifts_by_at_most_one_pixel():
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "benchmarks/train_digits.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    x = torch.arange(1.0, 65).view(1, 1, 8, 8)
    padded = F.pad(x, (1, 1, 1, 1))
    shifts = {(i, j): padded[0, 0, i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = script.shifted(x.expand(200, 1, 8, 8))
    seen = {place for image in moved for place, shifted in shifts.items() if torch.equal(image[0], shifted)}
    assert moved.shape == (200, 1, 8, 8)
    assert seen == set(shifts)


def test_shipped_weights_are_small_and_complete():
    state = load_file(DIGITS_WEIGHTS)
    assert sum(tensor.numel() for tensor in state.values()) == 38_266 + 2 * (16 * 3 + 32 * 5)  # running statistics
