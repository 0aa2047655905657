"""Summarizes a comparison: one row per method over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strongreg.experiments.engine import RunResult
from strongreg.experiments.recipe import METHODS, Method, Recipe

_FEWEST = 3
_UNGATED = ("dense", "magnitude", "oneshot", "slimming")
HEADER = ("method", "accuracy", "alive", "kept", "times smaller", "open", "seconds")
LOSS_NAME = "loss"
BYTE_HEADER = ("dense bytes", "packed bytes", "times fewer bytes")
_Range = tuple[float, float]


@dataclass(frozen=True)
class MethodSummary:
    """A method over its seeds.

    Args:
        method: its name.
        num_runs: number of seeds.
        num_alive: number of seeds that learned (accuracy above chance, by a twentieth of what there is to learn).
        accuracy_mean: mean accuracy, in [0, 1].
        accuracy_error: half the width of the 95 % confidence interval of the mean; NaN for fewer than three seeds.
        kept_mean: mean share of the penalized weights that are not 0.
        compression_range: smallest and largest compression, in weights; infinite where every weight is 0.
        open_mean: mean share of the steps at which the gate was open.
        seconds_mean: mean training time.
        dense_bytes_range: what the networks take dense; None where a run has no packed file.
        file_bytes_range: smallest and largest packed file; None likewise.
        byte_ratio_range: smallest and largest compression, in bytes; None likewise.
        loss_mean: mean loss of language models, in nats per byte; None for other networks.
        loss_error: half the width of the 95 % confidence interval of the mean; NaN for fewer than three seeds.
    """

    method: Method
    num_runs: int
    num_alive: int
    accuracy_mean: float
    accuracy_error: float
    kept_mean: float
    compression_range: _Range
    open_mean: float
    seconds_mean: float
    dense_bytes_range: _Range | None = None
    file_bytes_range: _Range | None = None
    byte_ratio_range: _Range | None = None
    loss_mean: float | None = None
    loss_error: float = math.nan


def summarize(results: Sequence[RunResult]) -> list[MethodSummary]:
    """Summarize runs by method.

    Args:
        results: any number of finished runs.

    Returns:
        One summary per method that has runs, in the order of ``METHODS``.
    """
    by_method = {method: [r for r in results if r.method == method] for method in METHODS}
    return [_summarize_method(method, runs) for method, runs in by_method.items() if runs]


def _summarize_method(method: Method, runs: list[RunResult]) -> MethodSummary:
    accuracies = [r.accuracy for r in runs]
    losses = [r.loss for r in runs if r.task == "language" and r.loss is not None]
    compressions = [math.inf if r.compression is None else r.compression for r in runs]
    return MethodSummary(
        method=method,
        num_runs=len(runs),
        num_alive=sum(r.alive for r in runs),
        accuracy_mean=statistics.fmean(accuracies),
        accuracy_error=half_width_95(accuracies),
        kept_mean=statistics.fmean(r.num_nonzero / r.num_weights for r in runs),
        compression_range=(min(compressions), max(compressions)),
        open_mean=statistics.fmean(r.open_fraction for r in runs),
        seconds_mean=statistics.fmean(r.train_seconds for r in runs),
        dense_bytes_range=_range([r.dense_bytes for r in runs]),
        file_bytes_range=_range([r.file_bytes for r in runs]),
        byte_ratio_range=_range([r.byte_ratio for r in runs]),
        loss_mean=statistics.fmean(losses) if len(losses) == len(runs) else None,
        loss_error=half_width_95(losses) if len(losses) == len(runs) else math.nan,
    )


def stopped_note(results: Sequence[RunResult], recipe: Recipe) -> str:
    """Says which runs were ended as dead, and so had fewer epochs than the others.

    Args:
        results: finished runs.
        recipe: of all of them.

    Returns:
        One sentence; empty where there is none.
    """
    stopped = [
        f"{r.method} seed {r.seed} after epoch {r.epochs} of {asked}"
        for r in results
        if r.epochs < (asked := recipe.for_method(r.method).training.epochs)
    ]
    return f"Stopped when dead: {', '.join(stopped)}." if stopped else ""


def _range(numbers: Sequence[float | None]) -> _Range | None:
    known = [number for number in numbers if number is not None]
    return (min(known), max(known)) if len(known) == len(numbers) else None


def half_width_95(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean, by Student's t.

    Args:
        values: of any number of runs.

    Returns:
        The half width; NaN for fewer than three runs, which say too little.
    """
    if len(values) < _FEWEST:
        return math.nan
    from scipy import stats  # slow to import

    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def cells(summary: MethodSummary) -> tuple[str, ...]:
    """A summary as the cells of a table row, in the order of ``HEADER``.

    Args:
        summary: one method.

    Returns:
        Texts for people.
    """
    error = "" if math.isnan(summary.accuracy_error) else f" ± {100 * summary.accuracy_error:.1f}"
    return (
        summary.method,
        f"{100 * summary.accuracy_mean:.1f}{error} %",
        f"{summary.num_alive}/{summary.num_runs}",
        f"{summary.kept_mean:.2%}",
        _between(summary.compression_range, _times),
        "-" if summary.method in _UNGATED else f"{summary.open_mean:.0%}",
        f"{summary.seconds_mean:.0f}",
    )


def show_rows(summaries: Sequence[MethodSummary]) -> tuple[list[str], list[list[str]]]:
    """A table of methods; for language models with their loss beside the accuracy.

    Args:
        summaries: the methods, of networks of one kind.

    Returns:
        Its header, and a row for each method.
    """
    header, rows = list(HEADER), [list(cells(summary)) for summary in summaries]
    if any(summary.loss_mean is not None for summary in summaries):
        place = HEADER.index("accuracy") + 1
        header.insert(place, LOSS_NAME)
        for row, summary in zip(rows, summaries, strict=True):
            row.insert(place, show_loss(summary))
    return header, rows


def show_loss(summary: MethodSummary) -> str:
    """The loss of language models.

    Args:
        summary: one method.

    Returns:
        Its mean with half its 95 % interval; a dash where there is none, or one is not finite.
    """
    if summary.loss_mean is None:
        return "-"
    return with_error(summary.loss_mean, summary.loss_error)


def with_error(mean: float, error: float) -> str:
    """A mean as a text.

    Args:
        mean: of some losses.
        error: half the width of its interval; NaN if it is not known.

    Returns:
        Both with three decimals; the mean alone where there is no error.
    """
    return f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def byte_cells(summary: MethodSummary) -> tuple[str, str, str]:
    """What a method's networks take on the disk, in the order of ``BYTE_HEADER``.

    Args:
        summary: one method.

    Returns:
        Texts for people; dashes where a run has no packed file.
    """
    return (
        _between(summary.dense_bytes_range, "{:,.0f}".format),
        _between(summary.file_bytes_range, "{:,.0f}".format),
        _between(summary.byte_ratio_range, _times),
    )


def _between(ends: _Range | None, text: Callable[[float], str]) -> str:
    if ends is None:
        return "-"
    low, high = map(text, ends)
    return low if low == high else f"{low} to {high}"


def _times(compression: float) -> str:
    if math.isinf(compression):
        return "nothing left"
    return f"{compression:.1f}" if compression < 1000 else f"{compression:,.0f}"
