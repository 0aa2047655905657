"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file or none, also if the machine stops in between.

    Args:
        file: where to write.
        content: what.

    Raises:
        OSError: the file cannot be written.
    """
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
