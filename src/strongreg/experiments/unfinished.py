"""Runs that were stopped before their end: what is known of them, and how they go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from strongreg.diagnosis import RunRecord
from strongreg.experiments.engine import EpochMetrics
from strongreg.experiments.engine.checkpoint import FILE_NAME as CHECKPOINT_FILE
from strongreg.experiments.engine.checkpoint import read_checkpoint
from strongreg.experiments.engine.record import METRICS_FILE, RESULT_FILE, parse_metrics
from strongreg.experiments.errors import UserError
from strongreg.history import History


def check_directory(directory: Path) -> None:
    """Check that runs may lie there.

    Args:
        directory: what the user named.

    Raises:
        UserError: it does not exist, or is a file.
    """
    if not directory.exists():
        raise UserError(f"{directory} holds no finished run: it does not exist")
    if not directory.is_dir():
        raise UserError(f"{directory} holds no finished run: it is a file, name the directory of a run")


def find_unfinished(directory: Path) -> list[Path]:
    """The directories of unfinished runs in or below a directory.

    Args:
        directory: of a run, a comparison, or a tolerance study.

    Returns:
        Directories that hold a checkpoint or epochs and no result.json, in the order of their names.
    """
    begun = {file.parent for name in (CHECKPOINT_FILE, METRICS_FILE) for file in directory.glob(f"**/{name}")}
    return sorted(folder for folder in begun if not (folder / RESULT_FILE).exists())


def describe_unfinished(directory: Path) -> str:
    """How far a run came, and how it goes on.

    Args:
        directory: of an unfinished run.

    Returns:
        A sentence.
    """
    epochs = parse_metrics(_text(directory / METRICS_FILE))
    far = "no epoch is done" if not epochs else f"epoch {len(epochs)} is done, accuracy {epochs[-1].accuracy:.1%}"
    start = "" if (directory / CHECKPOINT_FILE).exists() else ", from its start: there is no checkpoint yet"
    return f"the run in {directory} is not finished ({far}): {resume_hint(directory)}{start}"


def resume_hint(directory: Path) -> str:
    """The command that finishes a run.

    Args:
        directory: of an unfinished run.

    Returns:
        The end of a sentence.
    """
    whole = directory.resolve()
    study = directory.parent.parent if directory.parent.name else whole.parent.parent
    if whole.parent.name == "runs" and (study / "config.json").exists():
        return f"strongreg train --resume {study} finishes it"
    return "the command that began it finishes it, with the same --out"


def read_unfinished(directory: Path) -> tuple[RunRecord, list[EpochMetrics], int]:
    """What the checkpoint of a run tells of it.

    Args:
        directory: of an unfinished run.

    Returns:
        Its record up to the last epoch before the checkpoint, these epochs, and how many there are to be.

    Raises:
        UserError: there is no checkpoint, it is damaged or of an older version, or no epoch was done when it was saved.
    """
    state = read_checkpoint(directory)
    if state is None or state.get("epoch") == 0:
        raise UserError(f"there is nothing to diagnose yet: {describe_unfinished(directory)}")
    try:
        epochs = parse_metrics("".join(state["lines"]))
        record = RunRecord(
            history=_history(state),
            accuracy=np.array([epoch.accuracy for epoch in epochs]),
            train_loss=np.array([math.nan if epoch.train_loss is None else epoch.train_loss for epoch in epochs]),
            lr=max(epoch.lr for epoch in epochs),
            **state["about"]["record"],
        )
        return record, epochs, int(state["about"]["epochs"])
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{directory / CHECKPOINT_FILE} was saved by another version of strongreg and cannot be diagnosed: "
            f"{resume_hint(directory)}"
        ) from error


def _history(state: dict[str, Any]) -> History:
    """The records of the regularizer of the most weights, as a finished run has them."""
    saved = [optimizer["strongreg"] for optimizer in state["optimizers"] if "strongreg" in optimizer]
    sizes = [sum(state["model"][name].numel() for name in regularizer["penalties"]) for regularizer in saved]
    regularizer = saved[sizes.index(max(sizes))]
    history = History(list(regularizer["penalties"]))
    history.load_state_dict(regularizer["history"])
    return history


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
