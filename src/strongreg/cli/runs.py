"""The commands that train: compare and train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from strongreg.cli.options import (
    Data,
    DataDir,
    Device,
    Epochs,
    Json,
    Model,
    Out,
    PenaltyName,
    RecipeFile,
    Settings,
    StopWhenDead,
    Strength,
    StrengthScale,
    TargetCompression,
    Threshold,
    methods_of,
    most_workers,
    new_directory,
    recipe_of,
)
from strongreg.cli.output import writing
from strongreg.experiments.compare import Comparison
from strongreg.experiments.console import ProgressBars, say, show_slow_choices, show_table
from strongreg.experiments.engine.distributed import ALONE, World, joined
from strongreg.experiments.errors import StoppedError, UserError, check_known
from strongreg.experiments.pool import interruptible, stop_requests
from strongreg.experiments.recipe import COMPARED, METHODS
from strongreg.experiments.sweep import SWEPT
from strongreg.experiments.table import stopped_note, summarize

_LARGEST_SEED = 2**63 - 1
_WITH_RESUME = ("--resume", "--data-dir", "--json", "--quiet")

EPILOG_COMPARE = """Examples:

strongreg compare

strongreg compare --seeds 5 --out five-seeds

strongreg compare --penalty l2 --seeds 3

strongreg compare --methods dense,magnitude --set pruning.compression=40

strongreg compare --json > results.json"""
EPILOG_TRAIN = """Examples:

strongreg train

strongreg train --method always --strength 0.02

strongreg train --penalty group_l2 --strength 0.05 --seed 3 --out runs/group

strongreg train --set training.epochs=3 --set optimizer.lr=0.01

strongreg train --resume runs/group"""


def compare(
    recipe: RecipeFile = None,
    data: Data = None,
    data_dir: DataDir = None,
    model: Model = None,
    penalty: PenaltyName = None,
    strength: Strength = None,
    strength_scale: StrengthScale = None,
    target_compression: TargetCompression = None,
    gate_threshold: Threshold = None,
    epochs: Epochs = None,
    settings: Settings = None,
    methods: Annotated[str, typer.Option(help=f"Methods, separated by commas, of {', '.join(METHODS)}.")] = ",".join(
        COMPARED
    ),
    seeds: Annotated[int, typer.Option(help="Number of seeds of each method, 0 to N-1.")] = 1,
    device: Device = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time. Default: the number of cores on the CPU, 1 elsewhere.")
    ] = None,
    stop_when_dead: StopWhenDead = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train a network several ways at equal budget: dense, penalty always on, delayed, gradient-coherent."""
    if seeds < 1:
        raise UserError(f"seeds={seeds}: must be >= 1")
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: must be >= 1")
    built = recipe_of(
        recipe,
        settings,
        data=data,
        model=model,
        penalty=penalty,
        strength=strength,
        strength_scale=strength_scale,
        target_compression=target_compression,
        gate_threshold=gate_threshold,
        epochs=epochs,
        device=device,
        stop_when_dead=stop_when_dead,
    )
    chosen = methods_of(methods, METHODS)
    comparison = Comparison(built, chosen, range(seeds), out or new_directory("compare"), data_dir)
    _run(comparison, _pooled(comparison, workers), as_json=as_json)


