"""The command ``sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from strongreg.cli.options import (
    Data,
    DataDir,
    Device,
    Epochs,
    Model,
    Out,
    PenaltyName,
    Settings,
    Strength,
    StrengthScale,
    Threshold,
    most_workers,
    new_directory,
    recipe_of,
    refuse_target,
)
from strongreg.cli.output import writing
from strongreg.experiments.console import TrialLines, say, show_slow_choices, show_trials
from strongreg.experiments.errors import StoppedError, UserError, check_known
from strongreg.experiments.pool import interruptible
from strongreg.experiments.sweep import STOP_WHEN_DEAD, STUDY_NAME, SWEPT, Sweep
from strongreg.sweeps import SearchResult, SearchTrial

EPILOG_SWEEP = """Examples:

strongreg sweep

strongreg sweep --trials 32 --workers 4 --out strengths

strongreg sweep --method always --lowest 0.001 --highest 0.01 --seeds 3

strongreg sweep --penalty mcp --storage sqlite:///sweeps.db --study mcp"""


def sweep(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="TOML file to begin with; the options below and --set win over it."),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(help="Finished trials that the study is to have, those of other commands and earlier ones too."),
    ] = 16,
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time. Default: the number of cores on the CPU, 1 elsewhere.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database of the study: sqlite:///FILE, or for many machines postgresql://USER@HOST/DATABASE (the "
            "password in ~/.pgpass or PGPASSWORD). Default: sweep.db in the directory of --out.",
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in the storage.")] = STUDY_NAME,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(SWEPT)}.")] = "coherent",
    lowest: Annotated[
        float | None, typer.Option(help="Smallest strength, > 0. Default: a tenth of the recipe's.")
    ] = None,
    highest: Annotated[float | None, typer.Option(help="Largest strength. Default: ten times the recipe's.")] = None,
    max_loss: Annotated[
        float, typer.Option(help="Validation accuracy that the choice may give up against the best trial, in [0, 1].")
    ] = 0.01,
    data: Data = None,
    data_dir: DataDir = None,
    model: Model = None,
    penalty: PenaltyName = None,
    strength: Strength = None,
    strength_scale: StrengthScale = None,
    gate_threshold: Threshold = None,
    epochs: Epochs = None,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each trial, 0 to N-1; dead is a trial of which one is.")] = 1,
    search_seed: Annotated[int, typer.Option(help="Seed of the sequence of strengths, >= 0.")] = 0,
    device: Device = None,
    stop_when_dead: Annotated[
        int | None,
        typer.Option(help=f"End a run that has been at chance for this many epochs. Default: {STOP_WHEN_DEAD}."),
    ] = None,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the table.")] = False,
) -> None:
    """Try many strengths of one method, and show which networks no other beats in accuracy and size.

    The same command with the same --out goes on where it was stopped or killed. On other machines, or beside it, the
    same command with the same --storage shares the trials.
    """
    for name, number in (("trials", trials), ("workers", workers), ("seeds", seeds)):
        if number is not None and number < 1:
            raise UserError(f"{name}={number}: must be >= 1")
    if not 0 <= max_loss <= 1:
        raise UserError(f"max_loss={max_loss}: must be between 0 and 1, such as 0.01")
    if search_seed < 0:
        raise UserError(f"search_seed={search_seed}: must be >= 0")
    check_known("method", method, SWEPT)
    built = recipe_of(
        recipe,
        settings,
        data=data,
        model=model,
        penalty=penalty,
        strength=strength,
        strength_scale=strength_scale,
        gate_threshold=gate_threshold,
        epochs=epochs,
        device=device,
        stop_when_dead=stop_when_dead,
    )
    refuse_target(built)
    opened = Sweep(
        built,
        next(known for known in SWEPT if known == method),
        range(seeds),
        trials,
        out or new_directory("sweep"),
        storage=storage,
        study_name=study,
        lowest=lowest,
        highest=highest,
        search_seed=search_seed,
        data_dir=data_dir,
    )
    _run(opened, workers, max_loss, as_json=as_json)


def _run(sweep: Sweep, workers: int | None, max_loss: float, *, as_json: bool) -> None:
    """Train and conclude; whenever it is stopped, the study says what is finished."""
    try:
        _train_and_conclude(sweep, workers, max_loss, as_json=as_json)
    except KeyboardInterrupt as interrupt:
        raise StoppedError(
            f"interrupted: {sweep.num_finished} of {sweep.num_trials} trials are finished and kept in {sweep.storage}; "
            f"the same command with --out {sweep.directory} goes on",
            interrupt,
        ) from None


def _train_and_conclude(sweep: Sweep, workers: int | None, max_loss: float, *, as_json: bool) -> None:
    messages, directory = Console(stderr=True), sweep.directory
    if kept := sweep.num_finished:
        say(messages, f"{kept} finished {'trial' if kept == 1 else 'trials'} found in {sweep.storage}")
    if there := sweep.num_runs_taken_over:
        say(
            messages,
            f"{there} {'run' if there == 1 else 'runs'} of this recipe found in {directory / 'runs'}: what is of a "
            "strength that is tried is taken over, the rest is kept",
        )
    show_slow_choices(messages, sweep.recipe, [sweep.method])
    num_missing = (sweep.num_trials - kept) * len(sweep.seeds)
    num_workers = workers or max(1, min(most_workers(sweep.recipe), num_missing))
    try:
        with interruptible():
            sweep.run(num_workers, TrialLines(messages, sweep.num_trials))
    except KeyboardInterrupt:
        found = sweep.found
        if found.trials:
            _conclude(sweep, found, max_loss, messages)
        raise
    _conclude(sweep, sweep.found, max_loss, None if as_json else Console())
    if as_json:
        typer.echo((directory / "sweep.json").read_text(encoding="utf-8"), nl=False)
    say(messages, f"wrote {directory / 'sweep.json'} and {directory / 'report.html'}")


def _conclude(sweep: Sweep, found: SearchResult, max_loss: float, console: Console | None) -> None:
    """Write sweep.json and the report, and show the table."""
    from strongreg.experiments.sweep_report import write_sweep_report  # matplotlib is slow to import

    chosen = found.best(max_loss=max_loss) if found.front else None
    sweep.write(found, chosen)
    file = sweep.directory / "report.html"
    with writing(file):
        write_sweep_report(sweep, found, chosen, file)
    if console is None:
        return
    recipe = sweep.recipe
    title = f"{recipe.model.name} on {recipe.data.name}, {recipe.penalty.name}, {recipe.training.epochs} epochs"
    show_trials(console, title, found, chosen)
    say(console, _choice(chosen, max_loss))


def _choice(chosen: SearchTrial | None, max_loss: float) -> str:
    if chosen is None:
        return "Every trial died: sweep smaller strengths, by --lowest and --highest."
    return f"Chosen, the smallest at most {100 * max_loss:g} % below the best: --strength {chosen.strength:.6g}"
