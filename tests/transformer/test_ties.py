"""Ties: one label for q, k and v, and for gate and up."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_toys import TOYS, vectors

from autocompress.errors import InputError
from autocompress.evaluation.stitch import resolve
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.network import trace
from autocompress.plan import Label, Plan
from autocompress_envs.problem import Labeling


def ties(name: str) -> dict[str, str]:
    network = trace(*TOYS[name].made())
    return {layer.name: layer.tied_to for layer in network.layers if layer.tied_to is not None}


def test_which_layers_are_tied() -> None:
    layer = "model.layers.{}.self_attn.{}_proj".format
    block = "model.layers.{}.mlp.{}_proj".format
    assert ties("llama") == {
        **{layer(number, part): layer(number, "q") for number in range(2) for part in "kv"},
        **{block(number, "up"): block(number, "gate") for number in range(2)},
    }
    assert ties("timm") == {}
    assert len(ties("bert")) == len(ties("encoder")) == 4


class Crossed(nn.Module):
    """Input 10x32: queries of one tensor, keys and values of another; behind it odd numbers of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(32, 32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(9, 7), nn.Linear(9, 7), nn.Linear(7, 3)
        self.narrow = nn.Linear(32, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.before(x))
        q, k, v = (layer.unflatten(2, (-1, 8)).transpose(1, 2) for layer in (self.q(y), self.k(x), self.v(x)))
        x = torch.relu(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        x = self.narrow(x.mean(1))
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


def test_layers_of_other_inputs_or_odd_sizes_are_not_tied() -> None:
    network = trace(Crossed().eval(), vectors(1))
    assert {layer.name: layer.tied_to for layer in network.layers if layer.tied_to} == {"v": "k"}
    assert {"gate", "q"} <= {group.owner for group in network.groups}


@cache
def menus_of_llama() -> Menus:
    model, _ = TOYS["llama"].made()
    inputs = TOYS["llama"].samples(48)
    settings = MenuSettings(weight_bits=(2, 4, 8), activation_bits=(8, 32), sparsity_levels=4)
    return build_menus(model, trace(model, inputs[:1]), inputs, settings, data_fingerprint="toy")


def drawn(menus: Menus, seed: int) -> Labeling:
    rng = np.random.default_rng(seed)
    layers = menus.problem().layers
    counts = [[len(x.sparsities), len(x.weight_bits), len(x.activation_bits)] for x in layers]
    return Labeling(*rng.integers(0, np.array(counts)).T)


def test_the_first_of_a_tie_has_the_losses_of_all() -> None:
    menus = menus_of_llama()
    index, layers = menus.network.layer_index(), menus.problem().layers
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    each = [menus._numbers(menus.network.layers[index[name]], index) for name in names]
    first, *others = (layers[index[name]] for name in names)
    np.testing.assert_allclose(first.errors, sum(numbers.errors for numbers in each), rtol=1e-12)
    assert first.errors.shape == (1, 3, 2)
    for other in others:
        assert other.errors.tolist() == [[[0.0]]]
        assert (len(other.sparsities), len(other.weight_bits), len(other.activation_bits)) == (1, 1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_tied_layers_cost_what_they_cost_alone(seed: int) -> None:
    menus = menus_of_llama()
    labeling, problem = drawn(menus, seed), menus.problem()
    labels = menus.plan(labeling).labels.values()
    weight_bits, activation_bits = (
        np.array([getattr(label, part) for label in labels]) for part in ("weight_bits", "activation_bits")
    )
    counted = menus.network.costs.resources(problem.kept(labeling), weight_bits, activation_bits)
    found = problem.resources(labeling)
    rounded = sum(
        menus.settings.activation_bits[labeling.activation_bits[place]] == 32 for place in menus.leaders().values()
    )  # a tie's other layers are counted with a range where they have none
    assert found["size"] - counted["size"] == 8 * rounded
    assert (found["macs"], found["bitops"]) == (counted["macs"], counted["bitops"])


def test_plans_give_tied_layers_the_same_bits() -> None:
    menus = menus_of_llama()
    for seed in range(4):
        labeling = drawn(menus, seed)
        plan = menus.plan(labeling)
        choices = dict(zip(plan.labels, resolve(menus, labeling), strict=True))
        for layer in menus.network.layers:
            if layer.tied_to is not None:
                mine, first = plan.labels[layer.name], plan.labels[layer.tied_to]
                assert (mine.weight_bits, mine.activation_bits) == (first.weight_bits, first.activation_bits)
                assert choices[layer.name].weight_bits == choices[layer.tied_to].weight_bits
        assert menus.plan(menus.labeling(plan)) == plan


def test_a_plan_that_tears_a_tie_apart_is_refused() -> None:
    menus = menus_of_llama()
    plan = menus.plan(drawn(menus, 0))
    name, first = (f"model.layers.1.self_attn.{part}_proj" for part in "vq")
    bits = plan.labels[first].weight_bits
    other = next(each for each in menus.settings.weight_bits if each != bits)
    label = Label(plan.labels[name].sparsity, other, plan.labels[name].activation_bits)
    torn = Plan(plan.labels | {name: label}, plan.granularity, plan.fingerprint)
    with pytest.raises(InputError) as error:
        menus.labeling(torn)
    assert str(error.value) == (
        f"Layer {name}: `weight_bits` must be those of {first}, which runtimes run together with it: "
        f"{bits}, got {other}."
    )
