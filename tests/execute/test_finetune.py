"""Fine-tuning: what it gains, that it never loses, and what it refuses."""

import copy
import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from execute_toys import digits, levels, outputs, same, same_state, state, unlabeled
from torch import nn

from autocompress.data.sources import Source
from autocompress.errors import InputError
from autocompress.evaluation import measure
from autocompress.execute.compressed import Compressed, kept_map, uncompressed
from autocompress.execute.distillation import Objective
from autocompress.execute.finetune import finetune, trainable
from autocompress.execute.pipeline import kept_parts
from autocompress.execute.tuning import FineTuning, KeptParts

_QUICK = FineTuning(epochs=0.5, batch_size=64, augmentation="none")


@dataclass(eq=False)
class Recorded:
    """A source that remembers which samples were asked for."""

    source: Source
    loads: list = field(default_factory=list)

    def __len__(self):
        return len(self.source)

    def load(self, indices):
        self.loads.append(list(indices))
        return self.source.load(indices)


def damaged(bits=2, granularity="channel", sparsity=0.0):
    toy = digits(granularity)
    return toy, toy.compressed(sparsity, bits, 8)[0]


def copied(compressed):
    return Compressed(copy.deepcopy(compressed.model), copy.deepcopy(dict(compressed.layers)), compressed.plan)


def search_loss(toy, compressed, objective):
    """The loss on the search split, one pass."""
    inputs, labels = toy.data.search()
    with torch.no_grad():
        return float(objective.predictions_loss(compressed.rounded()(inputs), toy.folded(inputs), labels))


def test_it_repairs_a_damaged_network_and_changes_nothing_it_was_given():
    toy, compressed = damaged(sparsity=0.5)
    given, teacher, modes = copied(compressed), state(toy.folded), [each.training for each in toy.folded.modules()]
    gradients = [each.requires_grad for each in toy.folded.parameters()]
    told, objective = [], Objective(hard=0.25)
    settings = FineTuning(epochs=2, batch_size=64, augmentation="none", objective=objective, learning_rate=3e-2)
    tuned = finetune(compressed, toy.folded, toy.data, settings, progress=told.append)
    before, after = (
        measure(toy.folded, each.rounded(), toy.data.test_batches()) for each in (compressed, tuned.compressed)
    )
    assert before.accuracy < 0.9
    assert after.accuracy > before.accuracy + 0.05
    assert after.kl < 0.65 * before.kl
    # 1437 training samples less 200 to judge on, in batches of 64: 20 steps an epoch.
    assert (tuned.steps, tuned.diverged) == (40, False)
    assert tuned.best_step in (20, 40)
    assert [step.step for step in told if step.step % 20 == 0] == [20, 40]
    last = told[-1]
    assert (last.step, last.total, last.seconds_left) == (40, 40, 0)
    assert last.search_loss == pytest.approx(search_loss(toy, tuned.compressed, objective), rel=1e-3)
    assert last.search_loss < 0.8 * search_loss(toy, compressed, objective)
    inputs, labels = toy.data.search()
    right = (outputs(tuned.compressed.rounded(), inputs).argmax(1) == labels).float().mean()
    assert last.search_accuracy == pytest.approx(float(right), abs=0.006)
    assert same(compressed, given)
    assert same_state(toy.folded.state_dict(), teacher)
    assert [each.training for each in toy.folded.modules()] == modes
    assert [each.requires_grad for each in toy.folded.parameters()] == gradients
    for name, layer in tuned.compressed.layers.items():
        assert layer.values.shape == compressed.layers[name].values.shape
        assert -2 <= int(layer.values.min()) <= int(layer.values.max()) <= 1
        assert max(levels(layer.weight())) <= 4
        assert layer.input_range.bits == 8
    assert tuned.compressed.plan == compressed.plan
    weight, bias = tuned.unrounded["linear"]
    assert len(weight.unique()) > 100
    assert torch.equal(bias, tuned.compressed.layers["linear"].bias)


