"""Any torch data set of images and labels, read once into memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from strongreg.experiments.data.decode import to_pixels
from strongreg.experiments.data.images import ImageData, Split
from strongreg.experiments.data.splits import Selection, Source, build_data
from strongreg.experiments.errors import UserError

_MAX_VALUE = 255
_ROUNDING = 1e-3  # of a pixel value: what float16 or float32 may lose on the way from uint8 and back


def from_datasets(
    name: str,
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    num_classes: int | None = None,
    validation_share: float = 0.0,
    num_train: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Read map-style data sets of pairs (image, label), each item once.

    An image is a Pillow image, a uint8 tensor of shape (channels, height, width) or (height, width), or a uint8 array
    of shape (height, width, channels) or (height, width). Floating point tensors and arrays are taken where they are
    uint8 pixels / 255, as torchvision's ToTensor makes them; others would lose digits and are an error. Give the
    images before any augmentation or normalization.

    Args:
        name: the data set's name.
        train: has a length and items of training images.
        test: has a length and items of test images.
        num_classes: number of classes; None for the length of ``train.classes`` if there is one, or else the largest
            label + 1.
        validation_share: share of the training images held out for validation, in [0, 1).
        num_train: images to train on, of those that remain; None for all.
        seed: of both choices.

    Returns:
        The data set in memory.

    Raises:
        UserError: a data set is empty or has no length, an item is of another kind or shape, a label is out of range,
            or a number is out of range.
    """
    selection = Selection(validation_share, num_train, seed)
    splits = [_read(part, dataset) for part, dataset in (("train", train), ("test", test))]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        shapes = [tuple(split.images.shape[1:]) for split in splits]
        raise UserError(f"the test images have the shape {shapes[1]}, the training images {shapes[0]}: give one")
    names = _class_names(train, num_classes, splits)
    for part, split in zip(("train", "test"), splits, strict=True):
        wrong = ((split.labels < 0) | (split.labels >= len(names))).nonzero().flatten()
        if len(wrong) > 0:
            label, i = split.labels[wrong[0]].item(), wrong[0].item()
            raise UserError(f"{part}[{i}] has the label {label}: with {len(names)} classes, give 0 to {len(names) - 1}")
    return build_data(name, Source(splits[0], splits[1], names), selection)


def _class_names(train: Dataset[Any], num_classes: int | None, splits: list[Split]) -> tuple[str, ...]:
    known = getattr(train, "classes", None)
    names = tuple(str(name) for name in known) if isinstance(known, list | tuple) else ()
    if num_classes is None:
        num_classes = len(names) or int(max(split.labels.max() for split in splits)) + 1
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes}: must be at least 1")
    return names if len(names) == num_classes else tuple(str(label) for label in range(num_classes))


def _read(part: str, dataset: Dataset[Any]) -> Split:
    try:
        length = len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"{part}={type(dataset).__name__} has no length: give a map-style data set") from error
    if length == 0:
        raise UserError(f"{part}={type(dataset).__name__} is empty: give at least one image")
    images: Tensor | None = None
    labels = torch.empty(length, dtype=torch.int64)
    for i in range(length):
        image, label = _pair(dataset[i], f"{part}[{i}]")
        if images is None:
            images = torch.empty(length, *image.shape, dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"{part}[{i}] has the shape {tuple(image.shape)}, {part}[0] has {tuple(images.shape[1:])}: give one"
            )
        images[i], labels[i] = image, label
    assert images is not None
    return Split(images, labels)


def _pair(item: Any, description: str) -> tuple[Tensor, int]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"{description} is a {type(item).__name__}: give pairs (image, label)")
    image, label = item
    if isinstance(label, Tensor | np.ndarray | np.generic) and np.prod(label.shape) == 1:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise UserError(f"{description} has the label {label!r}: give a whole number")
    return _to_tensor(image, description), label


def _to_tensor(image: Any, description: str) -> Tensor:
    """Shape (channels, height, width), uint8."""
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
    elif isinstance(image, np.ndarray):
        tensor = _channels_first(image)
    elif hasattr(image, "mode") and hasattr(image, "convert"):
        tensor = _channels_first(to_pixels(image, description))
    else:
        raise UserError(f"{description} holds a {type(image).__name__}: give a Pillow image, a tensor or an array")
    if tensor.dim() == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.dim() != 3:
        raise UserError(f"{description} has {tensor.dim()} dimensions: give (channels, height, width)")
    if tensor.is_floating_point():
        return _from_float(tensor, description)
    if tensor.dtype != torch.uint8:
        raise UserError(f"{description} is {tensor.dtype}: give uint8")
    return tensor


def _channels_first(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.array(array))  # a copy: a Pillow image's array cannot be written to
    return tensor.permute(2, 0, 1) if tensor.dim() == 3 else tensor


def _from_float(tensor: Tensor, description: str) -> Tensor:
    values = tensor.to(torch.float64) * _MAX_VALUE
    pixels = values.round()
    if not bool(((values - pixels).abs() <= _ROUNDING).all() & (pixels >= 0).all() & (pixels <= _MAX_VALUE).all()):
        raise UserError(
            f"{description} is {tensor.dtype} with values that are not uint8 pixels / 255: give uint8, without "
            "normalization or augmentation"
        )
    return pixels.to(torch.uint8)
