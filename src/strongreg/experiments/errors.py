"""The error that a command shows as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What the user asked for cannot be done; the text is one line: the thing, the value, the remedy."""


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
