"""A folder of images with a folder per class."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from strongreg.experiments.data.decode import decode_images
from strongreg.experiments.data.images import Split
from strongreg.experiments.data.splits import Source, split_off
from strongreg.experiments.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_TEST_SHARE, _TEST_SEED = 0.2, 0


@dataclass(frozen=True)
class FolderFiles:
    """The images of a folder, by their names in order.

    Args:
        root: the folder.
        class_names: one per class, in order.
        train: files and their labels; all of them where there is no test folder.
        test: files and their labels; empty where there is no test folder.
    """

    root: Path
    class_names: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]


def list_images(root: Path) -> FolderFiles:
    """List the images of ``root/train/<class>`` and ``root/test/<class>``, or else of ``root/<class>``.

    Files without one of the known suffixes and hidden ones are left out.

    Args:
        root: the folder.

    Returns:
        Its images.

    Raises:
        UserError: there is no such folder, fewer than two classes, or a class without images.
        OSError: a folder cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"there is no image folder {root}: give a folder that holds a folder of images per class")
    folders = {folder.name: folder for folder in _folders(root)}
    if not {"train", "test"} & folders.keys():
        names = tuple(folders)
        return FolderFiles(root, _checked(root, names), _files(root, names, names), ())
    for name in ("train", "test"):
        if name not in folders:
            raise UserError(f"{root} holds no folder {name}: add it next to {'test' if name == 'train' else 'train'}")
    others = [name for name in folders if name not in ("train", "test")]
    if others:
        warnings.warn(f"{root}: only train and test are read, not {', '.join(others)}", stacklevel=2)
    names = _checked(folders["train"], tuple(folder.name for folder in _folders(folders["train"])))
    test_names = tuple(folder.name for folder in _folders(folders["test"]))
    unknown = [name for name in test_names if name not in names]
    if unknown or not test_names:
        raise UserError(f"{folders['test']} must hold folders of {folders['train']}, not {unknown or 'none'}")
    return FolderFiles(root, names, _files(folders["train"], names, names), _files(folders["test"], test_names, names))


def read_folder(files: FolderFiles) -> Source:
    """Decode the images; without a test folder, a stratified fifth is held out, the same ones for every seed.

    Args:
        files: what :func:`list_images` found.

    Returns:
        Training and test images.

    Raises:
        UserError: a file is damaged or no image, or its size or mode is not that of the first.
    """
    both = files.train + files.test
    images, _ = decode_images([file for file, _ in both], lambda i: str(both[i][0]))
    every = Split(images, torch.tensor([label for _, label in both], dtype=torch.int64))
    if files.test:
        parts = torch.arange(len(every)).split([len(files.train), len(files.test)])
        return Source(every.select(parts[0]), every.select(parts[1]), files.class_names)
    num_test = round(len(every) * _TEST_SHARE)
    if num_test == 0:
        raise UserError(f"{files.root} holds {len(every)} images: too few to hold out a fifth for the test")
    test, train = split_off(every.labels, num_test, _TEST_SEED)
    return Source(every.select(train), every.select(test), files.class_names)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _checked(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise UserError(f"{root} holds {len(names)} folders: give one per class, at least two")
    return names


def _files(root: Path, folders: Iterable[str], class_names: tuple[str, ...]) -> tuple[tuple[Path, int], ...]:
    found: list[tuple[Path, int]] = []
    for name in folders:
        images = sorted(
            path
            for path in (root / name).iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        if not images:
            raise UserError(f"{root / name} holds no images ({', '.join(SUFFIXES)}): add some or remove the folder")
        found += [(image, class_names.index(name)) for image in images]
    return tuple(found)
