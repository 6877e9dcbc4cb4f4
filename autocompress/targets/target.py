"""Targets by name: which labels are legal there, and the file that the result is shipped in.

A target of your own is an entry of data: a name, a file name, a function that writes the file, and the labels that its
runtime can run.

    def write(lowered: Lowered) -> bytes: ...

    autocompress.register_target(Target("mine", "model.mine", write, weight_bits=(4, 8, 32), activation_bits=(8, 32)))

Everything that `write` needs is in `Lowered`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx, nn

from autocompress.errors import ExportError, InputError, missing_extra
from autocompress.execute.compressed import Compressed, uncompressed
from autocompress.files import LOCK
from autocompress.network.structure import Network
from autocompress.registry import Registry
from autocompress.run.names import (
    EXPORTED,
    MODEL,
    MODEL_ONNX,
    MODEL_OPENVINO,
    MODEL_PTE,
    MODEL_TFLITE,
    NEXT_CONFIG,
    RUN_FILES,
    TENSORBOARD,
)
from autocompress.samples import Inputs, fields_of
from autocompress.targets.executorch.file import write_executorch
from autocompress.targets.executorch.session import open_executorch
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress.targets.litert.file import write_litert
from autocompress.targets.litert.session import open_litert
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.openvino.session import INTEGER_BITS, open_openvino, write_openvino_onnx
from autocompress.targets.packed.file import pack, pack_weights
from autocompress.targets.runner import Runner
from autocompress.targets.timing import Effort, Machine, PairedTiming, Session, this_machine

_FEW = 8  # samples that ranges come from in a file whose answers nobody reads
_WEIGHT_BITS, _ACTIVATION_BITS = (*range(1, 9), 16, 32), (*range(4, 9), 32)  # what menus can make
# Names that a run folder uses for something else.
_TAKEN = frozenset(RUN_FILES) - frozenset(EXPORTED) | {TENSORBOARD, NEXT_CONFIG, LOCK}


@dataclass(frozen=True)
class Runtime:
    """The program that runs a target's file on this machine.

    Attributes:
        name: name of the runtime, as reports show it.
        open: function from the content of a file to the network, loaded and ready to run; a `Session` is anything with
            a method `run(inputs) -> outputs`, both (N, …), any N. `outputs` are float32, and so are `inputs` where the
            network takes one tensor of numbers.
        open_with: function from the content and a number of threads to the same; None: it runs on one thread only.
        package: name of the installed package whose version decides how long a network takes; empty: none.
        integer_bits: bit-widths of weights at which the runtime has integer kernels, where the inputs are rounded too.
            Default: all below 16.
        runner: command that runs the files on another machine, where they are timed; None: they are timed here.
    """

    name: str
    open: Callable[[bytes], Session]
    open_with: Callable[[bytes, int], Session] | None = None
    package: str = ""
    integer_bits: tuple[int, ...] = tuple(range(1, 9))
    runner: Runner | None = None

    def load(self, content: bytes, threads: int) -> Session:
        """The network of a file, loaded for so many threads.

        Raises:
            InputError: the runtime takes one thread only.
        """
        if threads == 1:
            return self.open(content)
        if self.open_with is None:
            raise InputError(f"`threads` must be 1 in the runtime {self.name}, got {threads}.")
        return self.open_with(content, threads)

    @property
    def version(self) -> str:
        """Name and version of the runtime on this machine."""
        return f"{self.name} {importlib.metadata.version(self.package)}" if self.package else self.name

    def where(self) -> tuple[Machine, str]:
        """The machine that files are timed on, and name and version of the runtime there.

        Raises:
            InputError: a runner does not answer, or has no such runtime.
        """
        if self.runner is None:
            return this_machine(), self.version
        machine, version = self.runner.where(self.package)
        return machine, f"{self.name} {version}"

    def time(self, files: tuple[bytes, bytes], batch: Inputs, effort: Effort, threads: int) -> PairedTiming:
        """The times of the original's file and of another, in turns, where the runner is.

        Args:
            files: both files.
            batch: (N, …) inputs that both are given.
            effort: how much it may take.
            threads: number of threads that one operator may use.

        Raises:
            InputError: the runner does not answer.
        """
        assert self.runner is not None, "files are loaded and timed here otherwise"
        return self.runner.time(self.package, files, batch, effort, threads)


@dataclass(frozen=True)
class Overhead:
    """Bytes of a file that grow with a network's layers and rows, besides the codes, scales and biases themselves.

    Attributes:
        layer: most bytes by which a layer's labels may make the file longer: lengths, offsets, padding.
        row: bytes for every row of a layer.
        width: bytes for every row that layers of equally many rows share.
    """

    layer: int = 8
    row: int = 0
    width: int = 0


@dataclass(frozen=True)
class Target:
    """A place where the result runs: the labels that are legal there, and its file.

    >>> def write(lowered):
    ...     return b"".join(layer.values.numpy().tobytes() for layer in lowered.layers.values())
    >>> target = Target("plain", "weights.bin", write, weight_bits=(8, 32), activation_bits=(32,))
    >>> target.offered_weight_bits
    (8, 32)
    >>> Target("plain", "plan.yaml", write, weight_bits=(8, 32), activation_bits=(32,))
    Traceback (most recent call last):
    autocompress.errors.InputError: `file_name` of the target plain must not be one of a run's own, got 'plan.yaml'.

    Attributes:
        name: name of the target, as in `--target NAME`.
        file_name: name of its file in a run folder; the budget `size` counts this file's bytes.
        write: function from a lowered network to the file's content. The same network must give the same bytes. It may
            raise ExportError for a network that the file can't hold.
        weight_bits: legal bit-widths of weights, ascending, out of 1 to 8, 16 and 32; 16 and 32 are floating point.
        activation_bits: legal bit-widths of layer inputs, ascending, out of 4 to 8 and 32; 32 rounds nothing.
        default_weight_bits: bit-widths of weights on offer where the user names none, out of `weight_bits`; empty: all
            of them.
        only_channels: whether the file stores removed single weights as zeros, so that only removing whole channels
            saves bytes; other granularities are then refused.
        integer_kernels: whether the graph rounds the tensors between layers too, so that the runtime can run integer
            kernels in a row (`integer` of `lower`). Otherwise only layer inputs are rounded, each for its layer alone.
        holds_any_network: whether `pack_weights` writes the file of a network that torch.export can't follow; such a
            file holds no graph. Otherwise such networks are refused.
        runtime: program that runs the file on this machine; then the file is run and timed beside PyTorch whenever a
            run is verified. None: there is none.
        overhead: bytes of the file that grow with the network's rows. Default: only lengths and offsets.
        extra: extra of this package that `write` and `runtime` need, and a module that it brings; None: none.

    Raises:
        InputError: the name is empty; the file name is no plain file name, or is one that a run folder uses itself;
            or bit-widths are missing, not ascending or not among those above.
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
    overhead: Overhead = Overhead()
    extra: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("`name` of a target must not be empty, got ''.")
        if self.file_name in ("", ".", "..") or {"/", "\\"} & {*self.file_name} or not self.file_name.isprintable():
            raise InputError(
                f"`file_name` of the target {self.name} must be the name of a file without a folder, "
                f"got {self.file_name!r}."
            )
        if self.file_name.lower() in _TAKEN or self.file_name.lower().startswith("policy."):
            raise InputError(
                f"`file_name` of the target {self.name} must not be one of a run's own, got {self.file_name!r}."
            )
        self._check_bits("weight_bits", self.weight_bits, _WEIGHT_BITS)
        self._check_bits("activation_bits", self.activation_bits, _ACTIVATION_BITS)
        if not set(self.default_weight_bits) <= set(self.weight_bits):
            raise InputError(
                f"`default_weight_bits` of the target {self.name} must be among its `weight_bits` "
                f"{self.weight_bits}, got {self.default_weight_bits}."
            )

    def _check_bits(self, field: str, bits: tuple[int, ...], possible: tuple[int, ...]) -> None:
        is_tuple = isinstance(bits, tuple)
        if not is_tuple or not bits or list(bits) != sorted(set(bits)) or not set(bits) <= set(possible):
            raise InputError(
                f"`{field}` of the target {self.name} must be a tuple, ascending, of numbers among "
                f"{', '.join(map(str, possible))}, got {bits}."
            )

    @property
    def offered_weight_bits(self) -> tuple[int, ...]:
        """Bit-widths of weights on offer where the user names none, ascending."""
        return self.default_weight_bits or self.weight_bits

    def check_installed(self) -> None:
        """Refuse a target whose extra is missing.

        Raises:
            InputError: it is; the message says how to install it.
        """
        if self.extra is not None and importlib.util.find_spec(self.extra[1]) is None:
            raise missing_extra("target", self.name, self.extra[0])

    def check(self, weight_bits: Iterable[int], activation_bits: Iterable[int], granularity: str) -> None:
        """Refuse labels that are not legal here.

        Args:
            weight_bits: bit-widths of weights.
            activation_bits: bit-widths of layer inputs.
            granularity: unit that sparsity removes: `channel`, `element` or `n:m`.

        Raises:
            InputError: a label is not legal here; the message says which are.
        """
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


