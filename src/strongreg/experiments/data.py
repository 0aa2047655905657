"""Image data sets as tensors: small enough to live on the device as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.experiments.errors import UserError, check_known

_SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageData:
    """A data set split into training and test images.

    Args:
        name: the data set's name.
        train_images: shape (num_train, channels, height, width), float32 in [0, 1].
        train_labels: shape (num_train,), int64.
        test_images: shape (num_test, channels, height, width), held out: never used for a choice.
        test_labels: shape (num_test,), int64.
        num_classes: number of classes.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> ImageData:
        """The same data on a device.

        Args:
            device: where to put the tensors.

        Returns:
            A new object.
        """
        return ImageData(
            self.name,
            self.train_images.to(device),
            self.train_labels.to(device),
            self.test_images.to(device),
            self.test_labels.to(device),
            self.num_classes,
        )


def load_data(name: str) -> ImageData:
    """Load a data set.

    Args:
        name: "digits".

    Returns:
        Training and test images.

    Raises:
        UserError: the name is unknown, or a package that reads it is missing.
    """
    check_known("data set", name, DATA_SETS)
    return DATA_SETS[name]()


def _digits() -> ImageData:
    """1,797 handwritten digits of 8x8 pixels (UCI), a stratified fifth of them held out."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError("the digits data needs scikit-learn: pip install 'strongreg[experiments]'") from error
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=_SPLIT_SEED, stratify=bunch.target)
    return ImageData("digits", images[train], labels[train], images[test], labels[test], num_classes=10)


DATA_SETS: dict[str, Callable[[], ImageData]] = {"digits": _digits}
