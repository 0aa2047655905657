"""What a network reads and returns, and what it asks of the images."""

from __future__ import annotations

import torch
from torch import Tensor

from strongreg.experiments.data import InputShape
from strongreg.experiments.errors import UserError

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


def example_inputs(
    batch_size: int, input_shape: InputShape, num_classes: int, generator: torch.Generator | None = None
) -> Tensor:
    """Something that a network reads, with nothing in it.

    Args:
        batch_size: number of inputs.
        input_shape: of an image, or of a passage of text.
        num_classes: number of outputs, which for text is that of the tokens.
        generator: draws it; None for zeros.

    Returns:
        Images, shape (batch_size, channels, height, width), standard normal; or tokens, shape (batch_size, tokens),
        int64.
    """
    shape = (batch_size, *input_shape)
    if len(input_shape) == 1:
        if generator is None:
            return torch.zeros(shape, dtype=torch.int64)
        return torch.randint(num_classes, shape, generator=generator)
    return torch.zeros(shape) if generator is None else torch.randn(shape, generator=generator)


def output_shape(batch_size: int, input_shape: InputShape, num_classes: int) -> tuple[int, ...]:
    """What a network makes of such inputs.

    Args:
        batch_size: number of inputs.
        input_shape: of an image, or of a passage of text.
        num_classes: number of outputs.

    Returns:
        One output per class, for each image or for each token.
    """
    return (batch_size, *input_shape, num_classes) if len(input_shape) == 1 else (batch_size, num_classes)


def kind_of(input_shape: InputShape) -> str:
    """What a network reads, in a word.

    Args:
        input_shape: of an image, or of a passage of text.

    Returns:
        "images" or "text".
    """
    return "text" if len(input_shape) == 1 else "images"


def check_size(name: str, image_shape: ImageShape, minimum: int, reason: str) -> None:
    """Check that the images are large enough for a network.

    Args:
        name: the network.
        image_shape: channels, height, width.
        minimum: smallest height and width, in pixels.
        reason: what the network does to the image, for the message ("halves the image twice").

    Raises:
        UserError: they are too small.
    """
    _, height, width = image_shape
    if min(height, width) < minimum:
        raise UserError(
            f"{name} {reason} and needs at least {minimum}x{minimum} pixels, got {height}x{width}; "
            "lenet300 takes images of any size"
        )
