"""Tiny transformers with random weights, as they are written by four libraries and by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.network.interface import interfaced
from autocompress.network.separate_attention import separated
from autocompress.samples import Inputs, Samples

TOKENS, WIDTH = 10, 32


def texts(count: int) -> Samples:
    """Token numbers below 50 with a mask; every third text has 4 tokens."""
    ids = torch.randint(1, 50, (count, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    return Samples((ids, mask), ("input_ids", "attention_mask"))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def vectors(count: int) -> Tensor:
    return torch.randn(count, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def of_transformers(kind: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library: Any = pytest.importorskip("transformers", reason="needs the extra text")
        config = getattr(library, f"{kind}Config")(**arguments)
        task = "ForImageClassification" if kind == "ViT" else "ForSequenceClassification"
        model: nn.Module = getattr(library, f"{kind}{task}")(config)
        model.config._attn_implementation = "eager"
        return model

    return build


def of_timm() -> nn.Module:
    timm: Any = pytest.importorskip("timm", reason="needs the extra vision")
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    model: nn.Module = timm.create_model("deit_tiny_patch16_224", **shape)
    return model


def of_torchvision() -> nn.Module:
    torchvision: Any = pytest.importorskip("torchvision", reason="needs the extra vision")
    model: nn.Module = torchvision.models.VisionTransformer(32, 8, 2, 4, WIDTH, 64, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zeros otherwise
    return model


class Encoder(nn.Module):
    """Input 10x32: `nn.TransformerEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Written(nn.Module):
    """Input 10x32: attention as a subclass writes it, between a shortcut and a head."""

    def __init__(self, rows: int = 3 * WIDTH) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(WIDTH, rows), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.heads = 4

    def mixed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.out(self.mixed(x))).mean(1))


class HeadByHead(Written):
    """q, k and v of the first head come first, then those of the second."""

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), TOKENS, self.heads, 3, 8).permute(3, 0, 2, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class FewerKeys(Written):
    """4 heads of queries and 2 of keys and values in one layer."""

    def __init__(self) -> None:
        super().__init__(WIDTH + 2 * 16)
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 8

    def mixed(self, x: Tensor) -> Tensor:
        sizes = [self.num_heads * 8, self.num_kv_heads * 8, self.num_kv_heads * 8]
        q, k, v = (part.unflatten(2, (-1, 8)).transpose(1, 2) for part in self.qkv(x).split(sizes, 2))
        repeats = self.num_heads // self.num_kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class FixedNumbers(Written):
    """The number of heads stands in the code."""

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), TOKENS, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Toy:
    """A network, its samples, and what is to be found in it.

    Attributes:
        build: function that makes it.
        samples: function from a number to as many samples.
        heads: width of the groups of heads, by part of the owner's name.
        inner: width of the groups of feed-forward blocks, likewise.
    """

    build: Callable[[], nn.Module]
    samples: Callable[[int], Inputs]
    heads: dict[str, int]
    inner: dict[str, int]

    def made(self) -> tuple[nn.Module, Inputs]:
        """The network in the form that jobs run it, and one sample."""
        torch.manual_seed(0)
        model, inputs = self.build().eval(), self.samples(2)
        return separated(interfaced(model, inputs), inputs).eval(), inputs[:1]


_BERT = {
    "vocab_size": 50, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 16, "initializer_range": 0.5,
}  # fmt: skip
TOYS = {
    "timm": Toy(of_timm, images, {"attn.qkv": 3}, {"mlp.fc1": 192}),
    "torchvision": Toy(of_torchvision, images, {"q_proj": 4}, {"mlp.0": 64}),
    "encoder": Toy(Encoder, vectors, {"q_proj": 4}, {"linear1": 64}),
    "bert": Toy(of_transformers("Bert", **_BERT), texts, {"query": 4}, {"intermediate": 64}),
    "roberta": Toy(of_transformers("Roberta", **_BERT, pad_token_id=0), texts, {"query": 4}, {"intermediate": 64}),
    "distilbert": Toy(
        of_transformers(
            "DistilBert", dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=50, max_position_embeddings=16
        ),
        texts, {"q_lin": 4}, {"lin1": 64},
    ),
    "vit": Toy(
        of_transformers(
            "ViT", hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
            patch_size=8, initializer_range=0.5,
        ),
        lambda count: Samples((images(count),), ("pixel_values",)), {"q_proj": 4}, {"mlp.fc1": 64},
    ),
    "llama": Toy(
        of_transformers("Llama", **_BERT | {"intermediate_size": 48}, num_key_value_heads=2, pad_token_id=0),
        texts, {"q_proj": 2}, {"gate_proj": 48},
    ),
}  # fmt: skip
