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
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}")