def train(
    context: typer.Context,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "coherent",
    recipe: RecipeFile = None,
    data: Data = None,
    data_dir: DataDir = None,
    model: Model = None,
    penalty: PenaltyName = None,
    strength: Strength = None,
    strength_scale: StrengthScale = None,
    target_compression: TargetCompression = None,
    gate_threshold: Threshold = None,
    epochs: Epochs = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the batch order, >= 0.")] = 0,
    device: Device = None,
    stop_when_dead: StopWhenDead = None,
    out: Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the unfinished runs of this directory, by its recipe: only "
            "--data-dir, --json and --quiet go with it, other options are an error."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network once; the numbers are those of the same method and seed in compare.

    Under torchrun (torchrun --nproc-per-node 2 -m strongreg train ...) its processes train it together: each takes a
    share of every batch, and on cuda a GPU of its own.
    """

    def opened() -> Comparison:
        if resume is not None:
            _check_alone(context, resume)
            return Comparison.open(resume, data_dir)
        check_known("method", method, METHODS)
        _check_target(method, target_compression)
        if not 0 <= seed <= _LARGEST_SEED:
            raise UserError(f"seed={seed}: must be between 0 and {_LARGEST_SEED}")
        built = recipe_of(
            recipe,
            settings,
            data=data,
            model=model,
            penalty=penalty,
            strength=strength,
            strength_scale=strength_scale,
            target_compression=target_compression,
            gate_threshold=gate_threshold,
            epochs=epochs,
            device=device,
            stop_when_dead=stop_when_dead,
        )
        chosen = [known for known in METHODS if known == method]
        return Comparison(built, chosen, [seed], out or new_directory("train"), data_dir)

    with joined() as world:
        comparison = world.on_main(opened)
        again = None if resume is None else f"strongreg train --resume {resume}"
        if world.size == 1:
            _run(comparison, _pooled(comparison, 1), as_json=as_json, again=again)
            return
        again = None if resume is None else "the same command"

        def together(bars: ProgressBars) -> None:
            with stop_requests() as should_stop:
                comparison.run_together(world, bars, should_stop)

        _run(comparison, together, as_json=as_json, again=again, world=world)


def _check_alone(context: typer.Context, directory: Path) -> None:
    """Check that no option would be dropped beside --resume."""
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) is not None and source.name != "DEFAULT"
    ]
    dropped = [option for option in given if option not in _WITH_RESUME]
    if dropped:
        raise UserError(
            f"--resume {directory} goes on with the recipe of {directory}, without {', '.join(dropped)}: leave "
            f"{'it' if len(dropped) == 1 else 'them'} out, or train anew without --resume"
        )


def _check_target(method: str, target: float | None) -> None:
    """Check that --target-compression would not be dropped."""
    if target is None or method in SWEPT:
        return
    remedy = "leave it out" if method == "dense" else f"write --set pruning.compression={target:g}"
    raise UserError(
        f"--target-compression {target:g}: {method} has no penalty whose strength could adapt; {remedy}, or choose one "
        f"of {', '.join(SWEPT)}"
    )


def _pooled(comparison: Comparison, workers: int | None) -> Callable[[ProgressBars], None]:
    """Trains in processes of our own."""
    num_missing = sum(job not in comparison.results for job in comparison.jobs)
    num_workers = min(workers or most_workers(comparison.recipe), num_missing)

    def train_all(bars: ProgressBars) -> None:
        with interruptible():
            comparison.run(max(1, num_workers), 1, bars)

    return train_all


def _run(
    comparison: Comparison,
    train_all: Callable[[ProgressBars], None],
    *,
    as_json: bool,
    again: str | None = None,
    world: World = ALONE,
) -> None:
    """Train and show what came of it; ``again`` is the command that goes on after an interrupt."""
    messages, out = Console(stderr=True, quiet=not world.is_main), comparison.directory
    num_kept = len(comparison.results)
    num_missing = sum(job not in comparison.results for job in comparison.jobs)
    if num_kept or comparison.num_started:
        found = f"{num_kept} finished {'run' if num_kept == 1 else 'runs'} found in {out}, {num_missing} to train"
        if comparison.num_started:
            found += f", {comparison.num_started} of them from a checkpoint"
        say(messages, found)
    missing = [job.method for job in comparison.jobs if job not in comparison.results]
    show_slow_choices(messages, comparison.recipe, missing)
    try:
        with ProgressBars(messages, num_missing, comparison.recipe.training.epochs) as bars:
            train_all(bars)
    except KeyboardInterrupt as interrupt:
        world.on_main(lambda: _conclude(comparison, messages, as_json=False))
        kept = sum(job in comparison.results for job in comparison.jobs)
        raise StoppedError(
            f"interrupted: {kept} of {len(comparison.jobs)} runs are finished and kept in {out}; "
            f"{again or f'the same command with --out {out}'} goes on",
            interrupt,
        ) from None
    world.on_main(lambda: _conclude(comparison, Console(), as_json=as_json))
    say(messages, f"wrote {out / 'results.json'} and {out / 'report.html'}")


def _conclude(comparison: Comparison, console: Console, *, as_json: bool) -> None:
    """Write the report and show the table, or results.json."""
    results = comparison.own_results
    if not results:
        return
    from strongreg.experiments.report import write_report  # matplotlib is slow to import

    file = comparison.directory / "report.html"
    with writing(file):
        write_report(comparison, file)
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(result) for result in results]}, indent=2))
        return
    recipe = comparison.recipe
    penalty = f"{recipe.penalty.name} of strength {recipe.penalty.strength:g}"
    title = f"{recipe.model.name} on {recipe.data.name}, {penalty}, {recipe.training.epochs} epochs"
    show_table(console, title, summarize(results), stopped_note(results, recipe))
