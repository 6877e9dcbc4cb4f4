"""The loss of fine-tuning: how far the compressed network is from the original, and from the labels.

loss = soft · T² · KL(original ‖ compressed at temperature T) + hard · cross-entropy(labels)
       + features · distance of layer outputs + l1 · Σ |weight|
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autocompress.errors import InputError
from autocompress.network.recurrent import Recurrent

_FEATURES = 8  # layers whose outputs are matched, at most


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of the loss, each at least 0; a part of weight 0 is not computed.

    Attributes:
        soft: weight of temperature² · KL(original ‖ compressed) between softened predictions (Hinton et al. 2015,
            eq. 1), in nats.
        hard: weight of the cross-entropy with the labels, in nats.
        features: weight of the mean squared difference between layer outputs, relative to their variance in the
            original (Romero et al. 2015). Up to 8 layers count, spread over the network, each with the channels that
            it kept. None: what `features_for` says of the number of samples.
        l1: weight of the sum of the weights' magnitudes.
        temperature: number above 0 that logits are divided by before the softmax of the soft part; larger values make
            unlikely classes count for more.

    Raises:
        InputError: a weight is negative, or all are 0, or the temperature is not positive.
    """

    soft: float = 1.0
    hard: float = 0.0
    features: float | None = None
    l1: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name in ("soft", "hard", "features", "l1"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise InputError(f"`{name}_weight` must be at least 0, got {getattr(self, name)}.")
        if self.soft + self.hard + (self.features or 0.0) == 0:
            raise InputError("`soft_weight`, `hard_weight` and `features_weight` must not all be 0, got 0 for each.")
        if not self.temperature > 0:
            raise InputError(f"`temperature` must be above 0, got {self.temperature}.")

    def predictions_loss(self, outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """The soft and the hard part of the loss, each the mean over N samples and their rows, times its weight.

        Args:
            outputs: (N, classes) logits or (N, P, K) rows of the compressed network.
            teacher: the same of the original.
            labels: (N,) or (N, P) int64 classes, or probabilities in the form of the outputs; None only where `hard`
                is 0.
        """
        outputs, teacher = (each.flatten(0, -2) for each in (outputs, teacher))  # (rows, K)
        loss = outputs.new_zeros(())
        if self.soft:
            wanted = (teacher / self.temperature).log_softmax(1)
            got = (outputs / self.temperature).log_softmax(1)
            divergence = F.kl_div(got, wanted, reduction="batchmean", log_target=True)
            loss = loss + self.soft * self.temperature**2 * divergence
        if self.hard:
            assert labels is not None, "checked when fine-tuning begins"
            labels = labels.flatten() if not labels.is_floating_point() else labels.flatten(0, -2)
            loss = loss + self.hard * F.cross_entropy(outputs, labels)
        return loss


class FeatureTap(AbstractContextManager["FeatureTap"]):
    """Context manager that keeps the outputs of some layers whenever their model runs.

    Args:
        model: model that the layers belong to.
        channels: (k,) int64 output channels that are kept, by name of the layer; None: all.

    Attributes:
        outputs: outputs of the model's last run, by layer name.
    """

    def __init__(self, model: nn.Module, channels: Mapping[str, Tensor | None]) -> None:
        self._model = model
        self._channels = channels
        self.outputs: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        for name in self._channels:
            self._handles.append(self._model.get_submodule(name).register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        channels = self._channels[name]

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if channels is None:
                self.outputs[name] = output.clone()  # an in-place activation may follow
            else:
                axis = 1 if isinstance(module, _ConvNd) else -1
                self.outputs[name] = output.index_select(axis, channels.to(output.device))

        return hook


def matched_layers(original: nn.Module, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Up to 8 layers whose outputs are matched, evenly spread, the last layer left out.

    Args:
        original: original network.
        kept: (k,) int64 output channels that each layer kept, by its name, in the order of the network.

    Returns:
        Their entries of `kept`. There is none with nothing left.
    """
    names = [
        name
        for name in list(kept)[:-1]
        if len(kept[name])
        and not isinstance(original.get_submodule(name.rpartition(".")[0]), Recurrent)  # whose layers never run alone
    ]
    count = min(_FEATURES, len(names))
    chosen = [names[(position + 1) * len(names) // count - 1] for position in range(count)]
    return {name: kept[name] for name in chosen}


def features_loss(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Mean over layers of the mean squared difference of outputs, relative to the variance of the original's.

    Args:
        got: outputs of the compressed network, by layer name.
        wanted: outputs of the original on the same samples, by layer name.
    """
    parts = [
        F.mse_loss(got[name].float(), wanted[name].float()) / wanted[name].float().var().clamp(min=1e-6)
        for name in wanted
    ]
    return torch.stack(parts).mean()
