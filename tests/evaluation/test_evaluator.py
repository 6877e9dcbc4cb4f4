"""The evaluator: what it measures, what it counts, what it leaves alone, and what it refuses."""

import copy
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_toys import menus_of, network, original_labels, random_labels
from torch import Tensor, nn

from autocompress import memory
from autocompress.data import load_data
from autocompress.errors import InputError
from autocompress.evaluation import DTYPES, Evaluator, choose_dtype, number_format
from autocompress.evaluation.measure import compare
from autocompress.evaluation.number_format import batch_sizes, fastest_batch
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.models import load_model
from autocompress.network import trace
from autocompress_envs import Labeling

Digits = tuple[nn.Module, Tensor, Tensor, Menus]


@pytest.fixture(scope="module")
def digits() -> Digits:
    model, data = load_model("digits"), load_data("digits", search_samples=200, calibration_samples=200)
    calibration, _ = data.calibration()
    inputs, labels = data.search()
    settings = MenuSettings(weight_bits=(2, 4, 32), activation_bits=(4, 8, 32), sparsity_levels=2)
    menus = build_menus(model, trace(model, inputs[:1]), calibration, settings, data_fingerprint="", jobs=1)
    assert labels is not None
    return model, inputs, labels, menus


def evaluator(digits: Digits, **options: Any) -> Evaluator:
    model, inputs, labels, menus = digits
    given = {"dtype": "float32", "batch_size": 50} | options
    return Evaluator(model, menus.network, menus, inputs, labels, **given)


def at(menus: Menus, sparsity: int, weight_bits: int, activation_bits: int) -> Labeling:
    layers = menus.problem().layers
    return Labeling(
        np.array([min(sparsity, len(layer.sparsities) - 1) for layer in layers]),
        np.full(len(layers), weight_bits),
        np.full(len(layers), activation_bits),
    )


def test_the_original_plan_is_the_original(digits: Digits) -> None:
    model, inputs, labels, menus = digits
    evaluate = evaluator(digits)
    outcome = evaluate(original_labels(menus.problem()))
    assert outcome.kl < 1e-6
    assert outcome.agreement == 1.0
    with torch.no_grad():
        assert outcome.accuracy == float((model(inputs).argmax(1) == labels).double().mean()) > 0.97
    assert outcome.resources == menus.problem().original()


@pytest.mark.parametrize("name", ["concat", "inverted residual", "sequence"])
def test_the_original_plan_of_other_networks(name: str) -> None:
    model, x = network(name)
    menus = menus_of(model, x)
    outcome = Evaluator(model, menus.network, menus, x, None, dtype="float32")(original_labels(menus.problem()))
    assert outcome.kl < 1e-6
    assert np.isnan(outcome.accuracy)


def test_outcomes_are_those_of_the_stitched_network(digits: Digits) -> None:
    model, inputs, labels, menus = digits
    evaluate = evaluator(digits)
    labeling = at(menus, 1, 1, 1)
    outcome = evaluate(labeling)
    with torch.no_grad():
        found = compare(model(inputs), evaluate.stitched(labeling)(inputs), labels)
    assert outcome.kl == pytest.approx(found.kl, rel=1e-4)
    assert (outcome.accuracy, outcome.agreement) == (found.accuracy, found.agreement)


def test_more_compression_diverges_more(digits: Digits) -> None:
    menus, evaluate = digits[3], evaluator(digits)
    four, two = evaluate(at(menus, 0, 1, 2)), evaluate(at(menus, 0, 0, 2))
    coarse, pruned = evaluate(at(menus, 0, 2, 0)), evaluate(at(menus, 1, 2, 2))
    assert 1e-5 < four.kl < 5e-3 < two.kl < 1
    assert 1e-5 < coarse.kl < 0.01
    assert four.kl < pruned.kl
    assert four.accuracy > 0.97


def test_plans_seen_before_cost_nothing(digits: Digits) -> None:
    menus, evaluate = digits[3], evaluator(digits)
    assert evaluate.evaluations == 0
    first = evaluate(at(menus, 1, 1, 1))
    seconds = evaluate.forward_seconds
    assert seconds > 0
    assert evaluate(at(menus, 1, 1, 1)) is first
    assert (evaluate.evaluations, evaluate.forward_seconds) == (1, seconds)
    evaluate(at(menus, 1, 1, 2))
    evaluate(at(menus, 0, 1, 1))
    assert evaluate.evaluations == 3


