"""Whether a process of this machine still lives: it holds a lock, which the kernel takes from the dead."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
import uuid
import weakref
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LONG_AGO_SECONDS = 3600.0
_NAME = re.compile(r"strongreg-[0-9a-f]{32}\.lock")


class Presence:
    """A locked file in the folder for temporary files, for as long as this process lives, or until it is left.

    Where there are no such locks (Windows) nobody is known to be gone, and heartbeats alone tell.
    """

    def __init__(self) -> None:
        self.file = Path(tempfile.gettempdir()) / f"strongreg-{uuid.uuid4().hex}.lock"
        descriptor = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._leave = weakref.finalize(self, _leave, descriptor, self.file, os.getpid())

    def beat(self) -> None:
        """Note in the file's time that this process lives, as in a study: see :func:`remove_left`."""
        with contextlib.suppress(OSError):  # somebody has cleared the folder
            os.utime(self.file)

    def leave(self) -> None:
        """Let go of the lock and remove the file; done at the end of the process otherwise."""
        self._leave()


def _leave(descriptor: int, file: Path, process: int) -> None:
    os.close(descriptor)
    if os.getpid() == process:  # and not one that was forked from it
        file.unlink(missing_ok=True)


def is_gone(file: object) -> bool:
    """Whether the process that made a file is known to have ended without a word.

    Args:
        file: path of a :class:`Presence`, as another process wrote it down.

    Returns:
        True if so; False if it lives, or is of another machine or user.
    """
    if sys.platform == "win32" or not isinstance(file, str) or not _NAME.fullmatch(Path(file).name):
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_left() -> None:
    """Remove the files of processes that were killed long ago: that no heartbeat is heard tells as much by now."""
    for file in Path(tempfile.gettempdir()).glob("strongreg-*.lock"):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < time.time() - _LONG_AGO_SECONDS:
                forget(str(file))


def forget(file: object) -> None:
    """Remove what a process left that :func:`is_gone`, once its trials are taken care of.

    Args:
        file: path of a :class:`Presence`.
    """
    if is_gone(file):
        with contextlib.suppress(OSError):
            Path(str(file)).unlink()
