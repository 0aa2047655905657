"""Where the files of a published data set lie: in a folder of the user, or downloaded into the user's cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from strongreg.experiments.data.catalog import Published
from strongreg.experiments.data.optional import first_line, import_optional
from strongreg.experiments.errors import UserError

DATA_VARIABLE = "STRONGREG_DATA"
_SHARD = re.compile(r"(train|test)-(\d+)-of-(\d+)\.parquet")
_PATTERNS = ("train-*-of-*.parquet", "test-*-of-*.parquet")


@dataclass(frozen=True)
class Files:
    """The files of a data set.

    Args:
        folder: where they lie.
        train: those of the training images, in order.
        test: those of the test images, in order.
    """

    folder: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]


def locate(name: str, published: Published, data_dir: Path | None) -> Files:
    """Find the files of a data set.

    Args:
        name: its name.
        published: what is known of it.
        data_dir: holds a folder of this name with the files, or the files themselves; a folder named like the hub's in
            between is fine. Nothing is downloaded then. None: the same below $STRONGREG_DATA, and what is not there
            comes from the Hugging Face hub or from its cache.

    Returns:
        The complete files.

    Raises:
        UserError: they are not there and cannot be downloaded, or some are missing; says which to put where.
    """
    place = data_folder(data_dir)
    files = find_published(name, published, place)
    if files is not None:
        return files
    if data_dir is not None:
        raise UserError(f"no files of {name} in {place}: {_remedy(name, published, place)}")
    return _download(name, published, place)


def data_folder(data_dir: Path | None) -> Path | None:
    """The user's folder of data sets.

    Args:
        data_dir: what was asked for, or None.

    Returns:
        It, or what $STRONGREG_DATA names; None where that is not set.
    """
    variable = os.environ.get(DATA_VARIABLE)
    place = data_dir or (Path(variable) if variable else None)
    return None if place is None else place.expanduser()


def find_published(name: str, published: Published, place: Path | None) -> Files | None:
    """The files of a data set in a folder of the user.

    Args:
        name: its name.
        published: what is known of it.
        place: holds a folder of this name with the files, or the files themselves; or None.

    Returns:
        The complete files, None if there are none at all.

    Raises:
        UserError: some are missing.
    """
    if place is None:
        return None
    for folder in (place / name / published.config, place / name, place / published.config, place):
        files = find_files(folder)
        if files is not None:
            return files
    return None


def find_files(folder: Path) -> Files | None:
    """The files of a folder that are named like ``train-00000-of-00002.parquet``.

    Args:
        folder: may not exist.

    Returns:
        The files of both splits, None if there are none at all.

    Raises:
        UserError: some are missing.
    """
    found: dict[str, dict[tuple[int, int], Path]] = {"train": {}, "test": {}}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _SHARD.fullmatch(path.name)
        if match is not None and path.is_file():
            found[match[1]][int(match[3]), int(match[2])] = path
    if not any(found.values()):
        return None
    return Files(folder, _complete(folder, "train", found["train"]), _complete(folder, "test", found["test"]))


def _complete(folder: Path, split: str, found: dict[tuple[int, int], Path]) -> tuple[Path, ...]:
    if not found:
        raise UserError(f"{folder} holds no {split}-*-of-*.parquet: put all files of the data set there")
    totals = sorted({total for total, _ in found})
    if len(totals) > 1:
        raise UserError(
            f"{folder} mixes {split} files of {' and '.join(f'{total:05}' for total in totals)} parts: keep one set"
        )
    total = totals[0]
    missing = [f"{split}-{part:05}-of-{total:05}.parquet" for part in range(total) if (total, part) not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} is missing in {folder}: put all {total} {split} files there")
    return tuple(found[key] for key in sorted(found))


def _download(name: str, published: Published, place: Path | None) -> Files:
    try:
        hub = import_optional("huggingface_hub", "huggingface_hub", f"downloading {name}")
        snapshot = hub.snapshot_download(
            published.repository,
            repo_type="dataset",
            allow_patterns=[f"{published.config}/{pattern}" for pattern in _PATTERNS] + list(_PATTERNS),
        )
    except UserError as error:
        raise UserError(f"{error}; or {_remedy(name, published, place)}") from error
    except Exception as error:  # whatever the network, the proxy or the disk made of it
        raise UserError(
            f"{name} cannot be downloaded ({first_line(error)}): {_remedy(name, published, place)}"
        ) from error
    files = find_files(Path(snapshot) / published.config) or find_files(Path(snapshot))
    if files is None:
        raise UserError(
            f"{published.repository} holds no {published.config}/{_PATTERNS[0]}: {_remedy(name, published, place)}"
        )
    return files


def _remedy(name: str, published: Published, place: Path | None) -> str:
    root = place or Path("data")
    return (
        f"put {' and '.join(_PATTERNS)} of https://huggingface.co/datasets/{published.repository} (folder "
        f"{published.config}) into {(root / name).absolute()} and give --data-dir {root}, or set {DATA_VARIABLE} to "
        f"{root.absolute()}"
    )