def _check_from_outside(name: str, target: Target) -> None:
    """Refuse a target whose file would lie where the package writes one of its own."""
    if target.file_name.lower() in EXPORTED:
        raise InputError(
            f"`file_name` of the target {name} must not be one that the package writes "
            f"({', '.join(EXPORTED)}), got {target.file_name!r}."
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
            runtime=Runtime("ONNX Runtime", open_session, open_session, "onnxruntime"),
        ),
        "openvino": Target(
            name="openvino",
            weight_bits=(4, 8, 16, 32),
            default_weight_bits=(4, 8),
            activation_bits=(8, 32),
            only_channels=True,
            integer_kernels=True,
            file_name=MODEL_OPENVINO,
            write=write_openvino_onnx,
            runtime=Runtime("OpenVINO", open_openvino, open_openvino, "openvino", INTEGER_BITS),
            extra=("openvino", "openvino"),
        ),
        "litert": Target(
            name="litert",
            weight_bits=(4, 8, 16, 32),
            default_weight_bits=(4, 8),
            activation_bits=(8, 32),
            only_channels=True,
            integer_kernels=True,
            file_name=MODEL_TFLITE,
            write=write_litert,
            runtime=Runtime("LiteRT", open_litert, open_litert, "ai-edge-litert"),
            overhead=Overhead(
                layer=40, row=4, width=8
            ),  # constants begin at multiples of 16; biases' scales; zero points
            extra=("litert", "ai_edge_litert"),
        ),
        "executorch": Target(
            name="executorch",
            weight_bits=(8, 32),
            default_weight_bits=(8,),
            activation_bits=(8,),
            only_channels=True,
            integer_kernels=True,
            file_name=MODEL_PTE,
            write=write_executorch,
            runtime=Runtime("ExecuTorch", open_executorch, package="executorch"),
            overhead=Overhead(layer=64, row=4),  # four constants begin at multiples of 16; biases' scales
            extra=("executorch", "executorch"),
        ),
        "packed": Target(
            name="packed",
            weight_bits=_WEIGHT_BITS,
            default_weight_bits=(2, 3, 4, 5, 6, 8),
            activation_bits=_ACTIVATION_BITS,
            only_channels=False,
            integer_kernels=False,
            file_name=MODEL,
            write=pack,
            holds_any_network=True,
        ),
    },
    _check_from_outside,
)
"""Targets by name; `autocompress.register_target` adds one."""