@pytest.mark.parametrize("granularity", ["element", "2:4"])
def test_zeros_hold(granularity):
    toy, compressed = damaged(bits=8, granularity=granularity, sparsity=0.5)
    tuned = finetune(compressed, toy.folded, toy.data, replace(_QUICK, learning_rate=0.01))
    assert tuned.best_step == 10
    for name, layer in tuned.compressed.layers.items():
        before = compressed.layers[name]
        kept = kept_map(before.values, before.sparsity, granularity)
        assert kept is None or not layer.values[~kept].any()
        assert layer.sparsity == before.sparsity
    pairs = zip(tuned.compressed.layers.values(), compressed.layers.values(), strict=True)
    assert sum(not torch.equal(after.values, before.values) for after, before in pairs) >= 3
    assert sum(layer.sparsity == 0.5 for layer in tuned.compressed.layers.values()) >= 8


@pytest.mark.parametrize("rate", [0.3, 1e3])
def test_it_never_hands_back_worse_than_it_got(rate):
    """Steps that are far too large, though nothing overflows."""
    toy, compressed = damaged(bits=8)
    told = []
    settings = replace(_QUICK, epochs=0.3, learning_rate=rate)
    tuned = finetune(compressed, toy.folded, toy.data, settings, progress=told.append)
    assert tuned.best_step == 0
    assert same(tuned.compressed, compressed)
    assert told[-1].search_loss == pytest.approx(search_loss(toy, compressed, settings.objective), rel=1e-3)


def test_divergence_stops_and_keeps_the_best():
    toy = digits()
    compressed = uncompressed(toy.folded, toy.menus.network)
    halved = compressed.model.linear.weight.data.mul_(0.5)  # something to gain
    compressed = Compressed(
        compressed.model,
        {
            **compressed.layers,
            "linear": replace(compressed.layers["linear"], values=halved),
        },
        compressed.plan,
    )
    tuned = finetune(compressed, toy.folded, toy.data, replace(_QUICK, epochs=2, learning_rate=1e30))
    assert tuned.diverged
    assert tuned.steps < 5
    assert tuned.best_step == 0
    assert same(tuned.compressed, compressed)


def test_a_last_step_into_infinity_is_a_divergence_too():
    toy, compressed = toy_uncompressed()
    tuned = finetune(compressed, toy.folded, toy.data, replace(_QUICK, epochs=0.05, learning_rate=1e37))
    assert (tuned.steps, tuned.diverged, tuned.best_step) == (1, True, 0)


def toy_uncompressed():
    toy = digits()
    return toy, uncompressed(toy.folded, toy.menus.network)


def test_the_same_seed_gives_the_same_weights():
    toy, compressed = damaged()
    settings = replace(_QUICK, epochs=0.2, augmentation="shift")
    one, two = (finetune(compressed, toy.folded, toy.data, settings) for _ in range(2))
    other = finetune(compressed, toy.folded, toy.data, replace(settings, seed=1))
    assert one.best_step > 0
    assert same(one.compressed, two.compressed)
    assert not same(one.compressed, other.compressed)


def test_without_labels():
    toy, compressed = damaged()
    data = unlabeled(toy.data)
    told = []
    tuned = finetune(compressed, toy.folded, data, replace(_QUICK, epochs=2), progress=told.append)
    assert tuned.best_step > 0
    assert math.isnan(told[-1].search_accuracy)
    hard = replace(_QUICK, objective=Objective(soft=0, hard=1.0), epochs=1)
    with pytest.raises(InputError) as caught:
        finetune(compressed, toy.folded, replace(data, classes=("a",) * 10), hard)
    assert str(caught.value) == (
        "`hard_weight` needs labelled data, got none; pass --labels teacher or --hard-weight 0."
    )
    taught = finetune(compressed, toy.folded, data, replace(hard, labels="teacher"))
    assert taught.best_step > 0


