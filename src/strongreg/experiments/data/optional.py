"""Packages that only some data sets need."""

from __future__ import annotations

import importlib
from typing import Any

from strongreg.experiments.errors import UserError
from strongreg.extras import how_to_install


def import_optional(module: str, package: str, purpose: str) -> Any:
    """Import a module of the experiments extra.

    Args:
        module: its name ("pyarrow.parquet").
        package: the package to name if it is missing.
        purpose: what needs it, for the message ("reading parquet files").

    Returns:
        The module.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{purpose} needs {package}: {how_to_install('experiments')}") from error


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a message of one line.

    Args:
        error: any exception.

    Returns:
        The first line of its text without a full stop, or its type where it has none.
    """
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].removesuffix(".")
