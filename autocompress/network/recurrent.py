"""Recurrent layers whose matrices are linear layers of their own: GRU, LSTM and the plain RNN.

PyTorch runs `nn.GRU` and its kin as one operator, whose matrices nobody can listen to. `Recurrent` has the same
parameters, but in linear layers that are called as the parameters were: `weight_ih_l0` multiplies the inputs of layer
0, `weight_hh_l0` its hidden states, `…_reverse` those of the backward direction. It runs in two ways (`written_out`):
as PyTorch's operator, or step by step, where each linear layer is called on what its matrix really reads.

With gi = W_ih x_t + b_ih and gh = W_hh h + b_hh a step is, as PyTorch's documentation has it (σ: sigmoid, ∘: product of
elements; the rows of the matrices are the gates in this order):

    RNN:   h = tanh(gi + gh), or relu
    GRU:   r, z = σ(gi + gh);   n = tanh(gi + r ∘ gh);   h = (1 - z) ∘ n + z ∘ h
    LSTM:  i, f, g, o = gi + gh;   c = σ(f) ∘ c + σ(i) ∘ tanh(g);   h = σ(o) ∘ tanh(c)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.network.folding import linear_of
from autocompress.network.written_out import runs_step_by_step

RECURRENT_TYPES = (nn.GRU, nn.LSTM, nn.RNN)
_OPERATORS: dict[str, Callable[..., Any]] = {
    "GRU": torch.gru,
    "LSTM": torch.lstm,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM, each (N, H)
_Cell = Callable[[Tensor, Tensor, State], State]


class Recurrent(nn.Module):
    """What a GRU, LSTM or RNN computes, with the same parameters in linear layers.

    Args:
        original: layer whose parameters are taken, not copied; without projections (`proj_size`).
    """

    def __init__(self, original: nn.RNNBase) -> None:
        super().__init__()
        self.mode = original.mode
        self.input_size, self.hidden_size = original.input_size, original.hidden_size
        self.num_layers, self.bidirectional = original.num_layers, original.bidirectional
        self.batch_first, self.dropout, self.bias = original.batch_first, original.dropout, original.bias
        self.training = original.training
        for name in self._matrices():
            bias = getattr(original, name.replace("weight", "bias")) if original.bias else None
            self.add_module(name, linear_of(getattr(original, name), bias))

    def _matrices(self) -> list[str]:
        """Names of the linear layers, in the order of PyTorch's parameters."""
        return [
            f"weight_{what}_l{layer}{suffix}"
            for layer in range(self.num_layers)
            for suffix in self._suffixes()
            for what in ("ih", "hh")
        ]

    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Outputs and last states, as PyTorch's layer gives them.

        Args:
            input: (N, T, inputs) with `batch_first`, else (T, N, inputs).
            hx: (layers · directions, N, H) first states; of an LSTM a pair of such. None: zeros.

        Raises:
            InputError: `input` is a packed sequence, or has no batch axis.
        """
        if not isinstance(input, Tensor) or input.ndim != 3:
            got = f"{input.ndim} axes" if isinstance(input, Tensor) else type(input).__name__
            raise InputError(
                f"`model` must hand a recurrent layer a tensor of 3 axes (samples, steps, inputs), got {got}; "
                "pad sequences to one length."
            )
        if runs_step_by_step():
            x = input if self.batch_first else input.transpose(0, 1)  # (N, T, inputs)
            # Zeros that depend on the input to whoever follows it, so that every step counts as one of the network's.
            zeros = torch.zeros_like(x[:, 0, :1]).expand(self._directions(), len(x), self.hidden_size)
            return self._run_step_by_step(x, self._first_states(hx, zeros))
        samples = input.shape[0] if self.batch_first else input.shape[1]
        shape = (self._directions(), samples, self.hidden_size)
        states = self._first_states(hx, torch.zeros(shape, dtype=input.dtype, device=input.device))
        results = self._run_fused(input, states)
        return results[0], results[1] if len(states) == 1 else results[1:]

    def flatten_parameters(self) -> None:
        """Nothing: the parameters lie where their linear layers have them."""

    def _directions(self) -> int:
        """Directions of all layers together."""
        return self.num_layers * len(self._suffixes())

    def _first_states(self, hx: Any, zeros: Tensor) -> State:
        """(layers · directions, N, H) each: those that were given, or the `zeros`."""
        if hx is not None:
            return (hx,) if isinstance(hx, Tensor) else tuple(hx)
        return (zeros, zeros) if self.mode == "LSTM" else (zeros,)

    def _run_fused(self, input: Tensor, states: State) -> tuple[Tensor, ...]:
        flat: list[Tensor] = []
        for layer in range(self.num_layers):
            for suffix in self._suffixes():
                pair = [self.get_submodule(f"weight_{what}_l{layer}{suffix}") for what in ("ih", "hh")]
                flat += [each.weight for each in pair]  # type: ignore[misc]
                flat += [each.bias for each in pair if self.bias]  # type: ignore[misc]
        hx = list(states) if self.mode == "LSTM" else states[0]
        input = input.contiguous()  # torch.export would take strides of some inputs for a fixed number of samples
        found: tuple[Tensor, ...] = _OPERATORS[self.mode](
            input, hx, flat, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional,
            self.batch_first,
        )  # fmt: skip
        return found

    def _run_step_by_step(self, x: Tensor, states: State) -> tuple[Tensor, Any]:
        last: list[State] = []
        for layer in range(self.num_layers):
            directions = []
            for suffix in self._suffixes():
                state = tuple(each[len(last)] for each in states)
                outputs, end = self._direction(x, state, f"l{layer}{suffix}", backward=bool(suffix))
                directions.append(outputs)
                last.append(end)
            x = torch.cat(directions, 2) if len(directions) > 1 else directions[0]
            if self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
        return x if self.batch_first else x.transpose(0, 1), ends[0] if len(ends) == 1 else ends

    def _direction(self, x: Tensor, state: State, name: str, *, backward: bool) -> tuple[Tensor, State]:
        """Outputs (N, T, H) of one direction of one layer, and its last state."""
        cell = _CELLS[self.mode]
        of_inputs = self.get_submodule(f"weight_ih_{name}")(x).unbind(1)  # T of (N, rows)
        hidden = self.get_submodule(f"weight_hh_{name}")
        outputs = []
        for given in reversed(of_inputs) if backward else of_inputs:
            state = cell(given, hidden(state[0]), state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs, 1), state


def _gru(given: Tensor, hidden: Tensor, state: State) -> State:
    (r_in, z_in, n_in), (r_h, z_h, n_h) = given.chunk(3, 1), hidden.chunk(3, 1)
    update = (z_in + z_h).sigmoid()
    new = (n_in + (r_in + r_h).sigmoid() * n_h).tanh()
    return (new + update * (state[0] - new),)


def _lstm(given: Tensor, hidden: Tensor, state: State) -> State:
    keep_in, forget, new, out = (given + hidden).chunk(4, 1)
    memory = forget.sigmoid() * state[1] + keep_in.sigmoid() * new.tanh()
    return out.sigmoid() * memory.tanh(), memory


_CELLS: dict[str, _Cell] = {
    "GRU": _gru,
    "LSTM": _lstm,
    "RNN_TANH": lambda given, hidden, state: ((given + hidden).tanh(),),
    "RNN_RELU": lambda given, hidden, state: ((given + hidden).relu(),),
}
