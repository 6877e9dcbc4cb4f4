"""`nn.MultiheadAttention` with layers of its own for queries, keys and values.

PyTorch's module holds the three in one parameter that no layer runs, so its matrices would get no labels and its heads
could not be removed. The same module with three linear layers computes the same:

    in_proj_weight (3 d, d), in_proj_bias (3 d)     become     q_proj, k_proj, v_proj (d, d) with biases (d)
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.borrowed import evaluating
from autocompress.network.folding import linear_of, replace_modules_
from autocompress.network.verification import REORDERED_SUMS, are_close
from autocompress.samples import Inputs, call
from autocompress.tasks.outputs import named_outputs


class SeparateAttention(nn.Module):
    """Attention of several heads, called as `nn.MultiheadAttention` is.

    Args:
        original: module whose weights are taken over: without `bias_k`, `bias_v` and `add_zero_attn`.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first, self.dropout = original.batch_first, original.dropout
        self.in_proj_bias = None  # nn.TransformerEncoderLayer then calls this module, not one operator for all of it
        self._qkv_same_embed_dim = original._qkv_same_embed_dim
        if original._qkv_same_embed_dim:
            weights = original.in_proj_weight.detach().chunk(3)
        else:
            weights = (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
        given = original.in_proj_bias
        biases = (None, None, None) if given is None else given.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Output in the form of `query`, and where they are wanted the weights, (N, L, S) or (N, heads, L, S).

        Args:
            query: (N, L, d), (L, N, d) without `batch_first`, or (L, d).
            key: likewise with S positions.
            value: likewise with S positions.
            key_padding_mask: (N, S) or (S,); True, or what is added to the scores, where a key is left out.
            need_weights: whether the weights are wanted.
            attn_mask: (L, S) or (N * heads, L, S), likewise.
            average_attn_weights: whether the weights are averaged over heads.
            is_causal: promise that `attn_mask` is causal; it has no effect.
        """
        single, swapped = query.ndim == 2, query.ndim == 3 and not self.batch_first
        if single:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif swapped:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return output[0], None if weights is None else weights[0]
        return (output.transpose(0, 1) if swapped else output), weights

    def _heads(self, x: Tensor) -> Tensor:
        """(N, heads, L, head_dim) from (N, L, heads * head_dim)."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores (N, heads, L, S), in a shape that is broadcast over them."""
        masks = []
        if attention is not None:
            masks.append(
                attention if attention.ndim == 2 else attention.view(len(q), self.num_heads, *attention.shape[1:])
            )
        if padding is not None:
            masks.append(padding[:, None, None])
        added = [_additive(mask, q.dtype) for mask in masks]
        return added[0] + added[1] if len(added) == 2 else next(iter(added), None)


def separated(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy of the network in which attention has layers of its own; the network itself where it has no such modules.

    So, too, where the copy does not give the same outputs.

    Args:
        model: network in the form of `network.interface`; it is not changed.
        inputs: samples that the copy's outputs are compared on.
    """
    if not any(_is_separable(module) for module in model.modules()):
        return model
    result = copy.deepcopy(model)
    replace_modules_(result, {each: _replacement(each) for each in result.modules() if _is_separable(each)})
    for module in result.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which is for the one operator, too
    with evaluating(model), evaluating(result):
        ours, theirs = (list(named_outputs(call(each, inputs)).values()) for each in (result, model))
    return result if are_close(theirs, ours, REORDERED_SUMS) else model


def unseparated(model: nn.Module) -> list[str]:
    """Names of the modules of `nn.MultiheadAttention` that a network still has."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]


def _is_separable(module: nn.Module) -> bool:
    """Whether it is PyTorch's own module, without the extras that `SeparateAttention` lacks."""
    if type(module) is not nn.MultiheadAttention:
        return False
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn


def _replacement(module: Any) -> SeparateAttention:
    return SeparateAttention(module).train(module.training)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of the weight (rows, columns) and the bias (rows,)."""

    def copied(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.detach().clone(), weight.requires_grad)

    return linear_of(copied(weight), None if bias is None else copied(bias))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: minus infinity where a mask of booleans is True."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
