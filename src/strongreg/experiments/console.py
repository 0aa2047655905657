"""What the commands show on the terminal: progress bars while runs work, then one table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from strongreg.experiments.compare import Job
from strongreg.experiments.engine import EpochMetrics, RunResult
from strongreg.experiments.engine.record import PACKED_FILE
from strongreg.experiments.recipe import Method, Recipe
from strongreg.experiments.runnable import slow_choices
from strongreg.experiments.sweep_table import TRIAL_HEADER, TRIAL_NOTE, trial_cells
from strongreg.experiments.table import MethodSummary, byte_cells, show_rows
from strongreg.experiments.tolerance import Probe, Tolerance
from strongreg.sweeps import SearchResult, SearchTrial


class ProgressBars:
    """A bar for each run that is under way and one for all; plain lines where the output is no terminal.

    Args:
        console: where to show them.
        num_jobs: number of runs to train.
        num_epochs: epochs of each run.
    """

    def __init__(self, console: Console, num_jobs: int, num_epochs: int) -> None:
        self._console, self._num_jobs, self._num_epochs = console, num_jobs, num_epochs
        self._num_done = 0
        self._bars: dict[Job, TaskID] = {}
        self._epochs: dict[Job, int] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._total = self._progress.add_task("all epochs", total=num_jobs * num_epochs, note="")

    def __enter__(self) -> ProgressBars:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._progress.stop()

    def on_stop(self) -> None:
        """Say that the interrupt was heard."""
        self._console.print("interrupting: the runs under way save their checkpoints", highlight=False, markup=False)

    def on_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        """Move a run's bar.

        Args:
            job: the run.
            metrics: what its epoch showed.
        """
        if job not in self._bars:
            name = f"{job.method}, seed {job.seed}"
            self._bars[job] = self._progress.add_task(name, total=self._num_epochs, note="")
        smaller = "nothing left" if metrics.compression is None else f"{metrics.compression:.1f}x"
        note = f"{metrics.accuracy:.1%} {smaller}"
        if metrics.open_fraction is not None:
            note += f" open {metrics.open_fraction:.0%}"
        self._progress.update(self._bars[job], completed=metrics.epoch, note=note)
        self._progress.update(self._total, advance=metrics.epoch - self._epochs.get(job, 0))
        self._epochs[job] = metrics.epoch

    def on_result(self, job: Job, result: RunResult) -> None:
        """Replace a run's bar by its outcome.

        Args:
            job: the run.
            result: its outcome.
        """
        self._num_done += 1
        # the run's last epochs may not have been heard of
        self._progress.update(self._total, advance=self._num_epochs - self._epochs.pop(job, 0))
        if job in self._bars:
            self._progress.remove_task(self._bars.pop(job))
        smaller = "nothing left" if result.compression is None else f"{result.compression:.1f}x smaller"
        loss = f"loss {result.loss:.3f}, " if result.task == "language" and result.loss is not None else ""
        self._console.print(
            f"[{self._num_done}/{self._num_jobs}] {job.method}, seed {job.seed}: accuracy "
            f"{result.accuracy:.1%}, {loss}{smaller}, "
            f"{result.train_seconds:.0f} s",
            highlight=False,
            markup=False,
        )


def say(console: Console, line: str) -> None:
    """Print a line as it is, however long.

    Args:
        console: where to print.
        line: its text.
    """
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_slow_choices(console: Console, recipe: Recipe, methods: Iterable[Method]) -> None:
    """Say before runs begin what makes them slow.

    Args:
        console: where to print.
        recipe: of the runs.
        methods: those that are trained.
    """
    for line in slow_choices(recipe, methods):
        say(console, line)


def show_table(console: Console, title: str, summaries: list[MethodSummary], note: str = "") -> None:
    """Print one row per method, which compares weights, and a line per method, which compares bytes.

    Args:
        console: where to print.
        title: above the table.
        summaries: the methods.
        note: what else is to be known of the runs, below the table; empty for nothing.
    """
    header, rows = show_rows(summaries)
    table = _table(title, header)
    for summary, row in zip(summaries, rows, strict=True):
        table.add_row(*row, style="red" if summary.num_alive == 0 else None)
    console.print(table)
    lines = [note] if note else []
    if any(summary.loss_mean is not None for summary in summaries):
        lines.append("Loss: cross-entropy on the test text, in nats per byte; accuracy: of the byte that follows.")
    lines.append("Times smaller: penalized weights / those that are not 0.")
    with_files = [summary for summary in summaries if summary.byte_ratio_range is not None]
    if with_files:
        lines.append(f"In bytes, runs/METHOD-seedN/{PACKED_FILE} against all tensors dense:")
    for summary in with_files:
        dense, packed, times = byte_cells(summary)
        lines.append(f"{summary.method}: {packed} of {dense} bytes, {times} times fewer")
    console.print("\n".join(lines), highlight=False, markup=False)


def _table(title: str, header: Sequence[str], *, margin: bool = True) -> Table:
    """An empty table, the first column for words and the others for numbers."""
    shape = {"padding": (0, 1), "collapse_padding": True, "show_edge": margin, "pad_edge": margin}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, **shape)  # type: ignore[arg-type]
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    return table


class ProbeLines:
    """Says of each strength that was tried what came of it.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_probe(self, probe: Probe) -> None:
        """Print a line.

        Args:
            probe: what was tried.
        """
        outcome = "endured" if probe.endured else "hardly acted" if probe.silent else "died"
        accuracies = ", ".join(f"{x:.1%}" for x in probe.accuracies)
        opened = sum(probe.open_fractions) / len(probe.open_fractions)
        self._console.print(
            f"{probe.method} at {probe.strength:.4g}: {outcome} (accuracy {accuracies}; acted at {opened:.0%})",
            highlight=False,
            markup=False,
        )


