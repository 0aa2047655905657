"""Reads the files of runs and asks :mod:`strongreg.diagnosis` what happened in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from strongreg.diagnosis import Diagnosis, RunRecord, diagnose
from strongreg.experiments.data.text import NUM_BYTES
from strongreg.experiments.engine import EpochMetrics, load_history, load_metrics, load_result
from strongreg.experiments.engine.checkpoint import FILE_NAME as CHECKPOINT_FILE
from strongreg.experiments.engine.record import HISTORY_FILE, METRICS_FILE, RECIPE_FILE, RESULT_FILE
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import Recipe, build_recipe, read_recipe
from strongreg.experiments.unfinished import (
    check_directory,
    describe_unfinished,
    find_unfinished,
    read_unfinished,
    resume_hint,
)


def find_runs(directory: Path) -> list[Path]:
    """The directories of finished runs in or below a directory.

    Args:
        directory: of a run, a comparison, or a tolerance study.

    Returns:
        Directories that hold a result.json, in the order of their names.

    Raises:
        UserError: there is none, and why.
    """
    check_directory(directory)
    if (directory / RESULT_FILE).exists():
        return [directory]
    found = sorted(file.parent for file in directory.glob(f"**/{RESULT_FILE}"))
    if not found:
        begun = find_unfinished(directory)
        why = describe_unfinished(begun[0]) if begun else f"there is no {RESULT_FILE} in or below it"
        raise UserError(f"{directory} holds no finished run: {why}")
    return found


def find_diagnosable(directory: Path) -> tuple[list[Path], list[str]]:
    """The directories of runs that can be diagnosed, the finished and those that have a checkpoint.

    Args:
        directory: of a run, a comparison, or a tolerance study.

    Returns:
        They, in the order of their names, and a sentence on each that has been begun and cannot.

    Raises:
        UserError: there is none.
    """
    check_directory(directory)
    begun = [folder for folder in find_unfinished(directory) if not (directory / RESULT_FILE).exists()]
    saved = [folder for folder in begun if (folder / CHECKPOINT_FILE).exists()]
    if not saved:
        return find_runs(directory), [describe_unfinished(folder) for folder in begun]
    finished = [file.parent for file in directory.glob(f"**/{RESULT_FILE}")]
    return sorted(finished + saved), [describe_unfinished(folder) for folder in begun if folder not in saved]


@dataclass(frozen=True)
class Fate:
    """A run with what became of it.

    Args:
        directory: of the run.
        record: what is known of it, up to the last checkpoint if it is not finished.
        epochs: what each showed.
        diagnosis: the verdict.
        recipe: that beside it; None where there is none to read.
    """

    directory: Path
    record: RunRecord
    epochs: list[EpochMetrics]
    diagnosis: Diagnosis
    recipe: Recipe | None


def diagnose_run(directory: Path) -> Diagnosis:
    """Say what happened in a run, up to its last checkpoint if it is not finished.

    Args:
        directory: of the run.

    Returns:
        The diagnosis.

    Raises:
        UserError: a file is missing or damaged.
    """
    return read_fate(directory).diagnosis


def read_fate(directory: Path) -> Fate:
    """Read a run and say what happened in it, up to its last checkpoint if it is not finished.

    Args:
        directory: of the run.

    Returns:
        The run and its diagnosis.

    Raises:
        UserError: a file is missing or damaged.
    """
    if (directory / CHECKPOINT_FILE).exists() and not (directory / RESULT_FILE).exists():
        return _read_unfinished(directory)
    result = load_result(directory / RESULT_FILE)
    epochs = load_metrics(directory / METRICS_FILE, result.epochs)
    recipe = _recipe(directory)
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
        weight_decay=math.nan if recipe is None else recipe.optimizer.weight_decay,
        kept=result.num_nonzero / result.num_weights if _makes_zeros(recipe) else math.nan,
        num_classes=result.num_classes or (NUM_BYTES if result.task == "language" else 1),
    )
    return Fate(directory, record, epochs, _diagnose(record, f"{directory} ({result.method})"), recipe)


def _read_unfinished(directory: Path) -> Fate:
    record, epochs, num_planned = read_unfinished(directory)
    diagnosis = _diagnose(record, str(directory))
    told = f"the run is not finished: its last checkpoint is of epoch {len(record.accuracy)} of {num_planned}"
    diagnosis = replace(
        diagnosis,
        evidence=(told, *diagnosis.evidence),
        advice=(*diagnosis.advice, resume_hint(directory)),
    )
    return Fate(directory, record, epochs, diagnosis, _recipe(directory))


def _diagnose(record: RunRecord, name: str) -> Diagnosis:
    try:
        return diagnose(record)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def _recipe(directory: Path) -> Recipe | None:
    """That beside the run; None where there is none to read."""
    try:
        return build_recipe({}, read_recipe(directory / RECIPE_FILE))
    except UserError:
        return None


def _makes_zeros(recipe: Recipe | None) -> bool:
    """Whether the penalty is one that sets weights to exactly 0."""
    return recipe is not None and recipe.penalty.name != "l2" and recipe.penalty.mode == "proximal"
