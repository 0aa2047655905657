"""What a network is trained on, whatever it is made of: images with their classes, or passages of text."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

AnyData = TypeVar("AnyData", bound=Any)
InputShape = tuple[int, ...]
"""Of one input: channels, height, width of an image; or the bytes of a passage of text."""


class Examples(Protocol):
    """Inputs with the answers to give, in memory."""

    @property
    def inputs(self) -> Tensor:
        """Shape (num_examples, ...), uint8."""

    @property
    def labels(self) -> Tensor:
        """Shape (num_examples,), or (num_examples, num_positions) where there is an answer at each position; int64."""

    def __len__(self) -> int:
        """Number of examples."""

    def select(self, indices: Tensor) -> Self:
        """Some of the examples.

        Args:
            indices: shape (num_selected,), int64.

        Returns:
            Copies of them, in this order.
        """

    def to(self, device: torch.device) -> Self:
        """The same examples on a device.

        Args:
            device: where to put the tensors.

        Returns:
            A new object.
        """


class Data(Protocol):
    """A data set that a network can be trained on."""

    @property
    def train(self) -> Examples:
        """What the weights are fitted to."""

    @property
    def validation(self) -> Examples:
        """Held out from training, for every choice; may hold none."""

    @property
    def test(self) -> Examples:
        """Never used for a choice."""

    @property
    def num_classes(self) -> int:
        """Number of answers to choose from."""

    @property
    def input_shape(self) -> InputShape:
        """Of one input."""

    def digest(self) -> str:
        """What tells these examples from others.

        Returns:
            Eight hexadecimal digits.
        """

    def to(self, device: torch.device) -> Self:
        """The same data on a device.

        Args:
            device: where to put the tensors.

        Returns:
            A new object.
        """

    def normalize(self, inputs: Tensor) -> Tensor:
        """What a network reads.

        Args:
            inputs: as they are stored.

        Returns:
            float32 images, or int64 tokens, on the same device.
        """


def moved(data: AnyData, device: torch.device) -> AnyData:
    """The same data on a device.

    Args:
        data: a dataclass with the fields train, validation and test.
        device: where to put their tensors.

    Returns:
        A new object.
    """
    moved_data: AnyData = replace(
        data, train=data.train.to(device), validation=data.validation.to(device), test=data.test.to(device)
    )
    return moved_data


def digest_of(splits: Iterable[tuple[Tensor, ...]]) -> str:
    """What tells data from others.

    Args:
        splits: the tensors of each; that of the inputs first.

    Returns:
        Eight hexadecimal digits.
    """
    found = 0
    for tensors in splits:
        found = zlib.crc32(repr(tuple(tensors[0].shape)).encode(), found)
        for tensor in tensors:
            found = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), found)
    return f"{found:08x}"
