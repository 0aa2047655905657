"""Residual networks for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from strongreg.experiments.models.initialization import he_normal_fan_out
from strongreg.experiments.models.inputs import ImageShape, check_size


def resnet18(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """ResNet-18 with a CIFAR stem: a 3x3 convolution of stride 1, no pooling; 11,173,962 parameters with 10 classes.

    Args:
        image_shape: channels, height, width; at least 5x5 pixels.
        num_classes: number of outputs.

    Returns:
        The network, ``stem``, ``blocks`` and ``head``, with :func:`he_normal_fan_out` weights.

    Raises:
        UserError: the images are too small.

    References:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, arXiv 1512.03385. CIFAR form:
        github.com/kuangliu/pytorch-cifar.
    """
    check_size("resnet18", image_shape, 5, "halves the image three times")
    blocks: list[nn.Module] = []
    in_channels = 64
    for num_channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        shortcut = nn.Identity() if stride == 1 else _projection(in_channels, num_channels, stride)
        blocks.append(_Block(in_channels, num_channels, stride, shortcut))
        blocks.append(_Block(num_channels, num_channels, 1, nn.Identity()))
        in_channels = num_channels
    return _join(_stem(image_shape[0], 64), blocks, [], in_channels, num_classes)


def resnet_cifar(depth: int, image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """The CIFAR network of He et al.: three groups of 16, 32 and 64 channels, and shortcuts without weights.

    With 10 classes 269,722 parameters at depth 20, 464,154 at 32 and 853,018 at 56.

    Args:
        depth: number of layers with weights: 6 n + 2.
        image_shape: channels, height, width; at least 3x3 pixels.
        num_classes: number of outputs.

    Returns:
        The network, ``stem``, ``blocks`` and ``head``, with :func:`he_normal_fan_out` weights.

    Raises:
        UserError: the images are too small.

    References:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, section 4.2, arXiv 1512.03385.
    """
    check_size(f"resnet{depth}", image_shape, 3, "halves the image twice")
    blocks: list[nn.Module] = []
    for num_channels, stride in ((16, 1), (32, 2), (64, 2)):
        first = nn.Identity() if stride == 1 else _SubsampleAndPad()
        blocks.append(_Block(num_channels // stride, num_channels, stride, first))
        blocks += [_Block(num_channels, num_channels, 1, nn.Identity()) for _ in range((depth - 2) // 6 - 1)]
    return _join(_stem(image_shape[0], 16), blocks, [], 64, num_classes)


def wide_resnet(depth: int, widening: int, image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """A wide residual network: pre-activation, three groups of 16, 32 and 64 channels times the widening.

    WRN-28-2 has 1,467,610 parameters with 10 classes.

    Args:
        depth: number of layers as the paper counts them: 6 n + 4.
        widening: factor on the channels, >= 1.
        image_shape: channels, height, width; at least 3x3 pixels.
        num_classes: number of outputs.

    Returns:
        The network, ``stem``, ``blocks`` and ``head``, with :func:`he_normal_fan_out` weights.

    Raises:
        UserError: the images are too small.

    References:
        Zagoruyko, Komodakis: Wide Residual Networks, arXiv 1605.07146.
    """
    check_size(f"wrn{depth}_{widening}", image_shape, 3, "halves the image twice")
    blocks: list[nn.Module] = []
    in_channels = 16
    for num_channels, stride in ((16 * widening, 1), (32 * widening, 2), (64 * widening, 2)):
        blocks.append(_PreActivationBlock(in_channels, num_channels, stride))
        blocks += [_PreActivationBlock(num_channels, num_channels, 1) for _ in range((depth - 4) // 6 - 1)]
        in_channels = num_channels
    stem = nn.Sequential(_conv3x3(image_shape[0], 16))
    return _join(stem, blocks, [nn.BatchNorm2d(in_channels), nn.ReLU()], in_channels, num_classes)


class _Block(nn.Module):
    """Two normalized 3x3 convolutions next to a shortcut."""

    def __init__(self, in_channels: int, num_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, num_channels, stride)
        self.norm1 = nn.BatchNorm2d(num_channels)
        self.conv2 = _conv3x3(num_channels, num_channels)
        self.norm2 = nn.BatchNorm2d(num_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class _PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after normalization and rectifier, next to a shortcut.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, num_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, num_channels, stride)
        self.norm2 = nn.BatchNorm2d(num_channels)
        self.conv2 = _conv3x3(num_channels, num_channels)
        changes = in_channels != num_channels
        self.shortcut = nn.Conv2d(in_channels, num_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = functional.relu(self.norm1(x))
        hidden = functional.relu(self.norm2(self.conv1(activated)))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        outputs: Tensor = self.conv2(hidden) + shortcut
        return outputs


class _SubsampleAndPad(nn.Module):
    """Shortcut without weights (option A): every second pixel, and as many channels again, of zeros, around them."""

    def forward(self, x: Tensor) -> Tensor:
        num_zeros = x.shape[1] // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, num_zeros, num_zeros))


def _conv3x3(in_channels: int, num_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, num_channels, 3, stride, padding=1, bias=False)


def _projection(in_channels: int, num_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, num_channels, 1, stride, bias=False),
        nn.BatchNorm2d(num_channels),
    )


def _stem(in_channels: int, num_channels: int) -> nn.Sequential:
    return nn.Sequential(_conv3x3(in_channels, num_channels), nn.BatchNorm2d(num_channels), nn.ReLU())


def _join(
    stem: nn.Sequential, blocks: Sequence[nn.Module], last: Sequence[nn.Module], num_features: int, num_classes: int
) -> nn.Sequential:
    """All in a row: stem, blocks, and the head of the last layers, mean over the pixels and linear layer."""
    head = nn.Sequential(*last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_features, num_classes))
    parts = [("stem", stem), ("blocks", nn.Sequential(*blocks)), ("head", head)]
    return he_normal_fan_out(nn.Sequential(OrderedDict(parts)))
