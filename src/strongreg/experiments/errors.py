"""The error that a command shows as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

CHOOSE_OUT = "choose another --out"
_EXIT_SIGNAL = 128  # and the signal's number, as a shell reports it


class UserError(Exception):
    """What the user asked for cannot be done; the text is one line: the thing, the value, the remedy."""

    exit_code = 2
    """With what the command ends."""


class Terminated(KeyboardInterrupt):
    """A request to terminate: what Ctrl-C is, but for the exit code.

    Args:
        signal_number: SIGTERM or SIGHUP.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class StoppedError(UserError):
    """The user stopped the command; what is finished is kept.

    Args:
        text: what is kept, and how to go on.
        interrupt: Ctrl-C, which ends like any error of the user, or a request to terminate.
    """

    def __init__(self, text: str, interrupt: KeyboardInterrupt) -> None:
        super().__init__(text)
        if isinstance(interrupt, Terminated):
            self.exit_code = _EXIT_SIGNAL + interrupt.signal_number


def cannot_write(path: Path, error: OSError, remedy: str = "") -> UserError:
    """The error of a file or directory that cannot be written.

    Args:
        path: which.
        error: of the system.
        remedy: what to do, for the end of the message; nothing where the user has just named the file.

    Returns:
        The error to raise.
    """
    return UserError(f"cannot write to {path}: {error.strerror or error}{remedy and f'; {remedy}'}")


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Check that a name is among the known ones.

    Args:
        kind: what is named, for the message ("model").
        name: the name given.
        known: the names there are.

    Raises:
        UserError: it is not; the closest names are suggested.
    """
    names = sorted(known)
    if name not in names:
        raise UserError(unknown(kind, name, names))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not among the known ones.

    Args:
        kind: what is named, for the message ("model").
        name: the name given.
        known: the names there are.

    Returns:
        The message, with the closest name.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}"
