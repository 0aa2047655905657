"""Random changes of training images: batched on their device, reproducible from a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Crop, then flip, then cut out, each drawn for every image alone.

    Filled pixels are 0: black for uint8 images, the mean for normalized ones.

    Args:
        crop_padding: pixels of zeros around the image, >= 0, from which a crop of the image's size is taken at a
            uniformly random place; 0 for no crop.
        flip: whether to mirror left and right with probability 1/2.
        cutout: side in pixels, >= 0, of a square of zeros whose centre is a uniformly random pixel, so that the square
            may reach beyond the border; 0 for none.

    Raises:
        ValueError: a number is negative.
        TypeError: a value has another type.

    References:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.

    Example:
        >>> images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4)
        >>> Augmentation(flip=True)(images, torch.Generator().manual_seed(1)).flatten().tolist()
        [3, 2, 1, 0]
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("crop_padding", "cutout"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}={value!r}: must be an int")
            if value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip={self.flip!r}: must be a bool")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch.

        Args:
            images: shape (num_images, channels, height, width), uint8 or floating point, on any device.
            generator: the only source of random numbers; on the CPU it gives the same ones for every device. How many
                are drawn depends on the settings and the number of images alone.

        Returns:
            New images of the same shape and type, or ``images`` itself where everything is off: then nothing is drawn.
        """
        if self.crop_padding > 0:
            images = self._crop(images, generator)
        if self.flip:
            flipped = _draw(2, (len(images), 1, 1, 1), generator, images.device).bool()
            images = torch.where(flipped, images.flip(3), images)
        if self.cutout > 0:
            images = self._cut_out(images, generator)
        return images

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        num_images, _, height, width = images.shape
        places = _draw(2 * self.crop_padding + 1, (2, num_images), generator, images.device)
        windows = functional.pad(images, [self.crop_padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(num_images, device=images.device), :, places[0], places[1]]

    def _cut_out(self, images: Tensor, generator: torch.Generator) -> Tensor:
        num_images, _, height, width = images.shape
        in_rows = self._covered(height, num_images, generator, images.device)
        in_columns = self._covered(width, num_images, generator, images.device)
        return images.masked_fill(in_rows.view(-1, 1, height, 1) & in_columns.view(-1, 1, 1, width), 0)

    def _covered(self, length: int, num_images: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Shape (num_images, length): whether the square covers this row or column."""
        first = _draw(length, (num_images, 1), generator, device) - self.cutout // 2
        place = torch.arange(length, device=device)
        return (place >= first) & (place < first + self.cutout)


def _draw(high: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform integers below ``high``, drawn where the generator lives."""
    return torch.randint(high, shape, generator=generator, device=generator.device).to(device, non_blocking=True)
