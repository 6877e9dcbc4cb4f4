"""`nn.MultiheadAttention` with layers of its own computes the same."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.network.separate_attention import SeparateAttention, separated, unseparated


def attention(**options: object) -> tuple[nn.MultiheadAttention, SeparateAttention]:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 2, **options).eval()  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module, SeparateAttention(module).eval()


def same(given: tuple[Tensor, Tensor | None], wanted: tuple[Tensor, Tensor | None]) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or (a.shape == b.shape and torch.allclose(a, b, atol=1e-5)))
        for a, b in zip(given, wanted, strict=True)
    )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention(batch_first: bool, bias: bool, need_weights: bool) -> None:
    module, ours = attention(batch_first=batch_first, bias=bias)
    x = torch.randn(3, 5, 16)
    assert same(ours(x, x, x, need_weights=need_weights), module(x, x, x, need_weights=need_weights))
    assert same(ours(x[0], x[0], x[0]), module(x[0], x[0], x[0]))


@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_and_other_inputs(need_weights: bool) -> None:
    module, ours = attention(batch_first=True, kdim=6, vdim=7)
    query, key, value = torch.randn(3, 4, 16), torch.randn(3, 5, 6), torch.randn(3, 5, 7)
    padding = torch.arange(5) >= torch.tensor([[5], [2], [4]])
    by_head = torch.randn(6, 4, 5)
    for mask in (torch.randn(4, 5), torch.rand(4, 5) < 0.2, by_head):
        options = {"attn_mask": mask, "need_weights": need_weights, "average_attn_weights": mask is by_head}
        assert same(ours(query, key, value, **options), module(query, key, value, **options))
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    assert same(ours(query, key, value, **options), module(query, key, value, **options))


def test_networks_without_such_modules_and_those_with_extras_stay() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    for model in (nn.Linear(4, 3), Extra()):
        inputs = torch.randn(2, 4) if isinstance(model, nn.Linear) else torch.randn(2, 5, 16)
        assert separated(model, inputs) is model
        assert unseparated(model) == ([] if isinstance(model, nn.Linear) else ["attention"])


def test_the_given_network_is_not_changed() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    result = separated(layer, torch.randn(2, 5, 16))
    assert isinstance(layer.self_attn, nn.MultiheadAttention)
    assert isinstance(result.self_attn, SeparateAttention)
    assert {name for name, _ in result.self_attn.named_parameters()} == {
        f"{name}.{part}" for name in ("q_proj", "k_proj", "v_proj", "out_proj") for part in ("weight", "bias")
    }
