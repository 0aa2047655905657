"""A finished run's files: its outcome, its epochs, and every recorded step per layer."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from strongreg.compression import PackedFileError, inspect_packed
from strongreg.experiments.engine.checkpoint import FILE_NAME as CHECKPOINT
from strongreg.experiments.engine.measurement import EpochMetrics, RunResult
from strongreg.experiments.errors import UserError
from strongreg.experiments.files import read_json
from strongreg.files import write_bytes
from strongreg.history import History
from strongreg.regularizer import Regularizer

RECIPE_FILE = "recipe.toml"
METRICS_FILE = "metrics.jsonl"
HISTORY_FILE = "history.safetensors"
WEIGHTS_FILE = "weights.safetensors"
PACKED_FILE = "model.packed"
RESULT_FILE = "result.json"
_OF_A_RUN = (RECIPE_FILE, METRICS_FILE, HISTORY_FILE, WEIGHTS_FILE, PACKED_FILE, RESULT_FILE, CHECKPOINT)
_OF_MANY_RUNS = (RECIPE_FILE, "config.json", "results.json", "recipe.json", "tolerance.json", "sweep.json")


def is_of_a_run(file: Path) -> bool:
    """Whether a run or a study of runs reads this file, or would: nothing else may be written there.

    Args:
        file: may not exist.

    Returns:
        Whether it has such a name and lies in such a directory.
    """
    folder = file.parent
    if (folder / "runs").is_dir():
        return file.name in _OF_MANY_RUNS
    return file.name in _OF_A_RUN and ((folder / METRICS_FILE).exists() or (folder / RESULT_FILE).exists())


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
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
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
    known = {field.name for field in fields(RunResult)}
    needed = {field.name for field in fields(RunResult) if field.default is MISSING}  # the others are younger
    try:
        result = TypeAdapter(RunResult).validate_python(content)
    except ValidationError:
        result = None
    if result is None or not needed <= set(content) <= known or not _is_possible(result):
        raise UserError(f"{file} is damaged, or of another version of strongreg: delete its folder to train again")
    return result


def _is_possible(result: RunResult) -> bool:
    counts = (
        0 <= result.num_nonzero <= result.num_weights
        and 0 <= result.num_nonzero_parameters <= result.num_parameters
        and min(result.num_weights, result.epochs, result.steps_per_epoch) >= 1
        and (result.refit_start is None or result.refit_start >= 0)
        and (result.file_bytes is None) == (result.dense_bytes is None)
        and all(num_bytes is None or num_bytes > 0 for num_bytes in (result.file_bytes, result.dense_bytes))
    )
    shares = (result.accuracy, result.validation_accuracy, result.open_fraction, result.chance)
    sizes = (result.strength, result.train_seconds, result.loss, result.validation_loss)
    return counts and result.chance > 0 and _are_shares(*shares) and _are_sizes(*sizes, result.compression)


def _is_possible_epoch(epoch: EpochMetrics) -> bool:
    sizes = (epoch.lr, epoch.compression, epoch.gradient_norm, epoch.penalty_norm, epoch.weight_norm, epoch.loss)
    numbers = (epoch.train_loss, epoch.coherence)
    finite = all(number is None or math.isfinite(number) for number in numbers)
    return epoch.num_nonzero >= 0 and finite and _are_shares(epoch.accuracy, epoch.open_fraction) and _are_sizes(*sizes)


def _are_shares(*numbers: float | None) -> bool:
    return all(number is None or 0 <= number <= 1 for number in numbers)


def _are_sizes(*numbers: float | None) -> bool:
    return all(number is None or 0 <= number < math.inf for number in numbers)


def check_packed(file: Path, file_bytes: int) -> None:
    """Check that a finished run's packed file is the one that the run wrote.

    Args:
        file: model.packed of its directory.
        file_bytes: what the run says of its size.

    Raises:
        UserError: the file is missing or damaged, or of another size.
    """
    try:
        found = inspect_packed(file).file_bytes
    except (OSError, PackedFileError) as error:
        raise UserError(f"{file} is missing or damaged: delete its folder to train again") from error
    if found != file_bytes:
        raise UserError(
            f"{file} is of {found:,} bytes, its run wrote {file_bytes:,}: give it another name if it is yours, "
            "and delete its folder to train again"
        )


def load_metrics(file: Path, num_epochs: int) -> list[EpochMetrics]:
    """Read the epochs of a finished run.

    Args:
        file: metrics.jsonl of its directory.
        num_epochs: how many it has done.

    Returns:
        One entry per epoch.

    Raises:
        UserError: the file is missing, damaged, or does not hold one line per epoch.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    metrics = parse_metrics(text)
    if not len(metrics) == len(text.splitlines()) == num_epochs:
        raise UserError(f"{file} is missing or damaged: delete its folder to train again")
    return metrics


def parse_metrics(text: str) -> list[EpochMetrics]:
    """Read the epochs of a run up to the first line that is none, as where a kill has cut it off.

    Args:
        text: of metrics.jsonl.

    Returns:
        One entry per epoch.
    """
    known, one = {field.name for field in fields(EpochMetrics)}, TypeAdapter(EpochMetrics)
    needed = {field.name for field in fields(EpochMetrics) if field.default is MISSING}  # the others are younger
    metrics: list[EpochMetrics] = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
            epoch = one.validate_python(content) if needed <= set(content) <= known else None
        except (ValueError, TypeError):
            epoch = None
        if epoch is None or epoch.epoch != len(metrics) + 1 or not _is_possible_epoch(epoch):
            break
        metrics.append(epoch)
    return metrics
