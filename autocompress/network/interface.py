"""The forms in which networks are run here: tensors by position in; out come rows, or the tensors that count.

A network may want its tensors by name and give them in a container, as those of Hugging Face do:

    model(input_ids=..., attention_mask=...).logits

`interfaced` gives the same network in the form that the package runs: a copy of the module alone, whose class is one
of the same name that inherits from the original's and has another `forward`; the modules inside are shared, so that
layers keep their names and weights. (PyTorch's parametrizations change a module's class in the same way.) There are
three such forms, and a network can be taken from each to the others:

    interfaced(model, inputs, form)    gives logits (N, classes), or rows (N, P, K) as its task makes them of outputs
    raw(model)                         gives the outputs that count: a tensor, or several in a tuple; files hold this
    plain(model)                       has the `forward` that it was written with
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.samples import ONE, Inputs, Samples, tensors_of
from autocompress.tasks.outputs import ONLY, OutputForm, Outputs, named_outputs, single


class Interfaced:
    """Mixed into the class of a network: tensors by position in, rows or outputs out."""

    _names: ClassVar[tuple[str, ...]]
    _order: ClassVar[tuple[str, ...] | None]  # names in the order in which it takes them; None: by name
    _plain: ClassVar[type[nn.Module]]
    _form: ClassVar[OutputForm | None]  # None: whatever it gives

    def forward(self, *tensors: Tensor) -> Tensor | Outputs:
        """Rows or outputs for tensors in the order of `Samples`."""
        found = self.named(*tensors)
        if self._form is None:
            return single(tuple(found.values()))
        if missing := [name for name in self._form.names if name not in found]:
            raise InputError(f"`model` must always give the same outputs, got {', '.join(found)} without {missing[0]}.")
        outputs = tuple(found[name] for name in self._form.names)
        return single(outputs) if self._form.rows is None else self._form.rows(outputs, tensors)

    def named(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The outputs that count by themselves, by name."""
        run: Any = self._plain.forward
        given = dict(zip(self._names, tensors, strict=True))
        result = run(self, **given) if self._order is None else run(self, *(given[name] for name in self._order))
        return named_outputs(result, getattr(self, "output_names", ()))


def outputs_by_name(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The outputs that count by themselves, by name, of a network in whatever form.

    Args:
        model: network, which is run as it is.
        inputs: (n, …) samples.

    Raises:
        InputError: it gives no tensor of floating-point numbers.
    """
    whole: Any = _in_form(plain(model), inputs, None)
    found: dict[str, Tensor] = whole.named(*tensors_of(inputs))
    return found


def interfaced(model: nn.Module, inputs: Inputs, form: OutputForm | None = None) -> nn.Module:
    """The network in the form that the package runs; itself where it has that form already.

    Args:
        model: network, which is not changed.
        inputs: samples of what it takes.
        form: which outputs count, and how rows are made of them. Default: all that count by themselves, as they are.
    """
    has_form = isinstance(model, Interfaced) and form is None
    if has_form or (not isinstance(inputs, Samples) and form in (None, OutputForm())):
        return model
    return _in_form(plain(model), inputs, form)


def _in_form(model: nn.Module, inputs: Inputs, form: OutputForm | None) -> nn.Module:
    names, order = (inputs.names, _order(model, inputs)) if isinstance(inputs, Samples) else ((ONE,), (ONE,))
    return _with_class(model, {"_names": names, "_order": order, "_plain": type(model), "_form": form})


def _with_class(model: nn.Module, fields: dict[str, Any]) -> nn.Module:
    """A copy of a module alone, whose class mixes `Interfaced` into the module's."""
    kind = fields["_plain"]
    wrapped = copy.copy(model)
    wrapped.__class__ = type(kind.__name__, (Interfaced, kind), {"__module__": kind.__module__, **fields})
    return wrapped


def _order(model: nn.Module, inputs: Samples) -> tuple[str, ...] | None:
    """The names of the tensors in the order in which a network takes them; None where it takes them by name.

    A network that knows the names of its inputs, as one from an ONNX file does, takes them in their order.
    """
    own: Sequence[str] = getattr(model, "input_names", ())
    if inputs.by_name and set(own) == set(inputs.names):
        return tuple(own)
    return None if inputs.by_name else inputs.names


def argument_names(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Names by which a network's own `forward` takes its tensors; empty where some have no name, as with `*tensors`.

    Args:
        model: network in whatever form.
        inputs: samples of what it takes.
    """
    if isinstance(inputs, Samples) and inputs.by_name:
        return inputs.names
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(plain(model).forward).parameters.values()
    names = tuple(each.name for each in parameters if each.kind in kinds)
    count = len(tensors_of(inputs))
    return names[:count] if len(names) >= count else ()


def raw(model: nn.Module) -> nn.Module:
    """The network that gives the outputs that count as they are: a tensor, or several in a tuple."""
    if not isinstance(model, Interfaced) or model._form is None or model._form.rows is None:
        return model
    form = OutputForm(model._form.names)
    return _with_class(model, {"_names": model._names, "_order": model._order, "_plain": model._plain, "_form": form})


def plain(model: nn.Module) -> nn.Module:
    """The network with the `forward` that it was written with."""
    if not isinstance(model, Interfaced):
        return model
    original: nn.Module = copy.copy(model)
    original.__class__ = model._plain
    return original


def output_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the outputs that count, as files have them; `output` where it is the only one and has no name."""
    own = tuple(getattr(model, "output_names", ()))
    if isinstance(model, Interfaced) and model._form is not None:
        names = model._form.names
        return own if len(names) == 1 and len(own) == 1 else names
    return own if len(own) == 1 else (ONLY,)