def test_batch_size_does_not_matter(digits: Digits) -> None:
    labeling = at(digits[3], 1, 1, 2)
    measured = [evaluator(digits, batch_size=size)(labeling) for size in (200, 64, 7)]
    assert max(outcome.kl for outcome in measured) == pytest.approx(min(outcome.kl for outcome in measured), rel=1e-3)
    assert len({outcome.accuracy for outcome in measured}) == 1


def test_half_precision_measures_the_same(digits: Digits) -> None:
    labeling = at(digits[3], 1, 0, 1)
    exact, rough = (evaluator(digits, dtype=dtype)(labeling) for dtype in ("float32", "bfloat16"))
    assert rough.kl == pytest.approx(exact.kl, rel=0.1)
    assert abs(rough.accuracy - exact.accuracy) < 0.02


class Sleeper(nn.Module):
    """Input 4: logits around an offset; a forward pass takes 50 ms in float32 or where a batch is not of 128."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.head, self.offset = nn.Linear(4, 3), offset

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05 if x.dtype == torch.float32 or len(x) != 128 else 0.0)
        return self.head(x) + self.offset


@pytest.mark.parametrize(("offset", "expected"), [(0.0, "bfloat16"), (300.0, "float32")])
def test_faster_dtypes_are_taken_only_where_they_are_true(offset: float, expected: str) -> None:
    """bfloat16 has 8 bits: around 300 its steps are 2, as large as the logits' differences; around 0 they are fine."""
    torch.manual_seed(0)
    model, x = Sleeper(offset).eval(), torch.randn(256, 4)
    assert choose_dtype(model, x, model) == expected
    with torch.no_grad():
        noise = compare(model(x), model.bfloat16()(x.bfloat16()).float(), None).kl
    assert (noise < 0.002) == (expected == "bfloat16")


def test_the_fastest_batch_is_taken() -> None:
    assert fastest_batch(Sleeper(0.0).eval(), torch.randn(256, 4), "bfloat16", torch.device("cpu")) == 128


@pytest.mark.parametrize(
    ("most", "sizes"), [(1000, (64, 128, 256)), (255, (16, 64, 128)), (64, (4, 16, 64)), (63, (1, 4, 16)), (3, (1,))]
)
def test_only_batches_that_fit_are_timed(monkeypatch: pytest.MonkeyPatch, most: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(most) == sizes
    seen = set()
    model = nn.Linear(4, 3).eval()
    timed = number_format._timed
    monkeypatch.setattr(number_format, "_timed", lambda *args: seen.add(args[-1]) or timed(*args))
    assert fastest_batch(model, torch.randn(256, 4), "float32", torch.device("cpu"), most) in sizes
    assert seen == (set(sizes) if len(sizes) > 1 else set())


def test_the_limit_on_memory_bounds_every_forward_pass(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of one sample's activations count for each sample: a limit of 33 of them holds batches of 16."""
    model, inputs, labels, menus = digits
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**6)
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    try:
        limit = 10**6 + 33 * menus.network.activation_bytes
        evaluate = Evaluator(model, menus.network, menus, inputs, labels, dtype="auto", memory=limit)
    finally:
        handle.remove()
    assert evaluate.batch_size in (1, 4, 16)
    assert max(seen) == 16
    free = evaluator(digits)(at(menus, 1, 1, 2)).kl
    assert evaluate(at(menus, 1, 1, 2)).kl == pytest.approx(free, rel=0.1)


def test_auto_measures_and_picks(digits: Digits) -> None:
    evaluate = evaluator(digits, dtype="auto", batch_size=None)
    assert evaluate.dtype in DTYPES
    assert evaluate.batch_size in (64, 128, 256)
    assert evaluate(original_labels(digits[3].problem())).kl < 2e-3
    assert evaluate.evaluations == 1


def test_the_model_and_the_data_stay_as_they_are() -> None:
    model, x = network("inverted residual")
    menus = menus_of(model, x)
    model.train()
    model.expand.eval()
    model.stem[0].weight.requires_grad_(False)
    calls = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, inputs = copy.deepcopy(model.state_dict()), x.clone()
    modes = [module.training for module in model.modules()]
    random_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - is it left alone?
    threads = torch.get_num_threads()

    evaluate = Evaluator(model, menus.network, menus, x, None, dtype="auto")
    rng = np.random.default_rng(0)
    for _ in range(3):
        evaluate(random_labels(menus.problem(), rng))
        evaluate.stitched(random_labels(menus.problem(), rng))

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [len(module._forward_pre_hooks) for module in model.modules()] == [0] * len(modes)
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 1
    assert handle.id in model.head._forward_hooks
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(list(model.parameters())) - 1)
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert torch.equal(x, inputs)
    assert model(x).requires_grad