def test_which_samples_are_seen():
    toy, compressed = damaged()
    for method, expected in (
        ("weak", set(toy.data.calibration_indices)),
        ("standard", set(range(1437)) - set(toy.data.search_indices)),
    ):
        source = Recorded(toy.data.train)
        data = replace(toy.data, train=source)
        tuned = finetune(compressed, toy.folded, data, replace(_QUICK, epochs=1, method=method))
        assert source.loads.count(list(data.search_indices)) == 1  # to judge on
        seen = [indices for indices in source.loads if indices != list(data.search_indices)]
        seen.remove(list(data.calibration_indices))  # the fingerprint's
        assert sorted(index for indices in seen for index in indices) == sorted(expected)
        assert tuned.steps == math.ceil(len(expected) / 64)


def parts(weights):
    """These weights of layers that kept all their channels."""
    return KeptParts(weights, {name: torch.arange(len(weight)) for name, weight in weights.items()})


def test_strong_begins_at_kept_weights():
    """With a step too small to change a code: what is judged is the kept weights on the fitted steps."""
    toy, compressed = damaged(bits=8)
    kept = {name: toy.folded.get_submodule(name).weight.detach().clone() for name in compressed.layers}
    settings = replace(_QUICK, epochs=0.05, learning_rate=1e-12, method="strong")
    seen = []
    tuned = finetune(compressed, toy.folded, toy.data, settings, kept=parts(kept), progress=seen.append)
    nearest = {
        name: (kept[name] / layer.scale.view(-1, *[1] * (kept[name].ndim - 1))).round().clamp(-128, 127).to(torch.int8)
        for name, layer in compressed.layers.items()
    }
    if tuned.best_step == 0:  # rounding to nearest may be worse than what was given
        assert same(tuned.compressed, compressed)
    else:
        assert all(torch.equal(tuned.compressed.layers[name].values, nearest[name]) for name in nearest)
    worse = {name: torch.zeros_like(weight) for name, weight in kept.items()}
    tuned = finetune(compressed, toy.folded, toy.data, settings, kept=parts(worse))
    assert tuned.best_step == 0
    assert same(tuned.compressed, compressed)
    better = replace(_QUICK, epochs=0.05, learning_rate=1e-12, method="strong")
    toy, poor = damaged(bits=2)
    zeroed = Compressed(
        copy.deepcopy(poor.model),
        {**poor.layers, "linear": replace(poor.layers["linear"], values=poor.layers["linear"].values * 0)},
        poor.plan,
    )
    zeroed.model.linear.weight.data.zero_()
    tuned = finetune(zeroed, toy.folded, toy.data, better, kept=parts(kept))
    assert tuned.best_step == 1
    scale = poor.layers["linear"].scale[:, None]
    assert torch.equal(
        tuned.compressed.layers["linear"].values, (kept["linear"] / scale).round().clamp(-2, 1).to(torch.int8)
    )
    with pytest.raises(InputError) as caught:
        finetune(compressed, toy.folded, toy.data, settings)
    assert str(caught.value) == "`kept` must be given with the method strong and to match layer outputs, got none."


