"""The commands that explain: tolerance, diagnose and report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

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
    RecipeFile,
    Settings,
    Strength,
    StrengthScale,
    Threshold,
    methods_of,
    most_workers,
    new_directory,
    recipe_of,
    refuse_target,
)
from strongreg.cli.output import check_target, tell, writing
from strongreg.experiments.console import ProbeLines, say, show_slow_choices, show_tolerances
from strongreg.experiments.errors import StoppedError, UserError
from strongreg.experiments.fate import Fate, find_diagnosable, find_runs, read_fate
from strongreg.experiments.pool import interruptible
from strongreg.experiments.tolerance import TOLERANT, ToleranceStudy, default_changes_of
from strongreg.experiments.unfinished import describe_unfinished, find_unfinished
from strongreg.files import write_bytes

EPILOG_TOLERANCE = """Examples:

strongreg tolerance

strongreg tolerance --penalty l2 --seeds 3

strongreg tolerance --methods always,coherent --epochs 15 --out levels"""
EPILOG_DIAGNOSE = """Examples:

strongreg diagnose strongreg-out/compare-1

strongreg diagnose strongreg-out/compare-1/runs/always-seed0

strongreg diagnose strongreg-out/compare-1/runs/always-seed0 --figure run.svg

strongreg diagnose strongreg-out/compare-1 --json"""
EPILOG_REPORT = """Examples:

strongreg report strongreg-out/compare-1

strongreg report runs/first runs/second --out both.html

strongreg report runs/a runs/b runs/c"""


_FIGURES: dict[str, Literal["svg", "png"]] = {".svg": "svg", ".png": "png"}


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(f"--steps {text}: give the first and the last step, such as 0:100")
    return int(first), int(last)


def tolerance(
    recipe: RecipeFile = None,
    data: Data = None,
    data_dir: DataDir = None,
    model: Model = None,
    penalty: PenaltyName = None,
    strength: Strength = None,
    strength_scale: StrengthScale = None,
    gate_threshold: Threshold = None,
    epochs: Epochs = None,
    settings: Settings = None,
    methods: Annotated[str, typer.Option(help=f"Methods, separated by commas, of {', '.join(TOLERANT)}.")] = ",".join(
        TOLERANT
    ),
    seeds: Annotated[int, typer.Option(help="A strength is endured if it is at every one of N seeds.")] = 1,
    precision: Annotated[float, typer.Option(help="Largest ratio of the two ends of a level's final bracket.")] = 1.2,
    device: Device = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time. Default: the number of cores on the CPU, 1 elsewhere.")
    ] = None,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print tolerance.json instead of the table.")] = False,
) -> None:
    """Find the largest strength that a network endures, for each method, by bisection over short runs."""
    if seeds < 1:
        raise UserError(f"seeds={seeds}: must be >= 1")
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: must be >= 1")
    chosen = methods_of(methods, TOLERANT)
    built = recipe_of(
        recipe,
        settings,
        default_changes_of(penalty or "l1"),
        data=data,
        model=model,
        penalty=penalty,
        strength=strength,
        strength_scale=strength_scale,
        gate_threshold=gate_threshold,
        epochs=epochs,
        device=device,
    )
    refuse_target(built)
    directory = out or new_directory("tolerance")
    study = ToleranceStudy(built, chosen, range(seeds), directory, precision=precision, data_dir=data_dir)
    messages = Console(stderr=True)
    show_slow_choices(messages, study.recipe, ["dense", *chosen])
    num_workers = workers or min(most_workers(study.recipe), len(chosen) * seeds)
    try:
        with interruptible():
            levels = study.run(num_workers, ProbeLines(messages))
    except KeyboardInterrupt as interrupt:
        text = f"interrupted: what was tried is kept in {directory}; the same command with --out {directory} goes on"
        raise StoppedError(text, interrupt) from None
    from strongreg.experiments.drawing import draw_tolerance  # matplotlib is slow to import

    drawing = directory / "tolerance.svg"
    with writing(drawing):
        write_bytes(drawing, draw_tolerance(study.probes, levels).encode())
    if as_json:
        typer.echo((directory / "tolerance.json").read_text(encoding="utf-8"), nl=False)
    else:
        show_tolerances(Console(), built, levels)
    say(messages, f"wrote {directory / 'tolerance.json'} and {drawing}")


def diagnose(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or of a comparison with its runs.")],
    figure: Annotated[
        Path | None, typer.Option(help="Draw the run into this file, .svg or .png: of one run, with its verdict.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST",
            help="Steps that the figure looks at closely. Default: those around the step of the verdict, if any.",
        ),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw for a dark page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Say in plain words whether a run learned, stalled or collapsed, when and where, why, and what to change.

    A run that is not finished is diagnosed up to its last checkpoint.
    """
    close = None if steps is None else _steps(steps)
    if figure is not None:
        _check_figure(figure)
    elif steps is not None or dark:
        raise UserError(f"{'--dark' if steps is None else '--steps'} is for a figure: say with --figure where to draw")
    directories, left_out = find_diagnosable(run)
    if figure is not None and len(directories) > 1:
        raise UserError(f"--figure shows one run, {run} holds {len(directories)}: name one, such as {directories[0]}")
    fates = {directory: read_fate(directory) for directory in directories}
    for message in left_out:
        tell(message)
    if figure is not None:
        _draw(fates[directories[0]], figure, close, dark=dark)
    if as_json:
        content = {str(directory): asdict(fate.diagnosis) for directory, fate in fates.items()}
        typer.echo(json.dumps(content, indent=2))
        return
    for directory, fate in fates.items():
        name = directory.name if len(directories) > 1 else str(directory)
        typer.echo(f"{name}: {fate.diagnosis}")


def _check_figure(file: Path) -> None:
    """Check before the work that a figure may be written there.

    Raises:
        UserError: it may not, or its ending is none that is known.
    """
    if file.suffix.lower() not in _FIGURES:
        raise UserError(f"--figure {file}: give the file an ending of {' or '.join(_FIGURES)}")
    check_target(file, "--figure")


def _draw(fate: Fate, file: Path, steps: tuple[int, int] | None, *, dark: bool) -> None:
    from strongreg.experiments.drawing import DARK, LIGHT  # matplotlib is slow to import
    from strongreg.experiments.run_figure import draw_run

    content = draw_run(fate, steps, DARK if dark else LIGHT, _FIGURES[file.suffix.lower()])
    with writing(file):
        write_bytes(file, content)
    tell(f"wrote {file}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs or comparisons.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was drawn as JSON.")] = False,
) -> None:
    """Draw one self-contained HTML file of one or many runs."""
    check_target(out)
    from strongreg.experiments.gallery import write_gallery  # matplotlib is slow to import

    directories = [found for directory in runs for found in find_runs(directory)]
    with writing(out):
        write_gallery(directories, out)
    unfinished = dict.fromkeys(found for directory in runs for found in find_unfinished(directory))
    for directory in unfinished:
        tell(f"left out: {describe_unfinished(directory)}")
    tell(f"wrote {out}")
    if as_json:
        content = {"file": str(out), "runs": list(map(str, directories)), "left_out": list(map(str, unfinished))}
        typer.echo(json.dumps(content, indent=2))
