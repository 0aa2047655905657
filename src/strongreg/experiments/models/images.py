"""What a network asks of the images."""

from __future__ import annotations

from strongreg.experiments.errors import UserError

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


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
