"""Plain networks: layers one after the other, with neither normalization nor shortcuts nor dropout."""

from __future__ import annotations

from torch import nn

from strongreg.experiments.models.initialization import he_normal
from strongreg.experiments.models.inputs import ImageShape, check_size


def plain_cnn(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """Eight 3x3 convolutions (16 and 32 channels) and three linear layers.

    Args:
        image_shape: channels, height, width; at least 4x4 pixels.
        num_classes: number of outputs.

    Returns:
        The network, with :func:`he_normal` weights.

    Raises:
        UserError: the images are too small.
    """
    check_size("plain_cnn", image_shape, 4, "halves the image twice")
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for num_channels in (16, 32):
        for _ in range(4):
            layers += [nn.Conv2d(channels, num_channels, 3, padding=1), nn.ReLU()]
            channels = num_channels
        layers.append(nn.MaxPool2d(2))
    num_features = channels * (height // 4) * (width // 4)
    layers += [nn.Flatten(), nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return he_normal(nn.Sequential(*layers, nn.Linear(64, num_classes)))


def lenet300(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """LeNet-300-100: two hidden layers of 300 and 100 neurons.

    Args:
        image_shape: channels, height, width; any size.
        num_classes: number of outputs.

    Returns:
        The network, with :func:`he_normal` weights.

    References:
        LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998.
    """
    channels, height, width = image_shape
    layers = (
        nn.Flatten(),
        nn.Linear(channels * height * width, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
    return he_normal(nn.Sequential(*layers))


def lenet5(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """LeNet-5 as in Caffe and in the literature on pruning: 5x5 convolutions of 20 and 50 channels, 500 neurons.

    Caffe's own file rectifies only the 500 neurons; as in the literature on pruning, the convolutions are rectified
    too, which changes no number of parameters (431,080 on 1x28x28).

    Args:
        image_shape: channels, height, width; at least 16x16 pixels.
        num_classes: number of outputs.

    Returns:
        The network, with :func:`he_normal` weights.

    Raises:
        UserError: the images are too small.

    References:
        Jia et al.: Caffe, arXiv 1408.5093, examples/mnist/lenet.prototxt. Han, Pool, Tran, Dally: Learning both
        Weights and Connections for Efficient Neural Networks, arXiv 1506.02626.
    """
    check_size("lenet5", image_shape, 16, "has two 5x5 convolutions without padding, each followed by pooling,")
    channels, height, width = image_shape
    num_features = 50 * _after_lenet5(height) * _after_lenet5(width)
    convolutions = (
        nn.Conv2d(channels, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    linear = (nn.Flatten(), nn.Linear(num_features, 500), nn.ReLU(), nn.Linear(500, num_classes))
    return he_normal(nn.Sequential(*convolutions, *linear))


def _after_lenet5(size: int) -> int:
    """Pixels along one side after both convolutions and poolings."""
    return ((size - 4) // 2 - 4) // 2


def alexnet(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """AlexNet in its most common form for CIFAR: five convolutions and one linear layer.

    The convolutions are those of the one-column AlexNet of 2014 (64-192-384-256-256), strides and paddings fit 32x32
    pixels, and the two linear layers of 4096 neurons are left out, and the dropout with them. Why this form: unlike the
    many others it has a published size and error on CIFAR-10 to compare with (2.47 M parameters, 22.78 %), and it has
    no normalization, which is the hard case for strong regularization. Poolings round up, which changes nothing on
    32x32 and lets 28x28 pass.

    Args:
        image_shape: channels, height, width; at least 17x17 pixels.
        num_classes: number of outputs.

    Returns:
        The network, with :func:`he_normal` weights.

    Raises:
        UserError: the images are too small.

    References:
        Krizhevsky: One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997. CIFAR form and
        its numbers: github.com/bearpaw/pytorch-classification.
    """
    check_size("alexnet", image_shape, 17, "shrinks the image to a 32nd")
    channels, height, width = image_shape
    layers = (
        nn.Conv2d(channels, 64, 11, stride=4, padding=5),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(256 * -(-height // 32) * -(-width // 32), num_classes),
    )
    return he_normal(nn.Sequential(*layers))
