"""Decoded images kept between runs: one safetensors file per data set in the user's cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from strongreg.experiments.data.images import Split
from strongreg.experiments.data.optional import import_optional
from strongreg.experiments.data.splits import Source

CACHE_VARIABLE = "STRONGREG_CACHE"
_VERSION = 1  # of what the files hold; another one leaves them unread
_PURPOSE = "keeping decoded images"


def cache_directory() -> Path:
    """Where decoded images are kept: $STRONGREG_CACHE, else $XDG_CACHE_HOME/strongreg, else ~/.cache/strongreg.

    Returns:
        A directory that may not exist.

    Raises:
        RuntimeError: neither variable is set and the user has no home.
    """
    own, shared = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared) if shared else Path.home() / ".cache") / "strongreg"


def cached(name: str, files: Sequence[Path], read: Callable[[], Source]) -> Source:
    """Read a data set once for all runs, as long as its files keep their names, sizes and times of modification.

    A kept file that is damaged is written anew, and where none can be written the data set is read each time.

    Args:
        name: the data set's name.
        files: what it is read from.
        read: reads it.

    Returns:
        What ``read`` returns, or returned before.

    Raises:
        OSError: a file is not there.
    """
    key = _key(name, files)
    try:
        directory = cache_directory()
    except RuntimeError:
        return read()
    kept = directory / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{key}.safetensors"
    source = _load(kept)
    if source is None:
        source = read()
        with contextlib.suppress(OSError):
            _save(kept, source)
    return source


def _key(name: str, files: Sequence[Path]) -> str:
    described = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps([_VERSION, name, described]).encode()).hexdigest()[:32]


def _tensors(source: Source) -> dict[str, Tensor]:
    return {
        "train_images": source.train.images,
        "train_labels": source.train.labels,
        "test_images": source.test.images,
        "test_labels": source.test.labels,
    }


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().numpy().data, checksum)
    return f"{checksum:08x}"


def _load(file: Path) -> Source | None:
    """The content of a file, None if it is not there or not whole."""
    safetensors = import_optional("safetensors", "safetensors", _PURPOSE)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata["checksum"] != _checksum(tensors):
            return None
        return Source(
            Split(tensors["train_images"], tensors["train_labels"]),
            Split(tensors["test_images"], tensors["test_labels"]),
            tuple(json.loads(metadata["class_names"])),
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def _save(file: Path, source: Source) -> None:
    """Write a whole file or none; processes that do so at the same time do not meet."""
    torch_files = import_optional("safetensors.torch", "safetensors", _PURPOSE)
    safetensors = import_optional("safetensors", "safetensors", _PURPOSE)
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(source).items()}
    metadata = {"checksum": _checksum(tensors), "class_names": json.dumps(source.class_names)}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        torch_files.save_file(tensors, part, metadata)
        part.replace(file)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)
