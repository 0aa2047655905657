"""JSON files that are whole or not there at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from strongreg.experiments.errors import UserError
from strongreg.files import write_bytes


def read_json(file: Path, remedy: str = "delete its folder to train again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: an existing file.
        remedy: what to do if it is damaged.

    Returns:
        Its content.

    Raises:
        UserError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: {remedy}")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a whole file or none: a reader, or the next start, never meets half of it.

    Args:
        file: where to write.
        content: plain data without NaN or infinity.

    Raises:
        OSError: the file cannot be written.
        ValueError: the content holds NaN or infinity, which JSON does not know.
    """
    write_bytes(file, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def finite_only(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries as JSON can hold them, which knows neither infinity nor NaN.

    Args:
        entries: name to plain data.

    Returns:
        The same with None for such a number.
    """
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entries.items()}
