"""Networks of 3x3 convolutions in blocks, after Simonyan and Zisserman."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from strongreg.experiments.models.initialization import he_normal, he_normal_fan_out
from strongreg.experiments.models.inputs import ImageShape, check_size

Norm = Literal["none", "batch"]
NORMS: tuple[Norm, ...] = ("none", "batch")

_WIDTHS = (64, 128, 256, 512, 512)
_BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    depth: int, image_shape: ImageShape, num_classes: int, *, norm: Norm = "none", dropout: float = 0.5
) -> nn.Sequential:
    """A VGG in its CIFAR form: the convolutions as published, then dropout, 512, dropout, 512, classes.

    VGG-16 has 15,245,130 parameters with 10 classes. Batch normalization follows each convolution, which keeps its
    bias. Poolings round up, which changes nothing on 32x32 and lets 28x28 pass.

    Args:
        depth: number of layers with weights: 11, 13, 16 or 19.
        image_shape: channels, height, width; at least 17x17 pixels.
        num_classes: number of outputs.
        norm: "none", or "batch" for batch normalization.
        dropout: share of the inputs of each hidden linear layer that are dropped, in [0, 1).

    Returns:
        The network, ``features`` and ``classifier``, with :func:`he_normal` weights, or :func:`he_normal_fan_out` with
        batch normalization.

    Raises:
        UserError: the images are too small.

    References:
        Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556. CIFAR
        form: github.com/chengyangfu/pytorch-vgg-cifar10.
    """
    check_size(f"vgg{depth}", image_shape, 17, "halves the image five times")
    channels, height, width = image_shape
    features: list[nn.Module] = []
    for num_channels, num_layers in zip(_WIDTHS, _BLOCKS[depth], strict=True):
        features += _block(channels, num_channels, num_layers, norm)
        features.append(nn.MaxPool2d(2, ceil_mode=True))
        channels = num_channels
    num_features = channels * -(-height // 32) * -(-width // 32)
    classifier = [
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(num_features, 512),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    ]
    model = _join(features, classifier)
    return he_normal(model) if norm == "none" else he_normal_fan_out(model)


def vgg_narrow(image_shape: ImageShape, num_classes: int, *, dropout: float = 0.3) -> nn.Sequential:
    """A deep plain network that a CPU trains: three blocks of three 3x3 convolutions, then 128, 128, classes.

    The blocks have 16, 32 and 64 channels, with poolings between them. Dropout follows each hidden linear layer.

    Args:
        image_shape: channels, height, width; at least 4x4 pixels.
        num_classes: number of outputs.
        dropout: share of the neurons of each hidden linear layer that are dropped, in [0, 1).

    Returns:
        The network, ``features`` and ``classifier``, with :func:`he_normal` weights.

    Raises:
        UserError: the images are too small.
    """
    check_size("vgg_narrow", image_shape, 4, "halves the image twice")
    channels, height, width = image_shape
    features = [
        *_block(channels, 16, 3, "none"),
        nn.MaxPool2d(2),
        *_block(16, 32, 3, "none"),
        nn.MaxPool2d(2),
        *_block(32, 64, 3, "none"),
    ]
    classifier = [
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, num_classes),
    ]
    return he_normal(_join(features, classifier))


def _block(in_channels: int, num_channels: int, num_layers: int, norm: Norm) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers.append(nn.Conv2d(in_channels, num_channels, 3, padding=1))
        layers += [nn.BatchNorm2d(num_channels)] if norm == "batch" else []
        layers.append(nn.ReLU())
        in_channels = num_channels
    return layers


def _join(features: Sequence[nn.Module], classifier: Sequence[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict([("features", nn.Sequential(*features)), ("classifier", nn.Sequential(*classifier))])
    )
