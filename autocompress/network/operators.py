"""Which aten operators cost multiply-accumulates, how many, and which cost nothing that the budgets count."""

from __future__ import annotations

from typing import Any

import torch

# Operators that multiply and accumulate.
MATMULS = frozenset(
    {
        "convolution",
        "_convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "linear",
        "matmul",
        "addmm",
        "mm",
        "bmm",
        "baddbmm",
        "addbmm",
        "addmv",
        "mv",
        "dot",
    }
)
_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "native_layer_norm", "native_group_norm", "linalg_vector_norm", "norm", "_softmax", "_safe_softmax",
    "_log_softmax",
}  # fmt: skip
_POOLING_AND_RESAMPLING = {
    "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
}  # fmt: skip
_REDUCTIONS = {
    "mean", "sum", "prod", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "cumsum", "argmax",
    "argmin", "topk", "sort",
}  # fmt: skip
_DATA_MOVEMENT = {
    "cat", "stack", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d", "roll", "flip", "repeat", "clone", "copy", "_to_copy", "index", "index_select", "index_put",
    "gather", "scatter", "where", "masked_fill", "fill", "zero", "pixel_shuffle", "pixel_unshuffle",
    "native_channel_shuffle", "im2col", "col2im", "embedding", "as_strided", "empty_like", "zeros_like", "ones_like",
    "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "_local_scalar_dense",
}  # fmt: skip
_ACTIVATIONS = {"hardtanh", "hardswish", "_prelu_kernel", "glu", "log_sigmoid_forward", "native_dropout"}
# Operators without multiply-accumulates, which are what budgets count; they cost some time for every
# activation.
FREE = frozenset(_NORMS | _POOLING_AND_RESAMPLING | _REDUCTIONS | _DATA_MOVEMENT | _ACTIVATIONS)


# `scaled_dot_product_attention` runs under these names, too, for which PyTorch registers no formula.
_FLASH_ATTENTION = "_scaled_dot_product_flash_attention"
_ATTENTIONS = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
}


def is_matmul(func: Any) -> bool:
    """Whether an aten operator multiplies and accumulates, so that it may be a layer's."""
    return _base_name(func) in MATMULS


def is_lookup(func: Any) -> bool:
    """Whether an aten operator looks rows of a table up, as embeddings do."""
    return _base_name(func) == "embedding"


def is_free(func: Any) -> bool:
    """Whether an aten operator is known to cost no multiply-accumulates."""
    name = _base_name(func)
    return name in FREE or _is_pointwise(func.overloadpacket) or _is_pointwise(getattr(torch.ops.aten, name, None))


def multiply_accumulates(func: Any, args: Any, kwargs: Any, result: Any) -> int | None:
    """Multiply-accumulates of one call by PyTorch's own formula; None where there is none.

    The formulas are those of `torch.utils.flop_counter`, which count a multiply-accumulate as two operations.
    Attention counts every pair of positions, whether masked or not.

    Args:
        func: aten operator of the call.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: result of the call.
    """
    from torch.utils.flop_counter import flop_registry  # imports triton

    name = _base_name(func)
    formula = flop_registry.get(getattr(torch.ops.aten, _FLASH_ATTENTION if name in _ATTENTIONS else name, None))
    if formula is None:
        return None
    return int(formula(*args, **kwargs, out_val=result)) // 2


def _base_name(func: Any) -> str:
    """Name of an aten operator, the same for its in-place variant: `relu` for both `relu` and `relu_`."""
    return str(func.overloadpacket.__name__).removesuffix("_")


def _is_pointwise(packet: Any) -> bool:
    """Whether PyTorch tags an operator as element-wise; some in-place variants lack the tag."""
    overloads = packet.overloads() if packet is not None else []
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in overloads)
