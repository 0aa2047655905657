"""The initial weights: drawn anew over those of torch's own layers, in the order of the modules."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def he_normal(model: Model) -> Model:
    """He-normal weights by the number of inputs and zero biases: for networks without normalization.

    Args:
        model: the network, changed in place.

    Returns:
        The same network.

    References:
        He, Zhang, Ren, Sun: Delving Deep into Rectifiers, arXiv 1502.01852.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            _zero_bias(module)
    return model


def he_normal_fan_out(model: Model) -> Model:
    """He-normal convolutions by the number of outputs: for networks with batch normalization.

    Linear layers are He-normal by the number of inputs, biases 0; normalizations start as the identity (1 and 0).

    Args:
        model: the network, changed in place.

    Returns:
        The same network.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            _zero_bias(module)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            _zero_bias(module)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def truncated_normal(model: Model, std: float = 0.02) -> Model:
    """Truncated normal weights of one spread, zero biases, normalizations as the identity: for transformers.

    Args:
        model: the network, changed in place.
        std: standard deviation of the weights, > 0.

    Returns:
        The same network.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Conv2d | nn.Linear):
            _zero_bias(module)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def _zero_bias(module: nn.Conv2d | nn.Linear) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
