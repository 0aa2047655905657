"""Streams of bytes, entropy-coded where that makes them smaller (docs/packed-format.md, Streams)."""

from __future__ import annotations

import zlib

from strongreg.compression.errors import PackedFileError

STORED, DEFLATE = "stored", "deflate"
CODECS = (STORED, DEFLATE)

_SEARCHED_BYTES = 2**18  # up to here repetitions are searched for too, which takes ten times as long


def encode(raw: bytes) -> tuple[str, bytes]:
    """The smaller of a stream as it is and deflated (RFC 1951 in the wrapper of RFC 1950).

    Args:
        raw: the stream.

    Returns:
        Name of the codec, and the bytes to write.
    """
    coded = _deflate(raw, 6, zlib.Z_RLE)
    if len(raw) <= _SEARCHED_BYTES:
        coded = min(coded, _deflate(raw, 9, zlib.Z_DEFAULT_STRATEGY), key=len)
    return (DEFLATE, coded) if len(coded) < len(raw) else (STORED, raw)


def decode(codec: str, coded: bytes, num_bytes: int) -> bytes:
    """The stream that was encoded; never more than ``num_bytes`` are unpacked.

    Args:
        codec: one of :data:`CODECS`.
        coded: what was written.
        num_bytes: length of the stream.

    Returns:
        The stream.

    Raises:
        PackedFileError: what was written is not such a stream.
    """
    if codec == STORED:
        raw = coded
    else:
        inflater = zlib.decompressobj()
        try:
            raw = inflater.decompress(coded, num_bytes + 1)  # 0 would mean no limit
        except zlib.error as error:
            raise PackedFileError(f"a stream cannot be inflated: {error}") from error
        if not inflater.eof or inflater.unused_data:
            raise PackedFileError("a stream does not end where it should")
    if len(raw) != num_bytes:
        raise PackedFileError(f"a stream holds {len(raw)} bytes or more, {num_bytes} were to come")
    return raw


def _deflate(raw: bytes, level: int, strategy: int) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return deflater.compress(raw) + deflater.flush()
