"""The evaluator: what a plan costs in accuracy, by one stitched forward pass over the search split.

The evaluator keeps one copy of the network. For a plan it writes the menus' ready-made weights into that copy
(`stitch.py`), gives its layers' outputs the original's means and spreads (`renormalize.py`), runs the search split, and
compares the outputs with the original's (`measure.py`). Nothing is trained, so a plan takes a fraction of a second.
"""

from __future__ import annotations

import copy
import hashlib
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, unknown_name
from autocompress.evaluation.batches import Note
from autocompress.evaluation.effects import Effects, Progress, effects_around, first_order_effects
from autocompress.evaluation.measure import compare
from autocompress.evaluation.number_format import (
    BATCHES,
    DTYPES,
    fastest_batch,
    fastest_dtype,
    in_format,
    outputs_within,
    prepared,
    run,
    samples_that_fit,
    torch_device,
)
from autocompress.evaluation.predictions import Predictions
from autocompress.evaluation.renormalize import Affine, Renormalizer
from autocompress.evaluation.stitch import Stitcher, rows_left
from autocompress.memory import give_back
from autocompress.menus.fisher import gradient_samples
from autocompress.menus.menus import Menus
from autocompress.network.folding import fold_batch_norms
from autocompress.network.structure import Network
from autocompress.samples import Inputs, content
from autocompress_envs.problem import FloatArray, Labeling, Outcome


