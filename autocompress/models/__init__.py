"""Networks by spec string, and the package's own ones."""

from autocompress.models.cifar_resnet import CifarResNet
from autocompress.models.digits_net import DigitsNet
from autocompress.models.registry import (
    MODELS,
    Model,
    check_spec,
    gives_probabilities,
    has_random_weights,
    load_model,
)
from autocompress.models.weights import load_weights_

__all__ = [
    "MODELS",
    "CifarResNet",
    "DigitsNet",
    "Model",
    "check_spec",
    "gives_probabilities",
    "has_random_weights",
    "load_model",
    "load_weights_",
]