def test_a_penalty_makes_weights_smaller_even_where_nothing_else_can_improve():
    """The original itself: its divergence is 0, so the penalty alone has to be what is judged."""
    toy, compressed = toy_uncompressed()
    settings = replace(_QUICK, epochs=1, objective=Objective(l1=1e-4), learning_rate=1e-2)
    tuned = finetune(compressed, toy.folded, toy.data, settings)

    def magnitude(each):
        return sum(float(layer.weight().abs().sum()) for layer in each.layers.values())

    assert tuned.best_step == 20
    assert magnitude(tuned.compressed) < 0.98 * magnitude(compressed)
    without = finetune(compressed, toy.folded, toy.data, replace(settings, objective=Objective()))
    assert without.best_step == 0


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_matched_features_alone_can_teach(sparsity):
    toy = digits()
    compressed, labeling = toy.compressed(sparsity, 2, 8)
    objective = Objective(soft=0, features=1.0)
    told = []
    kept = kept_parts(toy.menus, labeling)
    tuned = finetune(
        compressed, toy.folded, toy.data, replace(_QUICK, objective=objective), kept=kept, progress=told.append
    )
    assert tuned.best_step == 10
    before, after = (
        measure(toy.folded, each.rounded(), [toy.data.search()]).kl for each in (compressed, tuned.compressed)
    )
    assert after < before
    assert not any(each._forward_hooks for each in toy.folded.modules())
    with pytest.raises(InputError) as caught:
        finetune(compressed, toy.folded, toy.data, replace(_QUICK, objective=objective), kept=KeptParts({}, {}))
    assert str(caught.value) == (
        "`features_weight` alone needs layers before the last one, got none; pass --soft-weight 1."
    )


def test_mixed_precision_learns_too():
    toy, compressed = damaged()
    tuned = finetune(compressed, toy.folded, toy.data, replace(_QUICK, learning_rate=3e-3), dtype=torch.bfloat16)
    assert tuned.best_step == 10
    assert {each.dtype for each in tuned.compressed.model.parameters()} == {torch.float32}


def test_float16_is_trained_in_bfloat16_whose_gradients_do_not_vanish():
    toy, compressed = damaged()
    settings = replace(_QUICK, epochs=0.1)
    half, brain, whole = (
        finetune(compressed, toy.folded, toy.data, settings, dtype=dtype).compressed
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    )
    assert same(half, brain)
    assert not same(half, whole)


def test_dtypes_to_train_in(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert trainable(torch.float16, cuda) == trainable(torch.bfloat16, cuda) == expected
        assert trainable(torch.float32, cuda) == trainable(torch.float32, cpu) == torch.float32
        assert trainable(torch.float16, cpu) == torch.bfloat16


class Full(nn.Module):
    """A teacher whose device has room for 8 samples."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, x):
        if len(x) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.teacher(x)


def test_a_full_device_names_a_smaller_batch():
    toy, compressed = damaged()
    message = (
        "`batch_size` of fine-tuning must fit into the memory of cpu, got 64; pass --batch-size 32 or --device cpu."
    )
    with pytest.raises(InputError) as error:
        finetune(compressed, Full(toy.folded), toy.data, _QUICK)
    assert str(error.value) == message
    assert finetune(compressed, Full(toy.folded), toy.data, replace(_QUICK, epochs=0.05, batch_size=8)).steps > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_it_learns_on_cuda_and_hands_back_on_the_cpu():
    toy, compressed = damaged()
    for dtype in (torch.float32, torch.float16):
        tuned = finetune(compressed, toy.folded, toy.data, _QUICK, device="cuda", dtype=dtype)
        assert tuned.best_step == 10
        assert {each.device.type for each in tuned.compressed.model.parameters()} == {"cpu"}
        assert {layer.values.device.type for layer in tuned.compressed.layers.values()} == {"cpu"}
    assert {each.device.type for each in toy.folded.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0.0}, "`epochs` must be above 0, got 0.0."),
        ({"learning_rate": math.nan}, "`learning_rate` must be above 0, got nan."),
        ({"clip": -1.0}, "`clip` must be above 0, got -1.0."),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0."),
        ({"mixup": 0.6}, "`mixup` must be from 0 to 0.5, got 0.6."),
        ({"mixup": -0.1}, "`mixup` must be from 0 to 0.5, got -0.1."),
        ({"seed": -1}, "`seed` must be at least 0, got -1."),
    ],
)
def test_settings_that_are_refused(values, message):
    with pytest.raises(InputError) as caught:
        FineTuning(**values)
    assert str(caught.value) == message
