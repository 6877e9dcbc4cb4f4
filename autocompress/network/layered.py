"""Networks whose weights are all held by layers that the package knows: each row an output, each used in one way.

`layered` replaces some modules of a copy by others that compute the same:

- GRU, LSTM and RNN by linear layers, one for each matrix (`recurrent`);
- transposed convolutions by such whose weight has a row for each output (`transposed`);
- `Conv1D` of Hugging Face, a linear layer with a transposed weight, by `nn.Linear`;
- modules that use the weights of their layers without calling these by such that call them (`calling`);
- modules that share all their parameters, and compute the same, by one of them, which then runs several times.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from autocompress.network.calling import calling, uses_weights_of_layers
from autocompress.network.folding import linear_of, replace_modules_
from autocompress.network.interface import interfaced
from autocompress.network.recurrent import RECURRENT_TYPES, Recurrent
from autocompress.network.separate_attention import separated
from autocompress.network.tape import LABELLED_TYPES
from autocompress.network.transposed import TRANSPOSED_TYPES, with_rows_first
from autocompress.network.viewing import viewing
from autocompress.samples import Inputs
from autocompress.tasks.outputs import OutputForm


def with_layers(model: nn.Module, inputs: Inputs, form: OutputForm | None = None) -> nn.Module:
    """The network in the form that the package runs and labels: `layered`, `viewing`, `interfaced` and `separated`.

    Args:
        model: network, which is not changed.
        inputs: samples of what it takes, at least one.
        form: which outputs count, as for `interfaced`.
    """
    whole = viewing(layered(model), inputs[:2])
    return separated(interfaced(whole, inputs, form), inputs[:2])


def layered(model: nn.Module) -> nn.Module:
    """The network with every weight in a layer; itself where nothing is to be replaced.

    Subclasses of PyTorch's layers, and recurrent layers with projections (`proj_size`), stay as they are.

    Args:
        model: network, which is not changed.
    """
    if not any(map(_is_replaced, model.modules())) and not dict(_twins(model)):
        return model
    copied = copy.deepcopy(model)
    replacements = {module: _replacement(module) for module in copied.modules() if _is_replaced(module)}
    if copied in replacements:
        return replacements[copied]
    replace_modules_(copied, replacements)
    replace_modules_(copied, dict(_twins(copied)))
    return copied


def _is_replaced(module: nn.Module) -> bool:
    if type(module) in RECURRENT_TYPES:
        return not getattr(module, "proj_size", 0)
    known = type(module) in TRANSPOSED_TYPES or _is_hugging_face_conv1d(module)
    return known or uses_weights_of_layers(module)


def _is_hugging_face_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D. transformers is optional."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _replacement(module: Any) -> nn.Module:
    """What computes the same, with the module's hooks."""
    if isinstance(module, RECURRENT_TYPES):
        made: nn.Module = Recurrent(module)
    elif isinstance(module, TRANSPOSED_TYPES):
        made = with_rows_first(module)
    elif uses_weights_of_layers(module):
        made = calling(module)
    else:
        made = _linear(module)
    for hooks in (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    ):
        setattr(made, hooks, getattr(module, hooks))
    return made


def _linear(module: Any) -> nn.Module:
    """The linear layer of a Conv1D, whose weight is (inputs, outputs)."""
    weight = nn.Parameter(module.weight.detach().T.contiguous(), module.weight.requires_grad)
    return linear_of(weight, module.bias).train(module.training)


def _twins(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(module, an earlier one that has the same parameters and computes the same)."""
    firsts: dict[tuple[Any, ...], nn.Module] = {}
    for module in model.modules():
        if type(module) in LABELLED_TYPES and not _has_hooks(module):
            first = firsts.setdefault(_identity(module), module)
            if first is not module:
                yield module, first


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _identity(module: nn.Module) -> tuple[Any, ...]:
    """What two modules have in common that compute the same: class, parameters, and settings as they print."""
    parameters = {name: id(parameter) for name, parameter in module._parameters.items()}
    return type(module), tuple(parameters.items()), module.extra_repr()
