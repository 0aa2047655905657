"""The networks of the experiments, built for an image shape and a number of classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from strongreg.experiments.errors import UserError, check_known

ImageShape = tuple[int, int, int]


def build_model(name: str, image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """Build a freshly initialized network.

    Args:
        name: "plain_cnn" or "lenet300".
        image_shape: channels, height, width.
        num_classes: number of outputs.

    Returns:
        The network, with He-normal weights and zero biases.

    Raises:
        UserError: the name is unknown, or the images are too small for the network.
    """
    check_known("model", name, MODELS)
    model = MODELS[name](image_shape, num_classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _plain_cnn(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """Eight 3x3 convolutions (16 and 32 channels) and three linear layers, with neither normalization nor shortcuts."""
    channels, height, width = image_shape
    if min(height, width) < 4:
        raise UserError(f"plain_cnn halves the image twice and needs at least 4x4 pixels, got {height}x{width}")
    layers: list[nn.Module] = []
    for num_channels in (16, 32):
        for _ in range(4):
            layers += [nn.Conv2d(channels, num_channels, 3, padding=1), nn.ReLU()]
            channels = num_channels
        layers.append(nn.MaxPool2d(2))
    num_features = channels * (height // 4) * (width // 4)
    layers += [nn.Flatten(), nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, num_classes))


def _lenet300(image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """LeNet-300-100: two hidden layers of 300 and 100 neurons."""
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


MODELS: dict[str, Callable[[ImageShape, int], nn.Sequential]] = {"plain_cnn": _plain_cnn, "lenet300": _lenet300}