def lowered_for(
    target: Target, compressed: Compressed, inputs: Inputs, graph: fx.GraphModule | None = None
) -> Lowered | None:
    """The network as the target runs it; None where torch.export can't follow it and the target's file can do without.

    Args:
        target: target that the network is lowered for.
        compressed: network to be lowered.
        inputs: (n, …) samples of its input, n at least 1.
        graph: what `exported` gave for a network with other weights, and all else the same. Default: the network is
            exported.

    Raises:
        ExportError: torch.export can't follow the network, and the target's file needs that.
    """
    try:
        return lower(compressed, inputs, integer=target.integer_kernels, graph=graph)
    except ExportError as error:
        if target.holds_any_network:
            return None
        raise ExportError(f"{error} The target {target.name} needs that; pass --target packed.") from error


def roughly_ranged_file(
    target: Target, compressed: Compressed, inputs: Inputs, graph: fx.GraphModule | None = None
) -> bytes:
    """The content of the target's file of a network, with ranges from a few samples.

    Its bytes are as many and it takes as long as with ranges from all of them; its answers are not as good.

    Args:
        target: target whose file is made.
        compressed: network to be written.
        inputs: (n, …) samples of its input, n at least 1.
        graph: as for `lowered_for`.

    Raises:
        ExportError: the target can't hold the network.
    """
    few = inputs[:_FEW]
    return target_file(target, compressed, lowered_for(target, compressed, few, graph), few)


def original_file(target: Target, folded: nn.Module, network: Network, inputs: Inputs) -> bytes:
    """The content of the target's file of the original, in float32.

    Args:
        target: target whose file is made.
        folded: original network with its norms folded.
        network: its trace.
        inputs: (n, …) samples of its input; only their shape counts.
    """
    return target.write(lower(uncompressed(folded, network), inputs, integer=False))


def target_file(target: Target, compressed: Compressed, lowered: Lowered | None, inputs: Inputs) -> bytes:
    """The content of the target's file of a network.

    Args:
        target: target whose file is made.
        compressed: network to be written.
        lowered: the same network as `lowered_for` gave it; None: its weights are packed without a graph.
        inputs: (n, …) samples of its input; only their shape counts.
    """
    return pack_weights(compressed, fields_of(inputs)) if lowered is None else target.write(lowered)
