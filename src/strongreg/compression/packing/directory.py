"""What a packed file says about its tensors, and the checks before anything is believed (docs/packed-format.md)."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strongreg.compression.errors import PackedFileError
from strongreg.compression.packing.codec import CODECS
from strongreg.compression.packing.positions import gaps_allowed, largest_gaps
from strongreg.compression.packing.values import DTYPES, SCALE_BYTES, SIGNED_ZEROS, storable

VERSION = 1
LAYOUTS = ("dense", "mask", "gaps", "tied")
_COUNTS = ("num_stored", "num_nonzero", "num_negative_zeros", "crc32")
_MAX_DIMS = 64  # torch's own limit
_LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True)
class Stream:
    """Some bytes of a tensor's entry.

    Args:
        codec: how they are coded.
        num_bytes: how many they are in the file.
        num_raw_bytes: how many they are uncoded.
    """

    codec: str
    num_bytes: int
    num_raw_bytes: int


@dataclass(frozen=True)
class Entry:
    """One tensor of a packed file.

    Args:
        name: its key in the state_dict.
        dtype: of the tensor, torch's name.
        shape: of the tensor.
        stored_as: dtype of the values in the file.
        layout: "dense", or positions as "mask" or "gaps", or "tied".
        num_stored: values in the file.
        num_nonzero: elements that are not 0.
        num_negative_zeros: elements that are -0.0.
        streams: scales where values were quantized; unless dense, the signs of zeros where some are negative, and
            positions; values.
        crc32: of the streams' bytes in the file.
        tied_to: name of the tensor that this one is too, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_as: str
    layout: str
    num_stored: int
    num_nonzero: int
    num_negative_zeros: int
    streams: tuple[Stream, ...]
    crc32: int
    tied_to: str | None = None

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """What the tensor takes in memory; 0 for one that is another one too."""
        return 0 if self.tied_to is not None else self.num_elements * DTYPES[self.dtype].itemsize

    @property
    def packed_bytes(self) -> int:
        """What its streams take in the file."""
        return sum(stream.num_bytes for stream in self.streams)

    @property
    def has_signs(self) -> bool:
        """Whether the signs of its zeros are a stream of their own."""
        return self.num_negative_zeros > 0 and self.layout in ("mask", "gaps")

    @property
    def num_scales(self) -> int:
        """How many scales the values have; 0 unless they were quantized."""
        quantized = self.stored_as == "int8" and DTYPES[self.dtype].is_floating_point
        return self.shape[0] if quantized and self.shape else 0


def write_directory(entries: Sequence[Entry]) -> str:
    """The text that goes into the file.

    Args:
        entries: of all tensors.

    Returns:
        Version, checksum and JSON, separated by spaces.
    """
    rows = [
        {**asdict(entry), "streams": [[s.codec, s.num_bytes, s.num_raw_bytes] for s in entry.streams]}
        for entry in entries
    ]
    text = json.dumps(rows, separators=(",", ":"))
    return f"{VERSION} {_checksum(text)} {text}"


