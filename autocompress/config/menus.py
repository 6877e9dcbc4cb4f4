"""Options of the menus: which labels are on offer."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ValidationInfo, field_validator

from autocompress.config.part import Part, as_tuple, as_tuple_or_none, option
from autocompress.errors import InputError


class MenuOptions(Part):
    """Which labels every layer may get, and how the weights of each label are made."""

    TITLE: ClassVar[str] = "Menus"

    criterion: str = option(
        "obs", "Pruning criterion, which says what is removed first: obs (second order), l1, l2, activation, taylor or "
        "random."
    )  # fmt: skip
    quantizer: str = option("gptq", "How weights are rounded: gptq, nearest, mse, fixed-point or binary.")
    granularity: str = option(
        "channel", "What is pruned: channel (whole channels), element (single weights) or n:m such as 2:4."
    )
    weight_bits: tuple[int, ...] | None = option(
        None, "Weight bit-widths on offer: 1 to 8, 16, 32. Default: 2,4,8; with the target packed 2,3,4,5,6,8."
    )
    activation_bits: tuple[int, ...] = option((8,), "Bit-widths of layer inputs on offer: 4 to 8, 32.")
    sparsity_levels: int = option(8, "Sparsities on offer: 0, 1/levels, 2/levels, …; 1: no pruning.", ge=1)
    remove_branches: bool | None = option(
        None,
        "Also offer sparsity 1, which removes a residual branch whole: it saves time where thinner layers do not. "
        "Default: only with a budget of latency.",
    )
    width_steps: bool | None = option(
        None,
        "Leave channels in multiples of 4, 8 or 16, by the width of a layer, which integer kernels run well at, not "
        "in exact shares. Default: from 64 channels on; of all layers with a budget of latency.",
    )
    ranks: tuple[float, ...] = option(
        (),
        "Low ranks on offer, as shares of a layer's multiply-accumulates such as 0.25,0.5,0.75: two thin layers may "
        "stand in for a linear layer or 1x1 convolution. Default: none.",
    )
    target: str = option(
        "onnxruntime",
        "Where the result runs, and whose file the budget size counts: onnxruntime (model.onnx), openvino "
        "(model_openvino.onnx), litert (model.tflite), executorch (model.pte) or packed (model.safetensors alone). "
        "openvino, litert and executorch need the extra of their name.",
    )

    @field_validator("ranks", mode="before")
    @classmethod
    def _split_ranks(cls, value: Any) -> Any:
        return as_tuple_or_none(value)

    @field_validator("weight_bits", "activation_bits", mode="before")
    @classmethod
    def _split_bits(cls, value: Any, info: ValidationInfo) -> Any:
        bits = as_tuple(value)
        if bits in ([], (), ("",)):
            raise InputError(
                f"`{info.field_name}` must be at least one bit-width, such as 2,4,8, got none; leave it out for the "
                "default."
            )
        return bits
