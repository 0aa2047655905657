"""Labelled images in memory, and the numbers that normalize them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.experiments.data.examples import InputShape, digest_of, moved

_NUM_VALUES = 256  # of a pixel
_CHUNK = 4096  # images counted at once


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Args:
        images: shape (num_images, channels, height, width), uint8.
        labels: shape (num_images,), int64, on the same device.

    Raises:
        ValueError: a shape or type is another one.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check the tensors."""
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"images={self.images.dtype} of shape {tuple(self.images.shape)}: "
                "give uint8 of shape (num_images, channels, height, width)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels={self.labels.dtype} of shape {tuple(self.labels.shape)}: "
                f"give int64 of shape ({len(self.images)},), one per image"
            )

    @property
    def inputs(self) -> Tensor:
        """The images."""
        return self.images

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def select(self, indices: Tensor) -> Split:
        """Some of the images.

        Args:
            indices: shape (num_selected,), int64.

        Returns:
            Copies of them, in this order.
        """
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Split:
        """The same images on a device.

        Args:
            device: where to put the tensors.

        Returns:
            A new object.
        """
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A data set split into training, validation and test images of one shape.

    Args:
        name: the data set's name.
        train: what the weights are fitted to.
        validation: held out from the training images, for every choice; may hold none.
        test: never used for a choice.
        num_classes: number of classes; labels are 0 to num_classes - 1.
        class_names: one per class.
        max_value: the pixel value that stands for 1.
        mean: per channel, of train pixels / max_value; None leaves images in [0, 1].
        std: per channel, > 0, of train pixels / max_value; None exactly where ``mean`` is.

    Raises:
        ValueError: the parts do not fit together.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    max_value: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        shapes = {tuple(split.images.shape[1:]) for split in (self.train, self.validation, self.test)}
        if len(shapes) != 1:
            raise ValueError(f"the splits hold images of different shapes {sorted(shapes)}: give one")
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names={self.class_names}: give {self.num_classes} names, one per class")
        channels = self.image_shape[0]
        given = [values for values in (self.mean, self.std) if values is not None]
        if len(given) == 1 or any(len(values) != channels for values in given):
            raise ValueError(f"mean={self.mean}, std={self.std}: give both for {channels} channels, or neither")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def input_shape(self) -> InputShape:
        """Channels, height, width."""
        return self.image_shape

    def digest(self) -> str:
        """What tells these images and labels from others.

        Returns:
            Eight hexadecimal digits.
        """
        return digest_of((split.images, split.labels) for split in (self.train, self.validation, self.test))

    def to(self, device: torch.device) -> ImageData:
        """The same data on a device.

        Args:
            device: where to put the tensors.

        Returns:
            A new object.
        """
        return moved(self, device)

    def normalize(self, images: Tensor) -> Tensor:
        """What a network reads: (pixels / max_value - mean) / std.

        Args:
            images: shape (num_images, channels, height, width), uint8, on any device.

        Returns:
            float32 of the same shape on the same device; no other copy is made on the way.

        Raises:
            ValueError: the images are not uint8, or have another number of channels.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != self.image_shape[0]:
            raise ValueError(
                f"images={images.dtype} of shape {tuple(images.shape)}: "
                f"give uint8 of shape (num_images, {self.image_shape[0]}, height, width)"
            )
        pixels = images.to(torch.float32).div_(self.max_value)
        if self.mean is None or self.std is None:
            return pixels
        return pixels.sub_(_per_channel(self.mean, images.device)).div_(_per_channel(self.std, images.device))


@functools.lru_cache(maxsize=16)  # a copy to the device at every batch would wait for it
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def channel_statistics(images: Tensor, max_value: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / max_value, exact: from the counts of the 256 values.

    Args:
        images: shape (num_images, channels, height, width), uint8, at least one image.
        max_value: the pixel value that stands for 1.

    Returns:
        Mean and standard deviation (of the population) per channel; where all pixels are equal, a deviation of 1
        stands in for 0.
    """
    values = torch.arange(_NUM_VALUES, dtype=torch.float64) / max_value
    means, deviations = [], []
    for channel in range(images.shape[1]):
        chunks = images[:, channel].split(_CHUNK)
        counts = torch.stack([chunk.flatten().bincount(minlength=_NUM_VALUES) for chunk in chunks]).sum(dim=0).cpu()
        share = counts.to(torch.float64) / counts.sum()
        mean = (share * values).sum()
        deviation = (share * (values - mean).square()).sum().sqrt().item()
        means.append(mean.item())
        deviations.append(deviation if int(counts.count_nonzero()) > 1 else 1.0)
    return tuple(means), tuple(deviations)