def _short(times: float) -> str:
    """At most 7 characters."""
    if times < 1000:
        return f"{times:.1f}"
    return f"{times:,.0f}" if times < 1e5 else f"{times:.0e}"


def show_tolerances(console: Console, recipe: Recipe, levels: list[Tolerance]) -> None:
    """Print one row per method.

    Args:
        console: where to print.
        recipe: of the runs.
        levels: the tolerance levels.
    """
    title = f"{recipe.model.name} on {recipe.data.name}, {recipe.penalty.name}, {recipe.training.epochs} epochs"
    header = ("method", "endures", "fails at", "why", "accuracy", "smaller", "acted", "ratio")
    table = _table(title, header, margin=False)  # all of it fits into 80 columns
    always = next((level.failed for level in levels if level.method == "always"), math.nan)
    for level in levels:
        ratio = level.endured / always
        times = _short(ratio) if level.method != "always" and math.isfinite(ratio) else "-"
        at_level = (f"{level.accuracy:.1%}", _short(level.compression), f"{level.open_fraction:.0%}")
        table.add_row(
            level.method,
            f"{level.endured:.4g}" if level.endured else "none",
            "-" if math.isinf(level.failed) else f"{level.failed:.4g}",
            level.reason or "-",
            *(at_level if level.endured else ("-", "-", "-")),
            times,
        )
    console.print(table)
    console.print(
        "\n"
        "Accuracy, times smaller and share of steps at which the penalty acted: at the strength endured.\n"
        "Ratio: strength endured / strength at which always-on failed.",
        highlight=False,
        markup=False,
    )


class TrialLines:
    """Says of each trial of a sweep what came of it.

    Args:
        console: where to print.
        num_trials: of the whole sweep.
    """

    def __init__(self, console: Console, num_trials: int) -> None:
        self._console, self._num_trials = console, num_trials

    def on_trial(self, trial: SearchTrial, num_finished: int) -> None:
        """Print a line.

        Args:
            trial: what came of it.
            num_finished: how many of the sweep are finished.
        """
        outcome = "died" if trial.is_dead else f"accuracy {trial.accuracy:.1%}, {_short(trial.compression)}x smaller"
        say(
            self._console,
            f"[{num_finished}/{self._num_trials}] trial {trial.number}, strength {trial.strength:.4g}: {outcome}",
        )

    def on_death(self) -> None:
        """Say that a process died."""
        say(self._console, "a training process died: its run goes on from its last checkpoint in a new one")

    def on_wait(self, hosts: Sequence[str]) -> None:
        """Say why nothing happens.

        Args:
            hosts: machines that train what is left.
        """
        say(
            self._console,
            f"the trials that are left are being trained by other commands on {', '.join(hosts)}: waiting",
        )

    def on_stop(self) -> None:
        """Say that the interrupt was heard."""
        say(self._console, "interrupting: the runs under way save their checkpoints")


def show_trials(console: Console, title: str, found: SearchResult, chosen: SearchTrial | None) -> None:
    """Print one row per trial of a sweep.

    Args:
        console: where to print.
        title: above the table.
        found: the finished trials.
        chosen: the one that was chosen; None if none lives.
    """
    table = _table(title, TRIAL_HEADER, margin=False)
    for trial in found.trials:
        table.add_row(*trial_cells(trial, found, chosen), style="red" if trial.is_dead else None)
    console.print(table)
    console.print(f"\n{TRIAL_NOTE}", highlight=False, markup=False)
