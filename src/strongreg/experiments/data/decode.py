"""Encoded images to one uint8 tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strongreg.experiments.data.optional import first_line, import_optional
from strongreg.experiments.errors import UserError

Shape = tuple[int, int, int]
"""Channels, height, width."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Tried in this order; others are foreign files. Fewer formats to try make opening a small image twice as fast."""
_MAX_THREADS = 4  # tiny images hold the interpreter most of the time: more threads only wait for it
_CHUNK = 250  # images per task


def decode_images(
    files: Sequence[bytes | Path], describe: Callable[[int], str], shape: Shape | None = None
) -> tuple[Tensor, Shape]:
    """Decode images of one size, of the first frame where there are several, in threads.

    Args:
        files: encoded images, or files that hold one; at least one.
        describe: names the image of an index, for messages.
        shape: what every image must have; None for that of the first.

    Returns:
        Shape (num_images, channels, height, width), uint8; and the shape of one image.

    Raises:
        UserError: a file is no image, is damaged, or has another size or number of channels; or Pillow is missing.
    """
    opener = import_optional("PIL.Image", "pillow", "reading images")
    expected = "the data set has"
    if shape is None:
        first = _read(opener, files[0], describe(0))
        shape, expected = _shape(first), f"{describe(0)}, the first, has"
    channels, height, width = shape
    pixels = np.empty((len(files), height, width, channels), dtype=np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(files))):
            image = _read(opener, files[i], describe(i))
            if _shape(image) != shape:
                raise UserError(
                    f"{describe(i)} has {_in_words(_shape(image))}, but {expected} {_in_words(shape)}: "
                    "all images must have one size and one mode"
                )
            pixels[i] = image.reshape(height, width, channels)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        for _ in threads.map(fill, range(0, len(files), _CHUNK)):
            pass
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), shape


def to_pixels(image: Any, description: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of a Pillow image: grey for the modes L and 1, colours for RGB and palettes.

    Args:
        image: a Pillow image.
        description: names it, for messages.

    Returns:
        Shape (height, width) or (height, width, 3).

    Raises:
        UserError: the image has another mode.
    """
    if image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode not in ("L", "RGB"):
        raise UserError(f"{description} has the mode {image.mode}: save it as RGB or L (grey)")
    return np.asarray(image)


def _read(opener: Any, file: bytes | Path, description: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with opener.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            return to_pixels(image, description)
    except opener.UnidentifiedImageError as error:
        raise UserError(f"{description} is not an image ({', '.join(FORMATS)})") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{description} is damaged: {first_line(error)}") from error


def _shape(pixels: np.ndarray[Any, Any]) -> Shape:
    height, width = pixels.shape[:2]
    return (1 if pixels.ndim == 2 else pixels.shape[2]), height, width


def _in_words(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels in {'grey' if channels == 1 else 'RGB'}"