class Evaluator:
    """Evaluates plans on the search split; a plan that was evaluated before costs nothing.

    An evaluation compares outputs on the samples of the search split: those of the network with the plan's weights from
    the menus, with those of the original. The copy that runs has its norms folded and, where `dtype` is `auto`, the
    dtype and batch size that a short timing found fastest; a dtype that changes the original's outputs by 0.002 nats
    or more is not taken. A plan whose outputs are not finite in a smaller dtype, whose range float16's is a small part
    of, is run once more in float32. Where the device's memory is too small for a batch, batches are halved for good.

    Args:
        model: network that is compressed; it is not changed.
        network: trace of `model`.
        menus: menus of the network.
        inputs: (N, …) float32 samples of the search split, N at least 1.
        labels: (N,) int64 classes of the samples; None: there are none, and accuracies are NaN.
        reference: (N, classes) logits or (N, P, K) rows of the original on these samples, float32; None: those of
            `model`, which is the original then.
        renormalized_on: (N, …) unlabelled samples of the calibration split that every plan's layers are renormalized on
            (`Renormalizer`); None: plans have the menus' weights as they are.
        device: device that plans are run on, such as `cpu` or `cuda:0`; `auto`: CUDA where there is one, else the CPU.
        dtype: floating-point type of the forward passes: `auto`, `float32`, `bfloat16` or `float16`.
        batch_size: number of samples in a forward pass; None: the fastest (`fastest_batch`).
        note: function that is told once where batches were halved, and where plans are run in float32. Default: nobody.
        memory: most bytes that the process may hold in all, which bounds the batch size; None: what it holds now and
            70 % of what is available. On a GPU its own memory bounds the batch size instead.

    Attributes:
        dtype: floating-point type of the forward passes, never `auto`.
        batch_size: number of samples in a forward pass; it shrinks where the device's memory is too small.
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
        inputs: Inputs,
        labels: Tensor | None,
        *,
        reference: Tensor | None = None,
        renormalized_on: Inputs | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        batch_size: int | None = None,
        note: Note | None = None,
        memory: int | None = None,
    ) -> None:
        if dtype not in (*DTYPES, "auto"):
            raise unknown_name("dtype", dtype, [*DTYPES, "auto"])
        if len(inputs) == 0:
            raise InputError("`data` must leave at least one sample for the search split, got none.")
        self._device, self._note = torch_device(device), note
        self._menus = menus
        self._problem = menus.problem()
        self._folded = fold_batch_norms(model, network).requires_grad_(False)
        self._labels = None if labels is None else labels.cpu()
        most = samples_that_fit(network, memory, BATCHES[-1], self._device)
        if reference is None:
            reference = outputs_within(model, inputs, network, self._device, memory)
        self._reference = reference
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
        self._renormalizer = (
            None if renormalized_on is None else Renormalizer(self._folded, network, renormalized_on, self._device)
        )
        self._placed = in_format(inputs, self._device, DTYPES[self.dtype])
        has_same_values = self._device.type == "cpu" and self.dtype == "float32"  # then there is no second copy
        self._inputs = self._placed if has_same_values else inputs.cpu()
        self._told_of_float32 = False

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

    def effects(
        self, around: Labeling | None = None, samples: int | None = None, progress: Progress | None = None
    ) -> Effects:
        """The first-order effects of every label on the outputs on the search split.

        Args:
            around: plan around which the effects are computed, its own labels having none; None: around the original,
                which is computed once and stored with the menus.
            samples: number of samples that are needed, the first ones of the split; None: all.
            progress: observer that is called with (samples done, samples in all).

        Returns:
            The effects, on at least that many samples, or on as many as are worth their time: fewer of a large network
            (`gradient_samples`).
        """
        wanted = self._samples_of_effects(samples)
        if self._effects is None or self._effects.samples < wanted:
            self._effects = self._stored(wanted, progress)
        if around is None:
            return self._effects
        inputs, far = self._placed[:wanted], self._effects.first(wanted)
        pooled, affine = self._predictions.pooled, self._affine(around)
        return self._counted(
            effects_around(self._prepared(), self._menus, around, inputs, pooled, far, progress, affine)
        )

    def _affine(self, labeling: Labeling) -> dict[str, Affine] | None:
        """What renormalization makes of the outputs of a plan's layers, by name, of all channels of the original's.

        None where plans run without it.
        """
        if self._renormalizer is None:
            return None
        rows, found = rows_left(self._menus, labeling), self._renormalize_(self._stitcher.stitch_(labeling), labeling)
        widths = {layer.name: layer.rows for layer in self._menus.network.layers}
        return {name: affine.cpu().among(widths[name], rows[name]) for name, affine in found.items()}

    def knows_effects(self, samples: int | None = None) -> bool:
        """Whether `effects` around the original, on so many samples, are in memory: they take no time then."""
        return self._effects is not None and self._effects.samples >= self._samples_of_effects(samples)

    def _samples_of_effects(self, samples: int | None) -> int:
        affordable = gradient_samples(self._menus.network.layer_macs, len(self._inputs))
        return min(samples or affordable, affordable)

    def _counted(self, effects: Effects) -> Effects:
        """With passes over the whole search split, as evaluations are."""
        return replace(effects, passes=effects.passes * effects.samples / len(self._inputs))

    def _stored(self, samples: int, progress: Progress | None) -> Effects:
        """Effects around the original, kept beside the menus: they depend on no plan, hence on no budget either."""
        offered = self._menus.widths  # decides which labels there are
        widths = f" {sorted(offered.items())}" if offered else ""
        is_renormalized = self._renormalizer is not None
        kind = " renormalized" if is_renormalized else ""
        digest = hashlib.sha256(f"{samples} {self.dtype}{widths}{kind}".encode())
        for part in (*content(self._inputs[:samples]), *content(self._reference[:samples])):
            digest.update(part)

        def tensors() -> dict[str, Tensor]:
            model, pooled = self._prepared(), self._predictions.pooled
            found = first_order_effects(
                model, self._menus, self._placed[:samples], pooled, progress, is_renormalized=is_renormalized
            )
            parts = {"pruning": torch.from_numpy(found.pruning), "rounding": torch.from_numpy(found.rounding)}
            return {**parts, "passes": torch.tensor(found.passes, dtype=torch.float64)}

        read = self._menus.store.tensors(f"effects-{digest.hexdigest()[:16]}", tensors)
        return self._counted(Effects(read["pruning"].numpy(), read["rounding"].numpy(), float(read["passes"])))

    def stitched(self, labeling: Labeling) -> nn.Module:
        """A new float32 model with the plan's weights, channels really removed and inputs rounded as the plan says.

        Args:
            labeling: plan, as positions on the menus.
        """
        model = Stitcher(copy.deepcopy(self._folded).cpu(), self._menus).stitch_(labeling)
        self._renormalize_(model, labeling)
        return model

    def _renormalize_(self, model: nn.Module, labeling: Labeling) -> dict[str, Affine]:
        """Renormalize a stitched model where that is wanted; what became of each layer's outputs by name."""
        if self._renormalizer is None:
            return {}
        return self._renormalizer.apply_(model, rows_left(self._menus, labeling))

    def _evaluated(self, labeling: Labeling) -> Outcome:
        """The outcome of a plan that is not in the cache."""
        model = self._stitcher.stitch_(labeling)
        started = time.perf_counter()
        self._renormalize_(model, labeling)
        outputs = self._run(model, self._placed)
        if self.dtype != "float32" and not outputs.isfinite().all():
            outputs = self._in_float32(labeling)
        self.forward_seconds += time.perf_counter() - started
        give_back()
        found = compare(self._reference, outputs, self._labels)
        resources, shift = self._problem.resources(labeling), self._predictions.shift(outputs)
        return Outcome(found.kl, found.accuracy, found.agreement, resources, shift)

    def _run(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """(N, classes) outputs of a model on inputs in its format; a batch size that did not fit is not tried again."""
        outputs, fitted = run(model, inputs, self.batch_size, self._device, self._note)
        if fitted < self.batch_size:
            self.batch_size = fitted
        return outputs

    def _in_float32(self, labeling: Labeling) -> Tensor:
        """(N, classes) outputs of a plan whose numbers leave the range of the evaluator's dtype."""
        if self._note is not None and not self._told_of_float32:
            self._note(f"a plan's outputs are not finite in {self.dtype}; it is run in float32, as are others like it")
        self._told_of_float32 = True
        return self._run(self.stitched(labeling).to(self._device), self._inputs)

    def _prepared(self) -> nn.Module:
        """A copy with the original's weights, as it is evaluated."""
        return prepared(self._folded, self.dtype, self._device)
