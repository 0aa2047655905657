"""A finished run's files: its outcome, and every recorded step per layer."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from strongreg.experiments.engine.measurement import RunResult
from strongreg.experiments.errors import UserError
from strongreg.experiments.files import read_json, write_bytes
from strongreg.history import History
from strongreg.regularizer import Regularizer

FILE_NAME = "history.safetensors"


def save_history(regularizer: Regularizer, file: Path) -> None:
    """Write the records of a regularizer.

    Args:
        regularizer: after the run.
        file: where to write.

    Raises:
        OSError: it cannot be written.
    """
    state = regularizer.history.state_dict()
    write_bytes(file, save(state, metadata={"layers": json.dumps(regularizer.history.layers)}))


def load_history(file: Path) -> History:
    """Read what :func:`save_history` wrote.

    Args:
        file: an existing file.

    Returns:
        The records.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            history = History(json.loads((opened.metadata() or {})["layers"]))
            history.load_state_dict({name: opened.get_tensor(name) for name in ("steps", "records")})
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file} is missing or damaged: train that run again ({error})") from error
    return history


def load_result(file: Path) -> RunResult:
    """Read the outcome of a run.

    Args:
        file: result.json of its directory.

    Returns:
        The outcome.

    Raises:
        UserError: the file is missing, damaged, or of another version.
    """
    if not file.exists():
        raise UserError(f"{file} is missing: the run is not finished")
    content = read_json(file)
    if set(content) != {field.name for field in fields(RunResult)}:
        raise UserError(f"{file} is damaged, or of another version of strongreg: delete its folder to train again")
    return RunResult(**content)
