"""Reads the files of finished runs and asks :mod:`strongreg.diagnosis` what happened in them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from strongreg.diagnosis import Diagnosis, RunRecord, diagnose
from strongreg.experiments.engine import load_history, load_metrics, load_result
from strongreg.experiments.engine.record import HISTORY_FILE, METRICS_FILE, RECIPE_FILE, RESULT_FILE
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import build_recipe, read_recipe


def find_runs(directory: Path) -> list[Path]:
    """The directories of finished runs in or below a directory.

    Args:
        directory: of a run, a comparison, or a tolerance study.

    Returns:
        Directories that hold a result.json, in the order of their names.

    Raises:
        UserError: there is none.
    """
    if (directory / RESULT_FILE).exists():
        return [directory]
    found = sorted(file.parent for file in directory.glob(f"**/{RESULT_FILE}"))
    if not found:
        raise UserError(f"{directory} holds no finished run: there is no {RESULT_FILE} in or below it")
    return found


def diagnose_run(directory: Path) -> Diagnosis:
    """Say what happened in a finished run.

    Args:
        directory: of the run.

    Returns:
        The diagnosis.

    Raises:
        UserError: a file is missing or damaged.
    """
    result = load_result(directory / RESULT_FILE)
    epochs = load_metrics(directory / METRICS_FILE, result.epochs)
    record = RunRecord(
        history=load_history(directory / HISTORY_FILE),
        chance=result.chance,
        accuracy=np.array([epoch.accuracy for epoch in epochs]),
        train_loss=np.array([math.nan if epoch.train_loss is None else epoch.train_loss for epoch in epochs]),
        steps_per_epoch=result.steps_per_epoch,
        strength=result.strength,
        refit_start=math.inf if result.refit_start is None else result.refit_start,
        open_fraction=result.open_fraction,
        lr=max((epoch.lr for epoch in epochs), default=math.nan),
        weight_decay=_weight_decay(directory),
    )
    try:
        return diagnose(record)
    except ValueError as error:
        raise UserError(f"{directory} ({result.method}): {error}") from error


def _weight_decay(directory: Path) -> float:
    """That of the recipe beside the run; NaN where there is none to read."""
    try:
        return build_recipe({}, read_recipe(directory / RECIPE_FILE)).optimizer.weight_decay
    except UserError:
        return math.nan
