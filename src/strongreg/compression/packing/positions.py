"""Where the non-zeros of a tensor are: a bit mask or coded gaps (docs/packed-format.md, Positions)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from strongreg.compression.errors import PackedFileError

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[Any]  # bool of one entry per element, or the indices of the non-zeros
_ESCAPE = 255


def encode_mask(mask: Mask) -> bytes:
    """One bit per element, the first in the lowest bit of the first byte.

    Args:
        mask: (n,), whether an element is stored.

    Returns:
        ceil(n / 8) bytes.
    """
    return np.packbits(mask, bitorder="little").tobytes()


def decode_mask(raw: bytes, num_elements: int, num_stored: int) -> Positions:
    """See :func:`encode_mask`.

    Args:
        raw: ceil(n / 8) bytes.
        num_elements: n.
        num_stored: how many bits are to be set.

    Returns:
        (n,), whether an element is stored.

    Raises:
        PackedFileError: another number of bits is set.
    """
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    if bits[num_elements:].any():
        raise PackedFileError("a bit mask goes on beyond its tensor")
    mask = bits[:num_elements].view(np.bool_)
    if (found := int(np.count_nonzero(mask))) != num_stored:
        raise PackedFileError(f"a bit mask has {found} positions, {num_stored} values were to come")
    return mask


def encode_gaps(mask: Mask) -> bytes:
    """The number of elements left out before each stored one, as bytes: 255 says 255, and that the gap goes on.

    Args:
        mask: (n,), whether an element is stored.

    Returns:
        One byte per stored element, and one more for every whole 255 of a gap.
    """
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    num_escapes = gaps // _ESCAPE
    coded = np.full(len(gaps) + int(num_escapes.sum()), _ESCAPE, np.uint8)
    coded[np.cumsum(num_escapes + 1) - 1] = gaps % _ESCAPE
    return coded.tobytes()


def decode_gaps(raw: bytes, num_elements: int, num_stored: int) -> Positions:
    """See :func:`encode_gaps`.

    Args:
        raw: the bytes.
        num_elements: n.
        num_stored: how many positions are to come.

    Returns:
        (num_stored,), indices of the stored elements, rising.

    Raises:
        PackedFileError: another number of positions comes, or one lies beyond the tensor.
    """
    coded = np.frombuffer(raw, np.uint8)
    ends = coded != _ESCAPE
    indices: Positions = np.cumsum(coded, dtype=np.int64)[ends]
    if len(indices) != num_stored or (len(coded) and not ends[-1]):
        raise PackedFileError(f"gaps lead to {len(indices)} positions, {num_stored} values were to come")
    indices += np.arange(num_stored)
    if num_stored and indices[-1] >= num_elements:
        raise PackedFileError("gaps lead beyond their tensor")
    return indices


def gaps_allowed(num_elements: int, num_stored: int) -> bool:
    """Whether gaps may be coded: where a bit mask would be shorter they are not, and decoding takes little memory.

    Args:
        num_elements: n.
        num_stored: of them stored.

    Returns:
        Whether at most an eighth is stored.
    """
    return 8 * num_stored <= num_elements


def largest_gaps(num_elements: int, num_stored: int) -> int:
    """How many bytes :func:`encode_gaps` takes at most.

    Args:
        num_elements: n.
        num_stored: of them stored.

    Returns:
        A number of bytes.
    """
    return num_stored + (num_elements - num_stored) // _ESCAPE
