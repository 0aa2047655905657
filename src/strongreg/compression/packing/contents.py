"""What a packed file holds, tensor by tensor, and what it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from strongreg.compression.packing.directory import Entry
from strongreg.text_table import text_table


@dataclass(frozen=True)
class PackedContents:
    """The table of a packed file.

    Args:
        tensors: one entry per tensor; a tensor that is another one too counts there.
        file_bytes: size of the file.
    """

    tensors: tuple[Entry, ...]
    file_bytes: int

    @property
    def dense_bytes(self) -> int:
        """What the tensors take uncompressed."""
        return sum(entry.dense_bytes for entry in self.tensors)

    @property
    def num_elements(self) -> int:
        """Numbers in all tensors."""
        return sum(entry.num_elements for entry in self.tensors if entry.tied_to is None)

    @property
    def num_nonzero(self) -> int:
        """Numbers in all tensors that are not 0."""
        return sum(entry.num_nonzero for entry in self.tensors)

    @property
    def num_negative_zeros(self) -> int:
        """Zeros that are kept for their sign."""
        return sum(entry.num_negative_zeros for entry in self.tensors)

    @property
    def compression(self) -> float:
        """Dense numbers / numbers that are not 0; infinity if there are none."""
        return self.num_elements / self.num_nonzero if self.num_nonzero else math.inf

    @property
    def byte_ratio(self) -> float:
        """Dense bytes / bytes of the file."""
        return self.dense_bytes / self.file_bytes

    def __str__(self) -> str:
        """The table as text."""
        header = ("tensor", "shape", "stored as", "kept", "bytes", "share of dense")
        total = ("total", "", "", _kept(self.num_nonzero, self.num_elements), f"{self.file_bytes:,}")
        rows = [_cells(entry) for entry in self.tensors]
        table = text_table(header, rows, (*total, _share(self.file_bytes, self.dense_bytes)), num_left=3)
        fewer = "nothing left" if math.isinf(self.compression) else f"{self.compression:.1f} times fewer numbers"
        fewer_bytes, times = self.byte_ratio >= 1, max(self.byte_ratio, 1 / self.byte_ratio if self.byte_ratio else 0)
        ratio = f"{times:.1f} times {'fewer' if fewer_bytes else 'more'} bytes"
        ratio += f" ({self.dense_bytes:,} to {self.file_bytes:,})"
        lines = [table, f"{fewer}, {ratio}"]
        if self.num_negative_zeros:
            negative = f"{self.num_negative_zeros:,} zeros are negative"
            lines.append(f"{negative} and take a bit each: tensor + 0.0 makes them free")
        return "\n".join(lines)


def _cells(entry: Entry) -> tuple[str, ...]:
    shape = "x".join(map(str, entry.shape))
    if entry.tied_to is not None:
        return (entry.name, shape, f"= {entry.tied_to}", "", "0", "")
    stored_as = entry.stored_as if entry.layout == "dense" else f"{entry.stored_as}, {entry.layout}"
    return (
        entry.name,
        shape,
        stored_as,
        _kept(entry.num_nonzero, entry.num_elements),
        f"{entry.packed_bytes:,}",
        _share(entry.packed_bytes, entry.dense_bytes),
    )


def _kept(kept: int, whole: int) -> str:
    return f"{kept:,} ({kept / whole:.2%})" if whole else "0"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""