def read_directory(text: str, max_bytes: int) -> list[Entry]:
    """The entries, each checked as far as it can be without its streams.

    Args:
        text: what :func:`write_directory` returned.
        max_bytes: how many the tensors may take in memory together.

    Returns:
        The entries, in order.

    Raises:
        PackedFileError: anything does not fit.
    """
    version, _, rest = text.partition(" ")
    if not (version.isascii() and version.isdecimal()):
        raise PackedFileError("the directory does not begin with its version")
    if version != str(VERSION):
        raise PackedFileError(f"version {version[:20]} of the format, this reads {VERSION}: update strongreg")
    checksum, _, body = rest.partition(" ")
    if checksum != _checksum(body):
        raise PackedFileError("the directory is damaged (its checksum differs)")
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PackedFileError(f"the directory is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise PackedFileError("the directory is no list of tensors")
    entries: dict[str, Entry] = {}
    total = 0
    for row in rows:
        entry = _entry(row)
        if entry.name in entries:
            raise PackedFileError(f"tensor {entry.name!r} comes twice")
        _check_tie(entry, entries)
        total += max(entry.dense_bytes, SCALE_BYTES * entry.num_scales)
        if total > max_bytes:
            raise PackedFileError(
                f"the tensors take more than {max_bytes} bytes: if the file is to be trusted, choose a larger max_bytes"
            )
        entries[entry.name] = entry
    return list(entries.values())


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def _entry(row: Any) -> Entry:
    if not isinstance(row, dict) or set(row) != set(Entry.__dataclass_fields__):
        raise PackedFileError("a tensor's entry has other fields than it should")
    name, tied_to = row["name"], row["tied_to"]
    if not isinstance(name, str) or not isinstance(tied_to, str | None):
        raise PackedFileError("a tensor's name is no text")
    try:
        return _checked(row, tied_to)
    except PackedFileError as error:
        raise PackedFileError(f"tensor {name[:200]!r}: {error}") from error


def _checked(row: Mapping[str, Any], tied_to: str | None) -> Entry:
    for key, known in (("dtype", DTYPES), ("stored_as", DTYPES), ("layout", LAYOUTS)):
        if not isinstance(row[key], str) or row[key] not in known:
            raise PackedFileError(f"{key} {str(row[key])[:50]!r} is unknown")
    shape = row["shape"]
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS:
        raise PackedFileError("the shape is no list of sizes")
    for number in (*shape, *(row[key] for key in _COUNTS)):
        _check_size(number)
    if not isinstance(row["streams"], list):
        raise PackedFileError("the streams are no list")
    streams = tuple(_stream(stream) for stream in row["streams"])
    entry = Entry(**{**row, "shape": tuple(shape), "streams": streams})
    if entry.num_elements > _LARGEST_SIZE:
        raise PackedFileError("the shape is too large")
    largest = entry.num_elements - entry.num_negative_zeros
    if not (entry.num_nonzero <= entry.num_stored <= entry.num_elements and entry.num_nonzero <= largest):
        raise PackedFileError(f"{entry.num_stored} values for {entry.num_elements} elements")
    if entry.stored_as not in storable(entry.dtype):
        raise PackedFileError(f"{entry.dtype} stored as {entry.stored_as}")
    if (tied_to is not None) != (entry.layout == "tied"):
        raise PackedFileError("the layout and tied_to contradict one another")
    if entry.layout != "tied":
        _check_streams(entry)
    return entry


def _check_streams(entry: Entry) -> None:
    sizes = [stream.num_raw_bytes for stream in entry.streams]
    expected = [SCALE_BYTES * entry.num_scales] if entry.num_scales else []
    if entry.has_signs:
        if entry.stored_as not in SIGNED_ZEROS:
            raise PackedFileError(f"{entry.stored_as} has no negative zeros")
        expected.append(-(-(entry.num_elements - entry.num_stored) // 8))
    if entry.layout == "dense":
        if entry.num_stored != entry.num_elements:
            raise PackedFileError("a dense tensor does not store every element")
    elif entry.layout == "mask":
        expected.append(-(-entry.num_elements // 8))
    else:
        if not gaps_allowed(entry.num_elements, entry.num_stored):
            raise PackedFileError("too many values for coded gaps")
        bounds = (entry.num_stored, largest_gaps(entry.num_elements, entry.num_stored))
        expected += [size for size in sizes[len(expected) : len(expected) + 1] if bounds[0] <= size <= bounds[1]]
    expected.append(entry.num_stored * DTYPES[entry.stored_as].itemsize)
    num_streams = bool(entry.num_scales) + entry.has_signs + (entry.layout != "dense") + 1
    if sizes != expected or len(sizes) != num_streams:
        raise PackedFileError("the sizes of its streams are not those of its shape")


def _stream(row: Any) -> Stream:
    if not isinstance(row, list) or len(row) != 3 or row[0] not in CODECS:
        raise PackedFileError("a stream is no (codec, bytes, bytes)")
    for number in row[1:]:
        _check_size(number)
    return Stream(*row)


def _check_size(number: Any) -> None:
    if type(number) is not int or not 0 <= number <= _LARGEST_SIZE:
        raise PackedFileError(f"{str(number)[:30]!r} is no size")


def _check_tie(entry: Entry, entries: Mapping[str, Entry]) -> None:
    if entry.tied_to is None:
        return
    owner = entries.get(entry.tied_to)
    if owner is None or owner.tied_to is not None or (owner.dtype, owner.shape) != (entry.dtype, entry.shape):
        raise PackedFileError(f"tensor {entry.name!r} is tied to {entry.tied_to!r}, which is no such tensor before it")
    if entry.streams:
        raise PackedFileError(f"tensor {entry.name!r} is tied and has values of its own")
