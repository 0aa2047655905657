"""Tiny data sets on disk; nothing of the user's own data, cache or network is touched."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from strongreg.experiments.data.catalog import PUBLISHED, Published

TINY = Published("someone/cifar10", "plain_text", (3, 8, 6), (5, 4, 3), (2, 2, 2))


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path_factory):
    """A cache for each test, and no data but those that the test makes."""
    monkeypatch.setenv("STRONGREG_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("STRONGREG_DATA", raising=False)


@pytest.fixture
def tiny(monkeypatch) -> Published:
    """cifar10 with 12 training and 6 test images of 3 classes."""
    monkeypatch.setitem(PUBLISHED, "cifar10", TINY)
    return TINY


def pixels_of(number: int, shape=(8, 6, 3)) -> np.ndarray:
    """An image that no other number has."""
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:  # noqa: A002
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def write_parquet(path: Path, images, labels, *, image="img", label="label", names=None, extra=None) -> Path:
    rows = [{"bytes": content, "path": None} for content in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, struct), label: pa.array(labels, pa.int64()), **(extra or {})})
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.fixture
def write():
    return write_parquet


def write_tiny(folder: Path, published: Published = TINY, train_files: int = 2, **options) -> Path:
    """The files of the tiny set; image i of the training is ``pixels_of(i)``, of the test ``pixels_of(100 + i)``."""
    channels, height, width = published.shape
    shape = (height, width) if channels == 1 else (height, width, channels)
    for split, counts, first, parts in (
        ("train", published.train_counts, 0, train_files),
        ("test", published.test_counts, 100, 1),
    ):
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        images = [encode(pixels_of(first + i, shape)) for i in range(len(labels))]
        for part in range(parts):
            chosen = slice(len(labels) * part // parts, len(labels) * (part + 1) // parts)
            write_parquet(
                folder / f"{split}-{part:05}-of-{parts:05}.parquet", images[chosen], labels[chosen], **options
            )
    return folder


@pytest.fixture
def make_tiny():
    return write_tiny


@pytest.fixture
def make_image():
    return pixels_of


@pytest.fixture
def encoded():
    return encode


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two classes with ten and five images, in root/<class>."""
    for name, count, first in (("rose", 10, 0), ("aster", 5, 50)):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(pixels_of(first + i)).save(tmp_path / "flowers" / name / f"{i:02}.png")
    return tmp_path / "flowers"
