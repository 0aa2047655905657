"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file or none, also if the machine stops in between, or others write the same file.

    Args:
        file: where to write; of a symbolic link, the file that it points to.
        content: what.

    Raises:
        OSError: the file cannot be written, or is there and no regular file.
    """
    file = file.resolve()
    if file.exists() and not file.is_file():
        raise OSError(f"{file} is no regular file")
    handle, name = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".part", dir=file.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~_umask())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Of this process; the system tells it only in exchange for another."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
