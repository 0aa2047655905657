"""What commands write and say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from strongreg.experiments.console import say
from strongreg.experiments.engine.record import is_of_a_run
from strongreg.experiments.errors import UserError, cannot_write


def target_of(out: Path | None, source: Path, suffix: str) -> Path:
    """Where to write, which is not where was read.

    Args:
        out: of --out.
        source: the file that is read.
        suffix: of the file beside it, where no other was asked for.

    Returns:
        The file to write.

    Raises:
        UserError: it is the one that is read, or as :func:`check_target`.
    """
    target = out or source.with_suffix(suffix)
    if target == source or (target.exists() and source.exists() and target.samefile(source)):
        raise UserError(f"{source} would be overwritten: choose another with --out")
    check_target(target)
    return target


def check_target(file: Path, option: str = "--out") -> None:
    """Check before the work that a file may be written.

    Args:
        file: to be written.
        option: that names it.

    Raises:
        UserError: its directory does not exist, it is a directory itself, or it is a file that a run reads.
    """
    if file.is_dir():
        raise UserError(f"cannot write to {file}: it is a directory; give a file with {option}")
    if not file.parent.is_dir():
        raise UserError(
            f"cannot write to {file}: there is no directory {file.parent}; make it, or choose another {option}"
        )
    if is_of_a_run(file):
        raise UserError(f"{file} is a file of the run in {file.parent}: choose another {option}")


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """What goes wrong while a file is written is an error of the user's.

    Args:
        file: which.

    Yields:
        Nothing.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(file, error) from error


def tell(message: str) -> None:
    """Show a message on standard error.

    Args:
        message: one line.
    """
    say(Console(stderr=True), message)
