"""The published image sets: where they come from, and how many images of each class they have."""

from __future__ import annotations

from dataclasses import dataclass

from strongreg.experiments.data.decode import Shape
from strongreg.experiments.data.splits import Source
from strongreg.experiments.errors import UserError


@dataclass(frozen=True)
class Published:
    """What is known of a data set before it is read.

    Args:
        repository: on the Hugging Face hub.
        config: the folder of its files there.
        shape: channels, height and width of every image.
        train_counts: training images of each class.
        test_counts: test images of each class.
    """

    repository: str
    config: str
    shape: Shape
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.train_counts)

    def check(self, name: str, source: Source, place: str) -> None:
        """Compare images with what was published.

        Args:
            name: the data set's name.
            source: the images read.
            place: where from, for the message.

        Raises:
            UserError: a number of images differs.
        """
        for split_name, split, expected in (
            ("training", source.train, self.train_counts),
            ("test", source.test, self.test_counts),
        ):
            if len(split) != sum(expected):
                raise UserError(
                    f"{place} holds {len(split)} {split_name} images, {name} has {sum(expected)}: "
                    f"take the files of {self.repository}"
                )
            counts = split.labels.bincount(minlength=self.num_classes).tolist()
            for label, (count, known) in enumerate(zip(counts, expected, strict=True)):
                if count != known:
                    raise UserError(
                        f"{place} is not {name}: it holds {count} {split_name} images of class {label}, {name} has "
                        f"{known}; take the files of {self.repository}"
                    )


PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        "ylecun/mnist",
        "mnist",
        (1, 28, 28),
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": Published(
        "zalando-datasets/fashion_mnist", "fashion_mnist", (1, 28, 28), (6000,) * 10, (1000,) * 10
    ),
    "cifar10": Published("uoft-cs/cifar10", "plain_text", (3, 32, 32), (5000,) * 10, (1000,) * 10),
    "cifar100": Published("uoft-cs/cifar100", "cifar100", (3, 32, 32), (500,) * 100, (100,) * 100),
    "svhn": Published(
        "ufldl-stanford/svhn",
        "cropped_digits",
        (3, 32, 32),
        (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    ),
}
"""By name; the classes of cifar100 are the fine ones, those of svhn the digits 0 to 9."""
