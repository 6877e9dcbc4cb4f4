"""Small problems, built by hand or at random, for tests of solvers and agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autocompress_envs.labeling.sketch import Sketch
from autocompress_envs.problem import CostModel, FloatArray, IntArray, Labeling, LayerNumbers, Outcome, Problem

TOY_INTERACTION = 0.5  # nats that the first two layers lose together where both have 2 bits
TOY_LIMITS = {"bitops": 512}  # 8 weight bits in all over three layers of 8 weights that read 8-bit activations


@dataclass(frozen=True)
class LayerShape:
    """Shape of one layer of a made-up network, and how it hangs together with the others.

    Attributes:
        kind: `conv`, `depthwise` or `linear`.
        reads: groups whose channels are the layer's columns.
        writes: group whose channels are the layer's rows, or None.
        columns: weight columns per channel read (the kernel area).
        fixed: weight columns where no group is read, and weight rows where none is written.
        positions: output positions: multiply-accumulates per weight and sample.
        owns: whether the layer's own sparsity decides the width of the group that it writes; false by
            default.
    """

    kind: str
    reads: tuple[int, ...]
    writes: int | None
    columns: int
    fixed: tuple[int, int]
    positions: int
    owns: bool = False


@dataclass(frozen=True)
class Menu:
    """Menus that all layers of a made-up network share.

    Attributes:
        sparsities: sparsities to choose from, ascending, the first one 0; only owners of groups have them.
        weight_bits: weight bits to choose from, ascending.
        activation_bits: activation bits to choose from, ascending.
    """

    sparsities: tuple[float, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]


def toy_problem() -> tuple[Problem, Callable[[Labeling], Outcome]]:
    """A problem of three layers, and an `evaluate` whose optimum is not that of the expected loss.

    conv1 (2 -> 4 channels, owns the group) -> conv2 (4 -> 2) -> fc (2 -> 4): 8 weights each, used once, no
    biases; sparsities 0 and 0.5, weight bits 2, 4 and 8. Layers lose 0.10, 0.12 and 0.40 nats at 2 bits, a
    tenth of it at 4 and nothing at 8; removing half of the group loses 0.6 at conv2. On top of the sum, conv1
    and conv2 lose `TOY_INTERACTION` nats where both have 2 bits. The measured accuracy is exp(-kl).

    Within `TOY_LIMITS` (no more than 8 bits over three unpruned layers) the least sum is 0.26 at (2, 2, 4)
    bits, where 0.76 is measured; the best measured is 0.512 at (2, 4, 2) bits.

    >>> problem, evaluate = toy_problem()
    >>> none = np.zeros(3, dtype=np.int64)
    >>> round(evaluate(Labeling(none, np.array([0, 0, 1]), none)).kl, 6)
    0.76
    >>> round(evaluate(Labeling(none, np.array([0, 1, 0]), none)).kl, 6)
    0.512
    """
    shapes = [
        LayerShape("conv", (), 0, 1, (2, 0), 1, owns=True),
        LayerShape("conv", (0,), None, 1, (0, 2), 1),
        LayerShape("linear", (), None, 1, (2, 4), 1),
    ]
    menu = Menu((0.0, 0.5), (2, 4, 8), (8,))
    at_bits = np.array([1.0, 0.1, 0.0])
    pruning = np.array([0.0, 0.6])
    errors = [
        (0.10 * at_bits)[None, :, None],
        (pruning[:, None] + 0.12 * at_bits)[..., None],
        (0.40 * at_bits)[None, :, None],
    ]
    problem = build_problem(shapes, np.array([4]), menu, errors, has_bias=False)

    def evaluate(labeling: Labeling) -> Outcome:
        together = TOY_INTERACTION * bool((labeling.weight_bits[:2] == 0).all())
        losses = np.append(layer_errors(problem, labeling), together)
        kl = float(losses.sum())
        return Outcome(kl, float(np.exp(-kl)), float(np.exp(-kl)), problem.resources(labeling), coin_shift(losses))

    return problem, evaluate


def cancelling_toy(
    signs: npt.ArrayLike,
) -> tuple[Problem, Sketch, Callable[[Labeling], Outcome], dict[str, int]]:
    """A problem whose optimum only a policy finds that sees how far the outputs have been moved so far.

    Linear layers of 16 weights, each at 2 or 8 bits. At 2 bits each is expected to lose the same (0.01 nats, or a
    little more the later it stands), and moves the outputs by a length whose divergence is 0.05 nats, forwards or
    backwards. The budget lets half of the layers keep 8 bits. What is measured is |sum of the moves|^2 / 2 + the sum of
    the expected
    losses: least where as many forward as backward layers are at 2 bits. No number of one layer alone says which those
    are.

    >>> problem, _, evaluate, _ = cancelling_toy([1, 1, -1, -1])
    >>> none = np.zeros(4, dtype=np.int64)
    >>> [round(evaluate(Labeling(none, np.array(bits), none)).kl, 3) for bits in ([0, 0, 1, 1], [0, 1, 0, 1])]
    [0.22, 0.02]

    Args:
        signs: (L,) 1 for forwards, -1 for backwards; an even number of layers.

    Returns:
        The problem, its effects, `evaluate`, and the limits.
    """
    direction = np.asarray(signs, dtype=np.float64)
    count = len(direction)
    shape = LayerShape("linear", (), None, 1, (4, 4), 1)
    losses = [np.array([[[0.01 * (1 + 0.001 * layer)], [0.0]]]) for layer in range(count)]
    problem = build_problem([shape] * count, np.zeros(0, dtype=np.int64), Menu((0.0,), (2, 8), (8,)), losses, False)
    moves = np.zeros((count, 2, 1))
    moves[:, 0, 0] = direction * np.sqrt(2 * 0.05)
    sketch = Sketch(np.zeros((count, 1, 1)), moves)

    def evaluate(labeling: Labeling) -> Outcome:
        moved = moves[np.arange(count), labeling.weight_bits].sum(0)
        kl = float(0.5 * moved @ moved + additive_error(problem, labeling))
        return Outcome(kl, float(np.exp(-kl)), float(np.exp(-kl)), problem.resources(labeling))

    half = Labeling(*(np.zeros(count, dtype=np.int64) for _ in range(3)))
    half.weight_bits[: count // 2] = 1
    return problem, sketch, evaluate, {"bitops": problem.resources(half)["bitops"]}


def additive_error(problem: Problem, labeling: Labeling) -> float:
    """The expected loss of a labelling in nats: the sum over its layers."""
    return float(layer_errors(problem, labeling).sum())


def layer_errors(problem: Problem, labeling: Labeling) -> FloatArray:
    """(L,) expected losses of a labelling at every layer, in nats."""
    errors = np.zeros(len(problem.layers))
    for index, layer in enumerate(problem.layers):
        row = 0 if layer.source is None else labeling.sparsity[layer.source]
        errors[index] = layer.errors[row, labeling.weight_bits[index], labeling.activation_bits[index]]
        errors[index] += sum(error[labeling.sparsity[owner]] for owner, error in layer.extra_sources)
    return errors


def fair_coins(samples: int) -> FloatArray:
    """(samples, 2) predictions of a made-up network that knows nothing: one half for either class."""
    return np.full((samples, 2), 0.5)


def coin_shift(losses: FloatArray) -> npt.NDArray[np.float16]:
    """(N, 2) float16 change of the log-probabilities of `fair_coins` that diverges by sum(losses) nats.

    Sample i diverges by N losses[i] nats, so that the mean over the N samples is the sum of the losses. For
    logits x and -x, KL((1/2, 1/2) || q) = log cosh x; so x = arccosh(exp(N losses[i])).

    >>> shift = coin_shift(np.array([0.1, 0.3]))
    >>> round(float(-(0.5 * shift.astype(float)).sum(1).mean()), 3)  # the mean divergence of two samples
    0.4

    Args:
        losses: (N,) losses in nats, at least 0.
    """
    apart = np.arccosh(np.exp(len(losses) * losses))
    logits = np.stack([apart, -apart], axis=1)
    shift: npt.NDArray[np.float16] = (logits - np.logaddexp(apart, -apart)[:, None] + np.log(2.0)).astype(np.float16)
    return shift


def all_labelings(problem: Problem) -> Labeling:
    """All N labellings of a tiny problem, stacked: each field (N, L).

    Raises:
        ValueError: there are more than 1,000,000.
    """
    sizes = [size for x in problem.layers for size in (len(x.sparsities), len(x.weight_bits), len(x.activation_bits))]
    count = int(np.prod(sizes))
    if count > 10**6:
        raise ValueError(f"`problem` must have at most 1,000,000 labellings, got {count:,}.")
    indices = np.stack(np.unravel_index(np.arange(count), sizes), axis=1).reshape(count, len(problem.layers), 3)
    return Labeling(indices[..., 0], indices[..., 1], indices[..., 2])


def all_resources(problem: Problem, labelings: Labeling) -> dict[str, IntArray]:
    """Amounts (N,) by resource of N stacked labellings."""
    layers = problem.layers
    kept = np.repeat(problem.costs.group_width[None], len(labelings.sparsity), axis=0)
    for index, layer in enumerate(layers):
        if layer.group is not None:
            kept[:, layer.group] = layer.kept[labelings.sparsity[:, index]]

    def chosen(field: str, indices: IntArray) -> FloatArray:
        return np.stack([getattr(layer, field)[column] for layer, column in zip(layers, indices.T, strict=True)], 1)

    weight_bits = chosen("weight_bits", labelings.weight_bits).astype(np.int64)
    ranks = chosen("weight_ranks", labelings.weight_bits).astype(np.int64)
    activation_bits = chosen("activation_bits", labelings.activation_bits).astype(np.int64)
    return problem.costs.resources(kept, weight_bits, activation_bits, chosen("sparsities", labelings.sparsity), ranks)


def all_errors(problem: Problem, labelings: Labeling) -> FloatArray:
    """(N,) expected losses in nats of N stacked labellings."""
    total = np.zeros(len(labelings.sparsity))
    for index, layer in enumerate(problem.layers):
        row = 0 if layer.source is None else labelings.sparsity[:, layer.source]
        total += layer.errors[row, labelings.weight_bits[:, index], labelings.activation_bits[:, index]]
        for owner, error in layer.extra_sources:
            total += error[labelings.sparsity[:, owner]]
    return total


def build_problem(
    shapes: list[LayerShape], widths: IntArray, menu: Menu, errors: list[FloatArray], has_bias: bool = True
) -> Problem:
    """A problem of the given layers, with granularity `channel` and one activation tensor before every layer.

    A layer that reads several groups has half of its first group's pruning loss for each of the others.

    Args:
        shapes: L layers in order; the owner of a group stands before all its readers.
        widths: (G,) channels of every group.
        menu: menus that all layers share; only owners have sparsities to choose.
        errors: expected losses of every layer in nats, (S, B, A) where it reads an owned group, else (1, B,
            A).
        has_bias: whether all layers have a bias; true by default.
    """
    owner = {shape.writes: index for index, shape in enumerate(shapes) if shape.owns}
    kept = np.array([[max(1, round(width * (1 - s))) for s in menu.sparsities] for width in widths], dtype=np.int64)
    layers = []
    for index, (shape, error) in enumerate(zip(shapes, errors, strict=True)):
        sources = [owner[group] for group in shape.reads if group in owner]
        extra = tuple((source, 0.5 * (error[:, -1, -1] - error[0, -1, -1])) for source in sources[1:])
        owned = shape.writes if shape.owns else None
        layers.append(
            LayerNumbers(
                name=f"layer{index}",
                kind=shape.kind,
                sparsities=np.array(menu.sparsities if shape.owns else (0.0,)),
                kept=kept[owned] if owned is not None else np.zeros(0, dtype=np.int64),
                group=owned,
                weight_bits=np.array(menu.weight_bits),
                activation_bits=np.array(menu.activation_bits),
                source=sources[0] if sources else None,
                errors=error,
                extra_sources=extra,
            )
        )
    return Problem(tuple(layers), _costs(shapes, widths, has_bias))


def random_problem(rng: np.random.Generator, layers: int = 6, kind: str | None = None) -> Problem:
    """A valid random problem.

    Args:
        rng: generator of all random numbers.
        layers: number of layers, at least 3; 6 by default.
        kind: structure of the network: `chain`, `residual`, `concat`, `depthwise` or `element`. Drawn by
            default.
    """
    kind = str(rng.choice(["chain", "residual", "concat", "depthwise", "element"])) if kind is None else kind
    shapes = {"chain": _chain, "residual": _residual, "concat": _concat, "depthwise": _depthwise, "element": _plain}[
        kind
    ](rng, layers)
    groups = 1 + max((group for s in shapes for group in (*s.reads, -1 if s.writes is None else s.writes)), default=-1)
    menu = Menu(
        (0.0, *np.sort(rng.choice([0.125, 0.25, 0.375, 0.5, 0.625, 0.75], rng.integers(1, 4), replace=False)).tolist()),
        tuple(np.sort(rng.choice([1, 2, 3, 4, 5, 6, 8, 16, 32], rng.integers(1, 5), replace=False)).tolist()),
        tuple(np.sort(rng.choice([4, 6, 8, 32], rng.integers(1, 3), replace=False)).tolist()),
    )
    widths = rng.integers(4, 33, max(groups, 1))
    owned = {s.writes for s in shapes if s.owns}
    reading = [kind == "element" or any(group in owned for group in s.reads) for s in shapes]
    errors = [random_errors(rng, menu, is_reading) for is_reading in reading]
    problem = build_problem(shapes, widths, menu, errors, has_bias=bool(rng.integers(2)))
    return _by_element(problem, menu) if kind == "element" else problem


def random_errors(rng: np.random.Generator, menu: Menu, has_rows: bool) -> FloatArray:
    """(S or 1, B, A) random expected losses: fourfold less a bit, growing with the square of the sparsity.

    Args:
        rng: generator of all random numbers.
        menu: menus of the layer and of its source.
        has_rows: whether there is a row per sparsity; otherwise there is one row.
    """
    scale = 10 ** rng.uniform(-3, 0)
    bits, activations = np.array(menu.weight_bits, dtype=float), np.array(menu.activation_bits, dtype=float)
    base = scale * (4.0 ** -bits[:, None] + 4.0**-activations) * rng.uniform(0.5, 2.0, (len(bits), len(activations)))
    sparsities = np.array(menu.sparsities if has_rows else (0.0,))
    pruning = scale * rng.uniform(0.1, 1.0) * sparsities**2
    return np.asarray(pruning[:, None, None] + base * (1 + sparsities[:, None, None]))


def _costs(shapes: list[LayerShape], widths: IntArray, has_bias: bool) -> CostModel:
    """The cost model: tensor t is what layer t reads, the last one what the last layer writes.

    Two neighbours are alive at a time.
    """
    count, groups = len(shapes), len(widths)
    fan_in_coef, out_coef = np.zeros((count, groups), dtype=np.int64), np.zeros((count, groups), dtype=np.int64)
    tensor_coef, tensor_const = np.zeros((count + 1, groups), dtype=np.int64), np.zeros(count + 1, dtype=np.int64)
    fan_in_const, out_const = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for index, shape in enumerate(shapes):
        is_depthwise = shape.kind == "depthwise"
        fan_in_const[index] = shape.columns if is_depthwise else (shape.fixed[0] if not shape.reads else 0)
        out_const[index] = shape.fixed[1] if shape.writes is None else 0
        tensor_const[index] = shape.positions * shape.fixed[0] if not shape.reads else 0
        for group in shape.reads:
            fan_in_coef[index, group] = 0 if is_depthwise else shape.columns
            tensor_coef[index, group] = shape.positions
        if shape.writes is not None:
            out_coef[index, shape.writes] = 1
    last = shapes[-1]
    tensor_const[-1] = last.positions * last.fixed[1] if last.writes is None else 0
    if last.writes is not None:
        tensor_coef[-1, last.writes] = last.positions
    moments = np.arange(count)[:, None]
    return CostModel(
        group_width=np.asarray(widths, dtype=np.int64),
        fan_in_const=fan_in_const,
        fan_in_coef=fan_in_coef,
        out_const=out_const,
        out_coef=out_coef,
        positions=np.array([shape.positions for shape in shapes], dtype=np.int64),
        has_bias=np.full(count, has_bias),
        fixed_bytes=100,
        fixed_bytes_coef=np.full(groups, 8, dtype=np.int64),
        tensor_const=tensor_const,
        tensor_coef=tensor_coef,
        tensor_readers=np.arange(count + 1)[:, None] == np.arange(count),
        alive=(np.arange(count + 1) == moments) | (np.arange(count + 1) == moments + 1),
    )


def _chain(rng: np.random.Generator, count: int) -> list[LayerShape]:
    """Layers of which all but the last own the group that the next one reads (VGG)."""
    middle = [
        LayerShape("conv", (i - 1,) if i else (), i, 9 if i else 1, (27, 0), int(rng.integers(1, 65)), owns=True)
        for i in range(count - 1)
    ]
    return [*middle, LayerShape("linear", (count - 2,), None, 1, (0, 10), 1)]


def _residual(rng: np.random.Generator, count: int) -> list[LayerShape]:
    """Pairs of layers whose inner group can be pruned and whose outer width of 16 can't (ResNet)."""
    shapes = [LayerShape("conv", (), None, 1, (27, 16), int(rng.integers(1, 65)))]
    for block in range((count - 2) // 2):
        positions = int(rng.integers(1, 65))
        shapes.append(LayerShape("conv", (), block, 1, (144, 0), positions, owns=True))
        shapes.append(LayerShape("conv", (block,), None, 9, (0, 16), positions))
    shapes += [LayerShape("conv", (), None, 1, (144, 16), 16)] * (count - 1 - len(shapes))
    return [*shapes, LayerShape("linear", (), None, 1, (16, 10), 1)]


def _concat(rng: np.random.Generator, count: int) -> list[LayerShape]:
    """Layers that read the groups of all layers before them (DenseNet)."""
    shapes = [
        LayerShape("conv", tuple(range(i)), i, 9, (27, 0), int(rng.integers(1, 65)), owns=True)
        for i in range(count - 1)
    ]
    return [*shapes, LayerShape("linear", tuple(range(count - 1)), None, 1, (0, 10), 1)]


def _depthwise(rng: np.random.Generator, count: int) -> list[LayerShape]:
    """Blocks of expand, depthwise and project (MobileNetV2) that share one group, then plain layers."""
    shapes: list[LayerShape] = []
    for block in range(count // 3):
        positions = int(rng.integers(1, 65))
        shapes += [
            LayerShape("conv", (), block, 1, (16, 0), positions, owns=True),
            LayerShape("depthwise", (block,), block, 9, (0, 0), positions),
            LayerShape("conv", (block,), None, 1, (0, 16), positions),
        ]
    return shapes + [LayerShape("linear", (), None, 1, (16, 10), 1)] * (count - len(shapes))


def _plain(rng: np.random.Generator, count: int) -> list[LayerShape]:
    """Linear layers of random widths without any groups."""
    return [
        LayerShape("linear", (), None, 1, (int(rng.integers(4, 65)), int(rng.integers(4, 65))), int(rng.integers(1, 9)))
        for _ in range(count)
    ]


def _by_element(problem: Problem, menu: Menu) -> Problem:
    """The same problem with granularity `element`: sparsities inside every layer."""
    layers = tuple(
        replace(layer, sparsities=np.array(menu.sparsities), source=index) for index, layer in enumerate(problem.layers)
    )
    return Problem(layers, replace(problem.costs, granularity="element"))
