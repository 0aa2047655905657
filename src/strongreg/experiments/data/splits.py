"""Which images are trained on and which are held out: by class, by seed, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.experiments.data.images import ImageData, Split, channel_statistics
from strongreg.experiments.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data set as it was read: what is trained on and what is held out at the end.

    Args:
        train: every training image.
        test: every test image.
        class_names: one per class.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """How the training images are divided.

    Args:
        validation_share: share of all training images held out for validation, in [0, 1).
        num_train: images to train on, of those that remain; None for all.
        seed: of both choices.

    Raises:
        UserError: a value is out of range.
    """

    validation_share: float = 0.0
    num_train: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.validation_share < 1:
            raise UserError(f"validation_share={self.validation_share}: must be at least 0 and below 1")
        if self.num_train is not None and self.num_train < 1:
            raise UserError(f"num_train={self.num_train}: must be at least 1")


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """An order of the images of which every prefix holds the classes in their proportions, to about one image.

    The images of each class are shuffled; the r-th of the n images of a class stands at (r + 1/2) / n.

    Args:
        labels: shape (num_images,), int64.
        seed: of the shuffle.

    Returns:
        A permutation of the indices of the images, on the CPU.
    """
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(dim=0) - counts
    of_class = labels[by_class]
    rank = torch.arange(len(labels)) - first[of_class]
    place = (rank.to(torch.float64) + 0.5) / counts[of_class]
    return by_class[place.argsort(stable=True)]


def split_off(labels: Tensor, num_first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose images stratified by class; a larger number chooses the same ones and more.

    Args:
        labels: shape (num_images,), int64.
        num_first: number of images to choose.
        seed: of the choice.

    Returns:
        The indices chosen and the others, each in ascending order.
    """
    order = stratified_order(labels, seed)
    return order[:num_first].sort().values, order[num_first:].sort().values


def build_data(
    name: str, source: Source, selection: Selection, *, max_value: float = 255.0, standardize: bool = True
) -> ImageData:
    """Divide the training images and measure those that are left.

    The validation images are chosen from all training images, so that they do not depend on ``num_train``; then
    ``num_train`` of the others are chosen.

    Args:
        name: the data set's name.
        source: its images.
        selection: how to divide them.
        max_value: the pixel value that stands for 1.
        standardize: whether normalized images have mean 0 and deviation 1 per channel, or stay in [0, 1].

    Returns:
        The data set.

    Raises:
        UserError: a split would be empty, or there are fewer images than ``num_train``.
    """
    num_images = len(source.train)
    num_validation = round(num_images * selection.validation_share)
    if selection.validation_share > 0 and not 0 < num_validation < num_images:
        raise UserError(
            f"validation_share={selection.validation_share}: that is {num_validation} of the {num_images} training "
            f"images of {name}; choose another share"
        )
    num_left = num_images - num_validation
    if selection.num_train is not None and selection.num_train > num_left:
        raise UserError(f"num_train={selection.num_train}: {name} has {num_left} images to train on")
    train, validation = source.train, source.train.select(torch.arange(0))
    if num_validation > 0:
        chosen, others = split_off(train.labels, num_validation, selection.seed)
        train, validation = train.select(others), train.select(chosen)
    if selection.num_train is not None:
        train = train.select(split_off(train.labels, selection.num_train, selection.seed)[0])
    mean, std = channel_statistics(train.images, max_value) if standardize else (None, None)
    return ImageData(
        name, train, validation, source.test, len(source.class_names), source.class_names, max_value, mean, std
    )
