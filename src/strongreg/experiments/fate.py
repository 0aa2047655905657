"""Reads the files of finished runs and asks :mod:`strongreg.diagnosis` what happened in them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from strongreg.diagnosis import Diagnosis, RunRecord, diagnose
from strongreg.experiments.engine import load_history
from strongreg.experiments.engine.record import FILE_NAME as HISTORY_FILE
from strongreg.experiments.engine.record import load_result
from strongreg.experiments.errors import UserError


def find_runs(directory: Path) -> list[Path]:
    """The directories of finished runs in or below a directory.

    Args:
        directory: of a run, a comparison, or a tolerance study.

    Returns:
        Directories that hold a result.json, in the order of their names.

    Raises:
        UserError: there is none.
    """
    if (directory / "result.json").exists():
        return [directory]
    found = sorted(file.parent for file in directory.glob("**/result.json"))
    if not found:
        raise UserError(f"{directory} holds no finished run: there is no result.json in or below it")
    return found


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The epochs of a finished run.

    Args:
        directory: of the run.

    Returns:
        One dictionary per epoch.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = directory / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line["accuracy"], line["train_loss"], line["lr"], line["epoch"], line["num_nonzero"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is missing or damaged: train that run again") from error
    return lines


def diagnose_run(directory: Path) -> Diagnosis:
    """Say what happened in a finished run.

    Args:
        directory: of the run.

    Returns:
        The diagnosis.

    Raises:
        UserError: a file is missing or damaged.
    """
    result, lines = load_result(directory / "result.json"), read_metrics(directory)
    accuracy = np.array([line["accuracy"] for line in lines])
    losses = [math.nan if line["train_loss"] is None else line["train_loss"] for line in lines]
    peak = max((line["lr"] for line in lines), default=math.nan)
    record = RunRecord(
        history=load_history(directory / HISTORY_FILE),
        num_classes=round(1 / result.chance),
        accuracy=accuracy,
        train_loss=np.array(losses),
        steps_per_epoch=result.steps_per_epoch,
        strength=result.strength,
        refit_start=math.inf if result.refit_start is None else result.refit_start,
        lr=peak,
    )
    try:
        return diagnose(record)
    except ValueError as error:
        raise UserError(f"{directory} ({result.method}): {error}") from error
