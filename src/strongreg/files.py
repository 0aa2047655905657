"""Files that are whole or not there at all."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

PART = ".part"
"""The end of the name of a file that is not whole yet."""


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file or none, also if the machine stops in between, or another writes the same file.

    Args:
        file: where to write; of a symbolic link, the file that it points to.
        content: what.

    Raises:
        OSError: the file cannot be written, or is there and no regular file.
    """
    file = file.resolve()
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if file.exists() and not file.is_file():
        raise OSError(f"{file} is no regular file")
    part = file.with_name(f"{file.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PART}")
    try:
        with part.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
