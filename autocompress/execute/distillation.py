"""The loss of fine-tuning: how far the compressed network is from the original, and from the labels.

loss = soft · T² · KL(original ‖ compressed at temperature T) + hard · cross-entropy(labels)
       + features · distance of layer outputs + l1 · Σ |weight|
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.network.recurrent import Recurrent

_FEATURES = 4  # layers whose outputs are matched, at most


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of the loss, each at least 0; a part of weight 0 is not computed.

    Attributes:
        soft: weight of temperature² · KL(original ‖ compressed) between softened predictions (Hinton et al. 2015,
            eq. 1), in nats.
        hard: weight of the cross-entropy with the labels, in nats.
        features: weight of the mean squared difference between layer outputs, relative to their variance in the
            original (Romero et al. 2015). Up to four layers count, spread over the network, that kept all their
            channels.
        l1: weight of the sum of the weights' magnitudes.
        temperature: number above 0 that logits are divided by before the softmax of the soft part; larger values make
            unlikely classes count for more.

    Raises:
        InputError: a weight is negative, or all are 0, or the temperature is not positive.
    """

    soft: float = 1.0
    hard: float = 0.0
    features: float = 0.0
    l1: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name in ("soft", "hard", "features", "l1"):
            if not getattr(self, name) >= 0:
                raise InputError(f"`{name}_weight` must be at least 0, got {getattr(self, name)}.")
        if self.soft + self.hard + self.features == 0:
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
        names: names of the layers.

    Attributes:
        outputs: outputs of the model's last run, by layer name.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = names
        self.outputs: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        for name in self._names:
            self._handles.append(self._model.get_submodule(name).register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.outputs[name] = output.clone()  # an in-place activation may follow

        return hook


def matched_layers(original: nn.Module, compressed: nn.Module, layers: Sequence[str]) -> list[str]:
    """Names of up to four layers of unchanged output width, evenly spread, the last layer left out.

    Args:
        original: original network.
        compressed: compressed network.
        layers: names of all layers, in the order of the network.
    """
    same = [
        name
        for name in layers[:-1]
        if not isinstance(original.get_submodule(name.rpartition(".")[0]), Recurrent)  # whose layers never run alone
        and len(original.get_submodule(name).get_parameter("weight"))
        == len(compressed.get_submodule(name).get_parameter("weight"))
    ]
    count = min(_FEATURES, len(same))
    return [same[(position + 1) * len(same) // count - 1] for position in range(count)]


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
