"""Effects around plans: against forward-mode derivatives of the plan's network, and against plans really evaluated."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from effects_toys import Case, agree, case, changed, evaluator, less
from evaluation_toys import masked, menus_of, original_labels, outputs, random_labels
from torch import Tensor, nn

from autocompress.evaluation.effects import NEAR, Effects, effects_around, first_order_effects
from autocompress.evaluation.predictions import Predictions
from autocompress.evaluation.renormalize import Affine
from autocompress.menus.renormalized import renormalization
from autocompress_envs import Labeling

MODULE = "autocompress.evaluation.effects"
BITS = (1, 2, 3, 4, 8, 16)  # from either end, three of them are far
KINDS = [
    ("concat", "channel"), ("inverted residual", "channel"), ("sequence", "channel"), ("twice", "channel"),
    ("windows", "channel"), ("sequence first", "channel"), ("sequence", "element"), ("twice", "element"),
    ("concat", "2:4"),
]  # fmt: skip


def plan_of(given: Case, seed: int) -> Labeling:
    """Labels at random."""
    return random_labels(given.menus.problem(), np.random.default_rng(seed))


def distances(given: Case, plan: Labeling) -> tuple[np.ndarray, np.ndarray]:
    """(L, S) and (L, B) positions between every label and the plan's own."""
    sparsities = np.arange(given.far.pruning.shape[1])
    bits = np.arange(len(given.menus.settings.weight_bits))
    return abs(sparsities - plan.sparsity[:, None]), abs(bits - plan.weight_bits[:, None])


def by_derivatives(given: Case, plan: Labeling) -> Effects:
    """Effects of near labels as they should be; activations as they are, one option of weight bits each."""
    layers, (*_, samples, classes) = given.menus.problem().layers, given.far.pruning.shape
    own, (of_pruning, of_rounding) = given.parameters(plan), distances(given, plan)
    pruning, rounding = (np.zeros((*each.shape, samples, classes)) for each in (of_pruning, of_rounding))
    for row, layer in enumerate(layers):
        for field, menu, found in [("sparsity", layer.sparsities, pruning), ("weight_bits", BITS, rounding)]:
            for option in range(len(menu)):
                if abs(option - getattr(plan, field)[row]) <= NEAR:
                    other = given.parameters(changed(plan, **{field: (row, option)}))
                    found[row, option] = given.derivative(less(other, own), plan)
    return Effects(pruning, rounding)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "granularity"), KINDS)
def test_near_labels_have_the_derivatives_at_the_plan(
    monkeypatch: pytest.MonkeyPatch, name: str, granularity: str, seed: int
) -> None:
    """All layers that read a pruned group, whatever else of them is pruned and however they are rounded."""
    monkeypatch.setattr(f"{MODULE}.CLASSES_AROUND", 100)
    given = case(name, granularity, BITS)
    plan = plan_of(given, seed)
    found, expected, (of_pruning, of_rounding) = given.around(plan), by_derivatives(given, plan), distances(given, plan)
    assert found.pruning.dtype == found.rounding.dtype == np.float32
    assert (found.pruning.shape, found.rounding.shape) == (given.far.pruning.shape, given.far.rounding.shape)
    agree(found.pruning[of_pruning <= NEAR], expected.pruning[of_pruning <= NEAR])
    agree(found.rounding[:, 1::2][of_rounding <= NEAR], expected.rounding[of_rounding <= NEAR])
    assert np.array_equal(found.rounding[:, 0::2], found.rounding[:, 1::2])  # weights alone, whatever the inputs' bits
    assert not found.pruning[of_pruning == 0].any()
    assert not found.rounding[:, 1::2][of_rounding == 0].any()
    nearest = np.linalg.norm(found.rounding[:, 1::2][of_rounding == 1], axis=(-2, -1))
    assert np.median(nearest) > 0.005
    assert (np.abs(found.pruning).max() > 0.05) == (
        max(len(each.sparsities) for each in given.menus.problem().layers) > 1
    )


def scaled(parameters: dict[str, Tensor], changes: dict[str, Affine], shifts: bool = True) -> dict[str, Tensor]:
    """Parameters by which layers give changed outputs; or directions, which are scaled alone."""
    found = dict(parameters)
    for name, change in changes.items():
        found[f"{name}.weight"] = change.weight(parameters[f"{name}.weight"])
        bias = parameters.get(f"{name}.bias")
        if bias is not None:
            found[f"{name}.bias"] = change.bias(bias) if shifts else bias * change.scale
    return found


