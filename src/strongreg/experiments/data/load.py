"""A data set by its name."""

from __future__ import annotations

import os
from pathlib import Path

from strongreg.experiments.data.cache import cached
from strongreg.experiments.data.catalog import PUBLISHED, Published
from strongreg.experiments.data.decode import decode_images
from strongreg.experiments.data.digits import DIGITS_MAX_VALUE, DIGITS_NUM_CLASSES, DIGITS_SHAPE, read_digits
from strongreg.experiments.data.examples import Data, InputShape
from strongreg.experiments.data.folder import list_images, read_folder
from strongreg.experiments.data.locate import Files, locate
from strongreg.experiments.data.optional import first_line
from strongreg.experiments.data.parquet import read_parquet
from strongreg.experiments.data.splits import Selection, Source, build_data
from strongreg.experiments.data.text import DEFAULT_CONTEXT, NUM_BYTES, TEXTS, is_text, load_text
from strongreg.experiments.errors import UserError, unknown

DATA_SETS: tuple[str, ...] = ("digits", *PUBLISHED, *TEXTS)
"""The names there are, besides the path of an image folder or of a text file."""


def load_data(
    name: str,
    *,
    data_dir: Path | None = None,
    validation_share: float = 0.0,
    num_train: int | None = None,
    context: int | None = None,
    seed: int = 0,
) -> Data:
    """Load a data set; the same arguments give the same examples in the same order.

    Args:
        name: digits, mnist, fashion_mnist, cifar10, cifar100 (fine labels), svhn, or the path of a folder of images:
            see :func:`strongreg.experiments.data.folder.list_images`; python_stdlib, tiny_shakespeare, or the path of
            a file of text: see :func:`strongreg.experiments.data.text.load_text`. What is named like a data set needs
            a separator ("./mnist").
        data_dir: where the files are: data_dir/<name>/train-*-of-*.parquet, or data_dir itself is that folder. None for
            $STRONGREG_DATA, then for a download. digits, image folders and text files do not read it.
        validation_share: share of all training images held out for validation, in [0, 1), stratified by class.
        num_train: images to train on, stratified by class, of those that remain; None for all. It does not change the
            validation images, and fewer are a subset of more.
        context: bytes of a passage of text; None for 128, and for images.
        seed: of both choices; the test images do not depend on it, and texts are cut without it.

    Returns:
        Training, validation and test examples on the CPU: an :class:`ImageData` or a :class:`TextData`.

    Raises:
        UserError: the name is unknown, files are missing, damaged or of another data set, a number is out of range, or
            a package is missing.
    """
    selection = Selection(validation_share, num_train, seed)
    try:
        if is_text(name):
            return load_text(
                name,
                data_dir,
                context=DEFAULT_CONTEXT if context is None else context,
                validation_share=validation_share,
                num_train=num_train,
            )
        if context is not None and (name in DATA_SETS or Path(name).expanduser().is_dir()):
            raise UserError(f"context={context}: {name} holds images, and context is for text: leave it out")
        if _is_path(name):
            folder = Path(name).expanduser()
            return build_data(folder.resolve().name or name, _read_image_folder(folder), selection)
        _check_name(name)
        if name == "digits":
            return build_data(name, read_digits(), selection, max_value=DIGITS_MAX_VALUE, standardize=False)
        return build_data(name, _read_published(name, PUBLISHED[name], data_dir), selection)
    except OSError as error:
        raise UserError(f"the data set {name} cannot be read: {first_line(error)}") from error


def input_format(name: str, context: int | None = None) -> tuple[InputShape, int]:
    """What a network for a data set must fit, without the data at hand; of an image folder the first image is read.

    Args:
        name: as for :func:`load_data`.
        context: likewise.

    Returns:
        Channels, height and width of every image, or the bytes of a passage; the number of classes.

    Raises:
        UserError: the name is unknown, or the folder cannot be read.
    """
    if is_text(name):
        return (DEFAULT_CONTEXT if context is None else context,), NUM_BYTES
    try:
        if _is_path(name):
            files = list_images(Path(name).expanduser())
            first = (files.train + files.test)[0][0]
            return decode_images([first], lambda _: str(first))[1], len(files.class_names)
        _check_name(name)
    except OSError as error:
        raise UserError(f"the data set {name} cannot be read: {first_line(error)}") from error
    if name == "digits":
        return DIGITS_SHAPE, DIGITS_NUM_CLASSES
    return PUBLISHED[name].shape, PUBLISHED[name].num_classes


def _check_name(name: str) -> None:
    if name not in DATA_SETS:
        folder = (
            f"; or name a folder that holds a folder of images per class, or a text file ({name!r} is neither here)"
        )
        raise UserError(unknown("data set", name, DATA_SETS) + folder)


def _is_path(name: str) -> bool:
    """Whether an image folder is meant: by a separator, or because there is one and no data set of this name."""
    separators = {os.sep, os.altsep or os.sep}
    if any(separator in name for separator in separators) or name in (os.curdir, os.pardir) or name[:1] == "~":
        return True
    return name not in DATA_SETS and name != "" and Path(name).is_dir()


def _read_image_folder(folder: Path) -> Source:
    files = list_images(folder)
    paths = [file for file, _ in files.train + files.test]
    return cached(folder.resolve().name, paths, lambda: read_folder(files))


def _read_published(name: str, published: Published, data_dir: Path | None) -> Source:
    files = locate(name, published, data_dir)

    def read() -> Source:
        source = _read_files(published, files)
        published.check(name, source, str(files.folder))
        return source

    return cached(name, [*files.train, *files.test], read)


def _read_files(published: Published, files: Files) -> Source:
    train, names = read_parquet(files.train, published.shape, published.num_classes)
    test, _ = read_parquet(files.test, published.shape, published.num_classes)
    return Source(train, test, names)