def refused(model: nn.Module, menus: Menus, x: Tensor, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Evaluator(model, menus.network, menus, x, None, **options)


def test_what_is_refused() -> None:
    model, x = network("sequence")
    menus = menus_of(model, x)
    names = "auto, bfloat16, float16, float32"
    refused(model, menus, x, f"`dtype` must be one of {names}, got 'int8'.", dtype="int8")
    refused(model, menus, x[:0], "`data` must leave at least one sample for the search split, got none.")
    refused(model, menus, x, "`device` must be such as auto, cpu or cuda:0, got 'gpu'.", device="gpu")
    if not torch.cuda.is_available():
        message = "`device` must exist on this machine, got 'cuda:0' without CUDA; use cpu."
        refused(model, menus, x, message, device="cuda:0")
    message = "`model` must give finite outputs, got NaN or infinity; check the weights and the data."
    broken = x.clone()
    broken[5] = float("nan")
    refused(model, menus, broken, message)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    refused(model, menus, x, message)


class Loud(nn.Module):
    """Input 4: inner values of about 1e6, which float16 (up to 65,504) can't hold; at most `room` samples at once."""

    room = 1000

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.head(torch.relu(1e6 * self.hidden(x)) / 1e6)


def loud() -> tuple[nn.Module, Menus, Tensor]:
    torch.manual_seed(0)
    model, x = Loud().eval(), torch.randn(40, 4)
    return model, menus_of(model, x, activation_bits=(32,)), x  # rounding would clamp infinity to a range's end


def test_plans_that_leave_the_range_of_a_dtype_are_run_in_float32() -> None:
    (model, menus, x), told = loud(), []
    given: dict[str, Any] = {"batch_size": 16, "note": told.append}
    rough = Evaluator(model, menus.network, menus, x, None, dtype="float16", **given)
    exact = Evaluator(model, menus.network, menus, x, None, dtype="float32", **given)
    rng = np.random.default_rng(0)
    for _ in range(4):
        labeling = random_labels(menus.problem(), rng)
        assert rough(labeling).kl == pytest.approx(exact(labeling).kl, rel=1e-4, abs=1e-7)
    assert told == ["a plan's outputs are not finite in float16; it is run in float32, as are others like it"]
    assert rough.dtype == "float16"


def test_a_full_device_halves_the_batches_of_all_plans_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    (model, menus, x), told, rng = loud(), [], np.random.default_rng(0)
    labelings = [random_labels(menus.problem(), rng) for _ in range(3)]
    evaluate, roomy = (
        Evaluator(model, menus.network, menus, x, None, dtype="float32", batch_size=32, note=told.append)
        for _ in range(2)
    )
    expected = [roomy(labeling).kl for labeling in labelings]
    monkeypatch.setattr(Loud, "room", 10)
    assert [evaluate(labeling).kl for labeling in labelings] == pytest.approx(expected, rel=1e-5)
    assert told == ["cpu has no memory for batches of 32; they have 8 samples from here on"]
    assert evaluate.batch_size == 8


def test_tensors_on_any_device_are_taken() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    model, x = network("concat")
    menus, found = menus_of(model, x), []
    for device in ("cpu", "cuda"):
        evaluate = Evaluator(model, menus.network, menus, x.to(device), None, dtype="float32", device=device)
        labeling = random_labels(menus.problem(), np.random.default_rng(0))
        found.append(evaluate(labeling).kl)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert next(model.parameters()).device.type == "cpu"