def moments_of(given: Case, parameters: dict[str, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """Scale and shift that renormalize a layer with these parameters."""
    layer = given.menus.network.layers[row]
    weight = parameters[f"{layer.name}.weight"].flatten(1).float()
    bias = parameters.get(f"{layer.name}.bias", torch.zeros(len(weight))).float()
    return renormalization(given.menus.sources[layer.name], torch.cat([weight, bias[:, None]], 1))


def by_moments(given: Case, parameters: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """The same parameters, those of one layer renormalized."""
    return scaled(parameters, {given.menus.network.layers[row].name: Affine(*moments_of(given, parameters, row))})


@pytest.mark.parametrize(("name", "granularity"), [("concat", "channel"), ("sequence", "element")])
def test_around_a_renormalized_plan(monkeypatch: pytest.MonkeyPatch, name: str, granularity: str) -> None:
    """The derivatives at the renormalized network, of labels that are renormalized, and scaled as the plan's own."""
    monkeypatch.setattr(f"{MODULE}.CLASSES_AROUND", 100)
    given, generator = case(name, granularity, BITS), torch.Generator().manual_seed(0)
    plan = plan_of(given, 0)
    changes = {
        layer.name: Affine(
            torch.rand(layer.rows, generator=generator) + 0.5, torch.randn(layer.rows, generator=generator)
        )
        for layer in given.menus.network.layers[1:]
    }
    own, (_, of_rounding) = given.parameters(plan), distances(given, plan)
    at_plan, found = scaled(own, changes), given.around(plan, changes)
    assert not np.allclose(found.rounding, given.around(plan).rounding, atol=1e-3)
    for row in range(len(given.menus.network.layers)):
        for option in (of_rounding[row] == 1).nonzero()[0]:
            other = given.parameters(changed(plan, weight_bits=(row, option)))
            by_label = scaled(less(by_moments(given, other, row), by_moments(given, own, row)), changes, shifts=False)
            scale, _ = moments_of(given, own, row)
            direction = scaled(by_label, {given.menus.network.layers[row].name: Affine(1 / scale, scale)}, shifts=False)
            agree(found.rounding[row, 2 * option + 1], given.derivative(direction, at_plan).numpy())


@pytest.mark.parametrize(("name", "granularity"), [("concat", "channel"), ("sequence", "element")])
def test_far_labels_differ_as_around_the_original(name: str, granularity: str) -> None:
    """Exactly: three positions and more away, and from other activation bits too."""
    given = case(name, granularity, BITS)
    plan = replace(plan_of(given, 0), weight_bits=np.arange(len(given.menus.network.layers)) % len(BITS))
    found, far, (of_pruning, of_rounding) = given.around(plan), given.far, distances(given, plan)
    rows = np.arange(len(plan.sparsity))
    of_plan = far.pruning[rows, plan.sparsity], far.rounding[rows, 2 * plan.weight_bits + plan.activation_bits]
    for part, own, distance in zip(
        ("pruning", "rounding"), of_plan, (of_pruning, of_rounding.repeat(2, axis=1)), strict=True
    ):
        differences = getattr(far, part) - own[:, None]
        is_far = distance > NEAR
        assert is_far.any()
        assert np.array_equal(getattr(found, part)[is_far], differences[is_far])
        near = (distance > 0) & ~is_far & np.abs(differences).any((2, 3))
        assert not np.isclose(getattr(found, part)[near], differences[near]).all((1, 2)).any()


@pytest.mark.parametrize(("name", "granularity", "classes"), [("concat", "channel", 5), ("twice", "element", 10)])
def test_the_three_likeliest_classes_are_exact_and_the_others_move_as_one(
    name: str, granularity: str, classes: int
) -> None:
    """Likeliest under the plan, on each sample; probabilities still sum to one: sum_k q_k d log q_k = 0."""
    given = case(name, granularity, BITS)
    plan = plan_of(given, 2)
    found, exact = given.around(plan), by_derivatives(given, plan)
    logs = given.pooled(0, outputs(masked(given.model, given.menus, plan), given.x)).numpy()
    order, predicted = np.argsort(-logs, axis=1), np.exp(logs)
    assert predicted.shape == (24, classes)
    assert len({tuple(each) for each in order[:, :3].tolist()}) > 5
    nears = [distance <= NEAR for distance in distances(given, plan)]
    for part, is_near in zip(("pruning", "rounding"), nears, strict=True):
        effects = getattr(found, part)
        moved = (effects[:, 1::2] if part == "rounding" else effects)[is_near]
        wanted = getattr(exact, part)[is_near]
        places = np.broadcast_to(order, wanted.shape)
        moved, wanted = (np.take_along_axis(each, places, axis=2) for each in (moved, wanted))
        weights = np.take_along_axis(predicted, order, axis=1)[:, 3:]
        together = (wanted[..., 3:] * weights).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
        agree(moved[..., :3], wanted[..., :3])
        agree(moved[..., 3:], np.repeat(together, classes - 3, axis=-1))
        assert np.abs((moved * np.take_along_axis(predicted, order, axis=1)).sum(-1)).max() < 2e-5
        assert np.abs(wanted[..., 3:] - together).max() > 0.05  # not what each of them would do


def test_the_network_and_the_plan_stay_as_they_are() -> None:
    given = case("inverted residual", "channel", BITS)
    folded, plan = copy.deepcopy(given.folded), plan_of(given, 3)
    before, labels, random_state = copy.deepcopy(folded.state_dict()), plan.key(), torch.get_rng_state()
    replace(given, folded=folded).around(plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in folded.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())
    assert not any(each.requires_grad or each.grad is not None for each in folded.parameters())
    assert plan.key() == labels
    assert torch.equal(torch.get_rng_state(), random_state)


def test_passes_by_hand() -> None:
    """One pass forward, and work of three more for every class, of which there are three, however many labels."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(8, 4)
    menus = menus_of(model, x, weight_bits=(2, 8), activation_bits=(4, 32))
    pooled, plan = Predictions(outputs(model, x)).pooled, original_labels(menus.problem())
    far = first_order_effects(model.requires_grad_(False), menus, x, pooled)
    assert far.passes == 1 + 4 * 3
    assert far.first(3).passes == far.passes
    plan.sparsity[0] = 1
    assert effects_around(model, menus, plan, x, pooled, far).passes == 1 + 4 * 3


def test_passes_count_no_more_classes_than_are_kept_apart() -> None:
    """5 or 10 of them around the original, and 4 around a plan."""
    for name, classes in (("concat", 5), ("twice", 10)):
        given = case(name, "2:4" if name == "concat" else "channel", BITS)
        assert given.far.passes == 1 + 4 * classes
        assert given.around(original_labels(given.menus.problem())).passes == 1 + 4 * 4


def test_the_evaluator_gives_effects_around_plans_and_remembers_those_around_the_original() -> None:
    """They count as no evaluation."""
    given = case("concat", "channel", BITS)
    plans = [plan_of(given, seed) for seed in (0, 1)]
    evaluate = evaluator(given, dtype="float32", batch_size=7)
    first = evaluate.effects(around=plans[0])
    original = evaluate.effects()
    agree(original.rounding, given.far.rounding)
    for plan, found in ((plans[1], evaluate.effects(plans[1])), (plans[0], first)):
        expected = given.around(plan)
        agree(found.pruning, expected.pruning)
        agree(found.rounding, expected.rounding)
        assert found.passes == expected.passes
    few = evaluate.effects(plans[0], samples=10)
    agree(few.pruning, first.first(10).pruning)
    agree(few.rounding, first.first(10).rounding)
    assert evaluate.effects() is original
    assert evaluate.evaluations == 0


def test_how_samples_are_split_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case("twice", "element", BITS)
    plan = plan_of(given, 0)
    whole = given.around(plan)
    monkeypatch.setattr("autocompress.menus.responses._MOST_SAMPLES", 5)
    split = given.around(plan)
    agree(split.pruning, whole.pruning)
    agree(split.rounding, whole.rounding)


@pytest.mark.parametrize("name", ["concat", "inverted residual", "sequence"])
def test_half_precision_predicts_the_same(name: str) -> None:
    given = case(name, "channel", BITS)
    plan, rough = plan_of(given, 0), evaluator(given, dtype="bfloat16")
    found, exact = rough.effects(plan), evaluator(given, dtype="float32").effects(plan)
    for part in ("pruning", "rounding"):
        ours, wanted = getattr(found, part), getattr(exact, part)
        assert np.linalg.norm(ours - wanted) <= 0.15 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("name", "share"), [("concat", 0.5), ("inverted residual", 0.4)])
def test_what_neighbours_of_a_plan_do_is_predicted_around_it_and_not_around_the_original(
    name: str, share: float
) -> None:
    """Of 2- to 4-bit plans, a quarter to a half pruned: one label moved by one position, measured at 32-bit inputs.

    Squared misses of the shifts, weighed by the plan's predictions as a divergence does: 14 and 5 % around the plan, 38
    and 18 % around the original.
    """
    given, rng = case(name, "channel", BITS), np.random.default_rng(0)
    evaluate, layers = evaluator(given, dtype="float32"), given.menus.problem().layers
    misses, size = np.zeros(2), 0.0
    for _ in range(4):
        plan = original_labels(given.menus.problem())
        plan.weight_bits[:] = rng.integers(1, 4, len(layers))
        plan.sparsity[:] = [min(len(layer.sparsities) - 1, rng.integers(1, 3)) for layer in layers]
        around, measured = evaluate.effects(plan), evaluate(plan).shift.astype(np.float64)
        predicted = evaluate.probabilities * np.exp(measured)
        steps = [(row, 1, "sparsity", "pruning", len(layer.sparsities)) for row, layer in enumerate(layers)]
        steps += [(row, 2, "weight_bits", "rounding", len(BITS)) for row in range(len(layers))]
        for row, each, field, part, count in steps:
            own = getattr(plan, field)[row]
            if own + 1 < count:
                moved = evaluate(changed(plan, **{field: (row, own + 1)})).shift - measured
                far, near = (getattr(effects, part)[row] for effects in (given.far, around))
                expansions = near[each * (own + 1)], far[each * (own + 1)] - far[each * own]
                misses += [(predicted * (moved - known) ** 2).sum() for known in expansions]
                size += (predicted * moved**2).sum()
    assert misses[0] < 0.2 * size
    assert misses[0] < share * misses[1]
