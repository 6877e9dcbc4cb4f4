"""The evaluator: what a plan costs in accuracy, by one stitched forward pass over the search split.

The evaluator keeps one copy of the network. For a plan it writes the menus' ready-made weights into that copy
(`stitch.py`), runs the search split, and compares the outputs with the original's (`measure.py`). Nothing is fitted or
trained, so that a plan takes a fraction of a second.
"""

from __future__ import annotations

import copy
import hashlib
import time

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, unknown_name
from autocompress.evaluation.effects import Effects, effects_around, first_order_effects
from autocompress.evaluation.measure import compare
from autocompress.evaluation.number_format import (
    BATCHES,
    DTYPES,
    fastest_batch,
    fastest_dtype,
    in_format,
    outputs_of,
    prepared,
    run,
    samples_that_fit,
    torch_device,
)
from autocompress.evaluation.predictions import Predictions
from autocompress.evaluation.stitch import Stitcher
from autocompress.menus.menus import Menus
from autocompress.network.folding import fold_batch_norms
from autocompress.network.structure import Network
from autocompress_envs.problem import FloatArray, Labeling, Outcome


class Evaluator:
    """Evaluates plans on the search split; a plan that was evaluated before costs nothing.

    An evaluation compares outputs on the samples of the search split: those of the network with the plan's weights from
    the menus, with those of the original. The copy that runs has its norms folded and, where `dtype` is `auto`, the
    dtype and batch size that a short timing found fastest; a dtype that changes the original's outputs by 0.002 nats
    or more is not taken.

    Args:
        model: network that is compressed; it is not changed.
        network: trace of `model`.
        menus: menus of the network.
        inputs: (N, …) float32 samples of the search split, N at least 1.
        labels: (N,) int64 classes of the samples; None: there are none, and accuracies are NaN.
        reference: original network whose outputs count, where `model` is another network of the same architecture;
            None: `model` itself.
        device: device that plans are run on, such as `cpu` or `cuda:0`.
        dtype: floating-point type of the forward passes: `auto`, `float32`, `bfloat16` or `float16`.
        batch_size: number of samples in a forward pass; None: the fastest of 64, 128 and 256 that memory holds.
        memory: most bytes that the process may hold in all, which bounds the batch size; None: what it holds now and
            70 % of what is available.

    Attributes:
        dtype: floating-point type of the forward passes, never `auto`.
        batch_size: number of samples in a forward pass.
        evaluations: number of different plans that were evaluated.
        forward_seconds: seconds spent in their forward passes.

    Raises:
        InputError: no samples, unknown dtype or device, or the original's outputs are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        menus: Menus,
        inputs: Tensor,
        labels: Tensor | None,
        *,
        reference: nn.Module | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        batch_size: int | None = None,
        memory: int | None = None,
    ) -> None:
        if dtype not in (*DTYPES, "auto"):
            raise unknown_name("dtype", dtype, [*DTYPES, "auto"])
        if len(inputs) == 0:
            raise InputError("`data` must leave at least one sample for the search split, got none.")
        self._device = torch_device(device)
        self._menus = menus
        self._problem = menus.problem()
        self._folded = fold_batch_norms(model, network).requires_grad_(False)
        self._inputs, self._labels = inputs, labels
        most = samples_that_fit(network, memory, BATCHES[-1])
        self._reference = outputs_of(reference or model, inputs, most)
        self._predictions = Predictions(self._reference)
        self._effects: Effects | None = None
        self._cache: dict[bytes, Outcome] = {}
        self.evaluations = 0
        self.forward_seconds = 0.0
        if dtype == "auto":
            dtype = fastest_dtype(self._folded, inputs, self._reference, self._device, most)
        self.dtype = dtype
        self.batch_size = batch_size or fastest_batch(self._folded, inputs, dtype, self._device, most)
        self._stitcher = Stitcher(self._prepared(), menus)
        self._batches = in_format(inputs, self._device, DTYPES[self.dtype]).split(self.batch_size)

    def __call__(self, labeling: Labeling) -> Outcome:
        """The outcome of a plan on the search split.

        Args:
            labeling: plan, as positions on the menus.
        """
        key = labeling.key()
        if key not in self._cache:
            self._cache[key] = self._evaluated(labeling)
            self.evaluations += 1
        return self._cache[key]

    def forget(self) -> None:
        """Drop all outcomes to free their memory; plans evaluated before are then evaluated again."""
        self._cache.clear()

    @property
    def probabilities(self) -> FloatArray:
        """(N, K) float64 class probabilities of the original on the search split (`Predictions`)."""
        return self._predictions.probabilities

    def effects(self, around: Labeling | None = None, samples: int | None = None) -> Effects | None:
        """The first-order effects of every label on the outputs on the search split.

        Args:
            around: plan around which the effects are computed, its own labels having none; None: around the original,
                which is computed once and stored with the menus.
            samples: number of samples that are needed, the first ones of the split; None: all.

        Returns:
            The effects, on at least that many samples; None where the menus are built lazily, since most of their
            weights would have to be built.
        """
        if not self._menus.eager:
            return None
        wanted = min(samples or len(self._inputs), len(self._inputs))
        if self._effects is None or self._effects.samples < wanted:
            self._effects = self._stored(wanted)
        if around is None:
            return self._effects
        model, batches = self._prepared(), self._first(wanted)
        return effects_around(
            model, self._menus, around, batches, self._predictions.pooled, self._effects.first(wanted)
        )

    def _first(self, samples: int) -> tuple[Tensor, ...]:
        """Batches of the first `samples` samples, in the format that the copy runs in."""
        batches: tuple[Tensor, ...] = torch.cat(self._batches)[:samples].split(self.batch_size)
        return batches

    def _stored(self, samples: int) -> Effects:
        """Effects around the original, kept beside the menus: they depend on no plan, hence on no budget either."""
        digest = hashlib.sha256(f"{samples} {self.dtype}".encode())
        for tensor in (self._inputs[:samples], self._reference[:samples]):
            digest.update(tensor.contiguous().numpy().tobytes())

        def tensors() -> dict[str, Tensor]:
            model, pooled = self._prepared(), self._predictions.pooled
            found = first_order_effects(model, self._menus, self._first(samples), pooled)
            parts = {"pruning": torch.from_numpy(found.pruning), "rounding": torch.from_numpy(found.rounding)}
            return {**parts, "passes": torch.tensor(found.passes, dtype=torch.float64)}

        read = self._menus.store.tensors(f"effects-{digest.hexdigest()[:16]}", tensors)
        return Effects(read["pruning"].numpy(), read["rounding"].numpy(), float(read["passes"]))

    def stitched(self, labeling: Labeling) -> nn.Module:
        """A new float32 model with the plan's weights, channels really removed and inputs rounded as the plan says.

        Args:
            labeling: plan, as positions on the menus.
        """
        return Stitcher(copy.deepcopy(self._folded).cpu(), self._menus).stitch_(labeling)

    def _evaluated(self, labeling: Labeling) -> Outcome:
        """The outcome of a plan that is not in the cache."""
        model = self._stitcher.stitch_(labeling)
        started = time.perf_counter()
        outputs = run(model, self._batches)
        self.forward_seconds += time.perf_counter() - started
        found = compare(self._reference, outputs, self._labels)
        resources, shift = self._problem.resources(labeling), self._predictions.shift(outputs)
        return Outcome(found.kl, found.accuracy, found.agreement, resources, shift)

    def _prepared(self) -> nn.Module:
        """A copy with the original's weights, as it is evaluated."""
        return prepared(self._folded, self.dtype, self._device)
