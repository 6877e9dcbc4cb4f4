"""The policy: a network that scores the labels on the next layer's menu, given all layers, their labels and the
budgets.

Its input is the observation of the environment's version 1, so any number of layers, labels and budgets will do:

    layers (T, 37)   linear, two blocks of self-attention over the layers: a row for every layer
    state            the next layer's row, the mean row of layers that have a label, that of layers that have none,
                     and context (29,), through a perceptron
    options (O, 28)  linear, plus the state, through a perceptron: a score for every label on the menu
    value            from the state: the return that is still to come
    prices           from every layer's row

A score is added to the solver's own (`base`: the expected divergence and what the costs are worth), so a policy that
has learned nothing labels by the solver's multiplier. Log prices say how much more a layer's pruning, or its rounding,
hurts the whole network than its expected loss says; the planner uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.searchers.prices import PRICE_LIMIT
from autocompress_envs.labeling.observation import CONTEXT_NAMES, LAYER_NAMES, OPTION_NAMES

WIDTH = 64
HEADS = 4
DEPTH = 2
_SIZES = {"layers": len(LAYER_NAMES), "options": len(OPTION_NAMES), "context": len(CONTEXT_NAMES)}
_ILLEGAL = -1e9  # logit
_PRESENT, _NEXT, _LABELLED = (LAYER_NAMES.index(f"is_{name}") for name in ("present", "next", "labelled"))


@dataclass(frozen=True)
class Scores:
    """What a policy says of B observations.

    Attributes:
        logits: (B, O) scores of the options, natural logarithms of unnormalised probabilities.
        values: (B,) returns still to come, in decades of divergence.
        prices: (B, T, 2) log prices of pruning and rounding of every layer, in [-PRICE_LIMIT, PRICE_LIMIT].
    """

    logits: Tensor
    values: Tensor
    prices: Tensor


class LabelNetwork(nn.Module):
    """One member of a policy.

    Args:
        width: features inside, a multiple of `HEADS`.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Linear(_SIZES["layers"], width)
        block = nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.attend = nn.TransformerEncoder(block, DEPTH, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.context = nn.Linear(_SIZES["context"], width)
        self.state = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width))
        self.options = nn.Linear(_SIZES["options"], width)
        self.score = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), _silent(width, 1))
        self.value = nn.Sequential(nn.GELU(), _silent(width, 1))
        self.price = _silent(width, 2)
        self.sharpness = nn.Parameter(torch.zeros(()))  # natural logarithm of the factor on the solver's own scores

    def forward(self, observed: Mapping[str, Tensor]) -> Scores:
        """The scores of normalised observations.

        Args:
            observed: `layers` (B, T, 37), `options` (B, O, 28), `context` (B, 29) and `base` (B, O) as the environment
                gives them but normalised, and `flags` (B, T, 3): whether a layer is there, is next, has a label.
        """
        present, following, labelled = observed["flags"].unbind(2)
        rows = self.attend(self.layers(observed["layers"]), src_key_padding_mask=present < 0.5)  # (B, T, W)
        summaries = [_mean(rows, following), _mean(rows, labelled), _mean(rows, present - labelled)]
        state = self.state(torch.cat([*summaries, self.context(observed["context"])], 1))  # (B, W)
        scores = self.score(self.options(observed["options"]) + state[:, None])[..., 0]  # (B, O)
        prices = self.price(rows).clamp(-PRICE_LIMIT, PRICE_LIMIT)
        return Scores(self.sharpness.exp() * observed["base"] + scores, self.value(state)[:, 0], prices)


class LabelPolicy(nn.Module):
    """Mean over members that were trained from different initial weights.

    Args:
        members: number of members, at least 1.
        width: features inside a member.
        seed: seed of the members' initial weights.

    Attributes:
        members: the member networks.
        mean, deviation: by part of the observation, (F,) mean and standard deviation of every column over the
            observations that the policy was trained on; deviations are above 0.
    """

    def __init__(self, members: int = 1, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        self.width = width
        for part, size in _SIZES.items():
            self.register_buffer(f"mean_{part}", torch.zeros(size))
            self.register_buffer(f"deviation_{part}", torch.ones(size))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.members = nn.ModuleList(LabelNetwork(width) for _ in range(members))

    def each(self, observed: Mapping[str, Tensor]) -> list[Scores]:
        """What every member says of observations as the environment gives them, with a leading batch axis."""
        normalised = {
            part: (observed[part] - self.get_buffer(f"mean_{part}")) / self.get_buffer(f"deviation_{part}")
            for part in _SIZES
        }
        flags = observed["layers"][..., [_PRESENT, _NEXT, _LABELLED]]
        return [member({**normalised, "flags": flags, "base": observed["base"]}) for member in self.members]

    def forward(self, observed: Mapping[str, Tensor]) -> Scores:
        """The members' mean scores of observations as the environment gives them, with a leading batch axis."""
        said = self.each(observed)
        logits = torch.stack([scores.logits for scores in said]).mean(0)
        values = torch.stack([scores.values for scores in said]).mean(0)
        return Scores(logits, values, torch.stack([scores.prices for scores in said]).mean(0))


def masked(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits (B, O) with those of illegal options so low that their probability is 0."""
    return logits.masked_fill(~masks, _ILLEGAL)


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    """(B, W) means of rows (B, T, W) that have the weight 1 in weights (B, T); zeros where none has."""
    return torch.einsum("btw,bt->bw", rows, weights) / weights.sum(1, keepdim=True).clamp_min(1.0)


def _silent(width: int, outputs: int) -> nn.Linear:
    """A last layer whose weights are 0, so that it says nothing before it has learned."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
