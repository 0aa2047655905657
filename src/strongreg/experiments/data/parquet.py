"""Images in parquet files of the Hugging Face layout: a column of encoded images and a column of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strongreg.experiments.data.decode import Shape, decode_images
from strongreg.experiments.data.images import Split
from strongreg.experiments.data.optional import first_line, import_optional
from strongreg.experiments.errors import UserError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("fine_label", "label")
"""The first that a file has is read: cifar100 has fine and coarse labels."""


def read_parquet(files: Sequence[Path], shape: Shape, num_classes: int) -> tuple[Split, tuple[str, ...]]:
    """Read the files of one split, in order.

    Args:
        files: at least one.
        shape: channels, height and width that every image must have.
        num_classes: number of classes.

    Returns:
        The images; and the class names that the files carry, or else the numbers of the classes.

    Raises:
        UserError: a file is damaged, foreign or empty, or holds an image or label that cannot be right; it is named.
            Or a package is missing.
    """
    images, labels, names = [], [], tuple(str(label) for label in range(num_classes))
    for file in files:
        encoded, numbers, found = _columns(file, num_classes)

        def describe(row: int, file: Path = file) -> str:
            return f"the image of row {row} of {file}"

        images.append(decode_images(encoded, describe, shape)[0])
        labels.append(numbers)
        names = found or names
    return Split(torch.cat(images), torch.cat(labels)), names


def _columns(file: Path, num_classes: int) -> tuple[list[bytes], Tensor, tuple[str, ...] | None]:
    """Encoded images, labels and class names of a file."""
    pyarrow = import_optional("pyarrow", "pyarrow", "reading parquet files")
    parquet = import_optional("pyarrow.parquet", "pyarrow", "reading parquet files")
    try:
        with parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            image_column = _choose(file, schema.names, IMAGE_COLUMNS)
            label_column = _choose(file, schema.names, LABEL_COLUMNS)
            _check_types(pyarrow, file, schema.field(image_column), schema.field(label_column))
            table = opened.read(columns=[image_column, label_column])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a whole parquet file: {first_line(error)}; replace it") from error
    if table.num_rows == 0:
        raise UserError(f"{file} holds no images: replace it")
    names = _class_names(schema, label_column)
    if names is not None and len(names) != num_classes:
        raise UserError(f"{file} is of a data set of {len(names)} classes, not {num_classes}: replace it")
    encoded = [image for chunk in table[image_column].chunks for image in chunk.field("bytes").to_pylist()]
    labels = table[label_column].to_pylist()
    for row, (image, label) in enumerate(zip(encoded, labels, strict=True)):
        if image is None:
            raise UserError(f"{file} holds no image in row {row}: replace it")
        if label is None or not 0 <= label < num_classes:
            raise UserError(f"{file} holds the label {label} in row {row}, not 0 to {num_classes - 1}: replace it")
    return encoded, torch.tensor(labels, dtype=torch.int64), names


def _choose(file: Path, columns: Sequence[str], known: tuple[str, ...]) -> str:
    for name in known:
        if name in columns:
            return name
    raise UserError(f"{file} has the columns {', '.join(columns) or 'none'}, none of them {' or '.join(known)}")


def _check_types(pyarrow: Any, file: Path, images: Any, labels: Any) -> None:
    kinds = pyarrow.types
    fields = {field.name: field.type for field in images.type} if kinds.is_struct(images.type) else {}
    if "bytes" not in fields or not (kinds.is_binary(fields["bytes"]) or kinds.is_large_binary(fields["bytes"])):
        raise UserError(f"{file}: its column {images.name} is {images.type}, not a struct with encoded images as bytes")
    if not kinds.is_integer(labels.type):
        raise UserError(f"{file}: its column {labels.name} is {labels.type}, not whole numbers")


def _class_names(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Those that the Hugging Face ``datasets`` package left in the metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None
