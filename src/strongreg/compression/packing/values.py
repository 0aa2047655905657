"""Numbers as bytes: narrower ones where the user asks for them, bit for bit otherwise."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from strongreg.compression.errors import PackedFileError
from strongreg.compression.packing.positions import Mask

Values = Literal["fp32", "bf16", "fp16", "int8"]
VALUES: tuple[Values, ...] = get_args(Values)
Bytes = npt.NDArray[np.uint8]

_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
_WIDE = (torch.float32, torch.float64)
_LARGEST_INT8 = 127
SIGNED_ZEROS = ("float64", "float32", "float16", "bfloat16")
"""Dtypes whose negative zeros are told apart from other numbers: a sign bit and nothing else."""
SCALE = torch.bfloat16
"""What the scales of int8 are stored as: the numbers are rounded to 1/254 of the largest anyway."""
SCALE_BYTES = SCALE.itemsize
DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and "q" not in str(dtype).removeprefix("torch.")[:2]
}
"""What a tensor may be of, by torch's name."""


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name of a dtype.

    Args:
        dtype: any.

    Returns:
        A name such as "float32".
    """
    return str(dtype).removeprefix("torch.")


def storable(dtype: str) -> tuple[str, ...]:
    """What the numbers of a tensor may be stored as.

    Args:
        dtype: of the tensor, torch's name.

    Returns:
        Names, its own first.
    """
    return (dtype, *map(dtype_name, _NARROW.values())) if DTYPES[dtype] in _WIDE else (dtype,)


def narrow(name: str, tensor: Tensor, values: Values) -> tuple[Tensor, Tensor | None]:
    r"""The numbers to store. Only float32 and float64 tensors of two or more dimensions become narrower.

    In these -0.0 becomes 0.0.

    Args:
        name: of the tensor, for errors.
        tensor: any shape and dtype, contiguous, on the CPU.
        values: what to store them as; int8 has one scale per first index, :math:`\max|w| / 127`.

    Returns:
        Tensor of the same shape, and the scales, shape (size of the first dimension,), bfloat16, or None.

    Raises:
        ValueError: the numbers do not fit.
    """
    dtype = _NARROW.get(values)
    if dtype is None or tensor.dtype not in _WIDE or tensor.dim() < 2 or tensor.numel() == 0:
        return tensor, None
    if values == "int8":
        return _quantize(name, tensor)
    stored = tensor.to(dtype)
    if not torch.equal(stored.isinf(), tensor.isinf()):
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise ValueError(f"values={values!r} cannot hold {largest:g} in tensor {name!r}: choose another")
    return stored.add_(0.0), None  # -0.0 + 0.0 = 0.0


def widen(stored: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The tensor that :func:`narrow` took, as near as its numbers come.

    Args:
        stored: any shape.
        scales: what :func:`narrow` returned.
        dtype: of the tensor.

    Returns:
        Tensor of the same shape.
    """
    if scales is not None:
        return stored.to(dtype) * scales.to(dtype).reshape(-1, *[1] * (stored.dim() - 1))
    return stored.to(dtype)


def to_bytes(tensor: Tensor) -> Bytes:
    """The bytes of every element.

    Args:
        tensor: any shape and dtype, contiguous, on the CPU.

    Returns:
        (number of elements, bytes of one), little-endian.
    """
    raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    return raw.reshape(-1, tensor.element_size())


def from_bytes(raw: Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """See :func:`to_bytes`.

    Args:
        raw: (number of elements, bytes of one), contiguous.
        dtype: of the tensor.
        shape: of the tensor.

    Returns:
        The tensor, which shares the bytes' memory.

    Raises:
        PackedFileError: these bytes are no such tensor.
    """
    try:
        if not raw.size:
            return torch.empty(shape, dtype=dtype)
        return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)
    except (RuntimeError, TypeError) as error:
        raise PackedFileError(f"{dtype_name(dtype)} of shape {shape} cannot be built here: {error}") from error


def non_zero(raw: Bytes) -> Mask:
    """Which elements have a bit that is set: a negative zero does.

    Args:
        raw: (n, bytes of one).

    Returns:
        (n,)
    """
    size = raw.shape[1]
    if size in (1, 2, 4, 8):
        numbers: Mask = raw.view(f"u{size}")[:, 0] != 0
        return numbers
    return np.asarray(raw.any(axis=1), np.bool_)


def negative_zero(raw: Bytes, dtype: str) -> Mask | None:
    """Which elements are -0.0.

    Args:
        raw: (n, bytes of one).
        dtype: torch's name.

    Returns:
        (n,), or None if there are none.
    """
    if dtype not in SIGNED_ZEROS:
        return None
    size = raw.shape[1]
    found: Mask = raw.view(f"u{size}")[:, 0] == 1 << (8 * size - 1)
    return found if found.any() else None


def set_sign(raw: Bytes, where: Mask) -> None:
    """Make zeros negative, in place.

    Args:
        raw: (n, bytes of one), writable.
        where: (n,)
    """
    raw[where, -1] = 0x80


def _quantize(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    rows = tensor.reshape(len(tensor), -1)
    largest = rows.abs().amax(dim=1)
    scales = (largest / _LARGEST_INT8).to(SCALE)
    if not scales.isfinite().all():
        raise ValueError(f"values='int8' cannot hold {largest.max().item():g} in tensor {name!r}: choose another")
    safe = scales.to(tensor.dtype).masked_fill_(scales == 0, 1.0)
    stored = (rows / safe[:, None]).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8)
    return stored.to(torch.int8).reshape(tensor.shape), scales
