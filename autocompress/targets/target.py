"""Targets by name: which labels are legal there, and the file that the result is shipped in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import Compressed
from autocompress.registry import Registry
from autocompress.run.names import MODEL, MODEL_ONNX
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.packed.file import pack, pack_weights
from autocompress.targets.timing import Session


@dataclass(frozen=True)
class Runtime:
    """What runs a target's file on this machine.

    Attributes:
        name: name of the runtime.
        open: loads the content of a file.
    """

    name: str
    open: Callable[[bytes], Session]


@dataclass(frozen=True)
class Target:
    """Where the result runs.

    Attributes:
        name: name of the target.
        file_name: name of its file in a run folder; the budget `size` counts this file's bytes.
        write: makes that file's content.
        weight_bits: legal widths of weights, ascending: some of 1 to 8, 16 and 32.
        activation_bits: legal widths of layer inputs, ascending: some of 4 to 8 and 32.
        default_weight_bits: widths of weights on offer where the user names none; empty: all legal ones.
        only_channels: whether its files store removed single weights as zeros, so that only channels save bytes.
        integer_kernels: whether tensors between layers are rounded too, so that integer kernels run in a row.
        holds_any_network: whether `pack_weights` can take over where torch.export can't follow the network.
        runtime: what runs the file here: then it is run and timed beside PyTorch whenever a run is verified; or None.
    """

    name: str
    file_name: str
    write: Callable[[Lowered], bytes]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    default_weight_bits: tuple[int, ...] = ()
    only_channels: bool = True
    integer_kernels: bool = False
    holds_any_network: bool = False
    runtime: Runtime | None = None

    @property
    def offered_weight_bits(self) -> tuple[int, ...]:
        """Widths of weights on offer where the user names none."""
        return self.default_weight_bits or self.weight_bits

    def check(self, weight_bits: Iterable[int], activation_bits: Iterable[int], granularity: str) -> None:
        """Raises InputError where a label is not legal here."""
        elsewhere = " or --target packed" if self.name != "packed" else ""
        for name, got, legal in (
            ("weight_bits", weight_bits, self.weight_bits),
            ("activation_bits", activation_bits, self.activation_bits),
        ):
            illegal = [bits for bits in got if bits not in legal]
            if illegal:
                raise InputError(
                    f"`{name}` must be among {', '.join(map(str, legal))} for the target {self.name}, "
                    f"got {illegal[0]}; choose others{elsewhere}."
                )
        if self.only_channels and granularity != "channel":
            raise InputError(
                f"`granularity` must be channel for the target {self.name}, whose files store zeros, "
                f"got {granularity}; pass --target packed."
            )


TARGETS: Registry[Target] = Registry(
    "target",
    {
        "onnxruntime": Target(
            name="onnxruntime",
            weight_bits=(2, 4, 8, 16, 32),
            default_weight_bits=(2, 4, 8),
            activation_bits=(8, 32),
            only_channels=True,
            integer_kernels=True,
            file_name=MODEL_ONNX,
            write=write_onnx,
            runtime=Runtime("ONNX Runtime", open_session),
        ),
        "packed": Target(
            name="packed",
            weight_bits=(*range(1, 9), 16, 32),
            default_weight_bits=(2, 3, 4, 5, 6, 8),
            activation_bits=(*range(4, 9), 32),
            only_channels=False,
            integer_kernels=False,
            file_name=MODEL,
            write=pack,
            holds_any_network=True,
        ),
    },
)


def lowered_for(target: Target, compressed: Compressed, inputs: Tensor) -> Lowered | None:
    """The network as the target runs it; None where torch.export can't follow it and the target's file can do without.

    Args:
        target: where it runs.
        compressed: the network.
        inputs: (n, …) samples of its input.

    Raises:
        ExportError: torch.export can't follow the network, and the target's file needs that.
    """
    try:
        return lower(compressed, inputs, integer=target.integer_kernels)
    except ExportError as error:
        if target.holds_any_network:
            return None
        raise ExportError(f"{error} The target {target.name} needs that; pass --target packed.") from error


def target_file(target: Target, compressed: Compressed, lowered: Lowered | None, inputs: Tensor) -> bytes:
    """The target's file of a network, `lowered` being what `lowered_for` gave."""
    return pack_weights(compressed, inputs.shape[1:]) if lowered is None else target.write(lowered)
