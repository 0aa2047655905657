"""The ``strongreg`` command: typed functions, thin."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import strongreg

try:
    import typer
    from rich.console import Console

    from strongreg.experiments.compare import Comparison, interruptible
    from strongreg.experiments.console import ProgressBars, show_table
    from strongreg.experiments.errors import UserError, check_known
    from strongreg.experiments.recipe import (
        COMPARED,
        METHODS,
        Recipe,
        build_recipe,
        default_changes,
        parse_settings,
        read_recipe,
    )
    from strongreg.experiments.table import summarize
except ImportError as error:
    sys.stderr.write(f"strongreg: the command needs the package {error.name!r}: pip install 'strongreg[experiments]'\n")
    sys.exit(2)

# BadParameter -> UsageError -> ClickException: click's own, or the copy that newer typers carry
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C
_LARGEST_SEED = 2**63 - 1

_EPILOG = """Examples:

strongreg compare

strongreg train --method coherent --epochs 50

strongreg compare --help"""
_EPILOG_COMPARE = """Examples:

strongreg compare

strongreg compare --seeds 5 --out five-seeds

strongreg compare --penalty l2 --seeds 3

strongreg compare --methods dense,magnitude --set pruning.compression=40

strongreg compare --json > results.json"""
_EPILOG_TRAIN = """Examples:

strongreg train

strongreg train --method always --strength 0.02

strongreg train --penalty group_l2 --strength 0.05 --seed 3 --out runs/group

strongreg train --set training.epochs=3 --set optimizer.lr=0.01

strongreg train --resume runs/group"""

app = typer.Typer(
    name="strongreg",
    help="Strong regularization that deep networks endure: gradient-coherent L1, L2 and group penalties.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
)

RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="TOML file to begin with; the options below and --set win over it.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key of the recipe: section.key=value, as often as needed.", metavar="A.B=C"),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data set: digits (default), mnist, fashion_mnist, cifar10, cifar100, svhn, or a folder of class folders."
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the data sets' parquet files. Default: $STRONGREG_DATA, then a download.")
]
Model = Annotated[
    str | None,
    typer.Option(help="Network: plain_cnn (default), lenet300, vgg16, resnet18, ... or package.module:factory."),
]
PenaltyName = Annotated[
    str | None, typer.Option("--penalty", help="l1 (default), l2, elastic_net, group_l2, sparse_group or mcp.")
]
Strength = Annotated[
    float | None,
    typer.Option(help="Strength lambda of the penalty, >= 0. Default: 0.1 for l2, 0.0125 for the others."),
]
StrengthScale = Annotated[
    str | None,
    typer.Option(
        help="Strength per tensor: uniform (default), or inverse_std (in inverse proportion to its weights' spread)."
    ),
]
Threshold = Annotated[
    float | None, typer.Option(help="Threshold of the coherence gate, a cosine in [-1, 1]. Default: 0.7.")
]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the training data. Default: 60 for l2, 100 for the others.")
]
Device = Annotated[str | None, typer.Option(help="Torch device: auto, cpu (default), cuda, cuda:1, mps.")]


def _directory(text: str) -> Path:
    if not text.strip():
        raise UserError("--out '': give the directory a name, or leave the option out")
    return Path(text)


Out = Annotated[
    Path | None,
    typer.Option(parser=_directory, metavar="DIRECTORY", help="Default: a new one below strongreg-out."),
]
Json = Annotated[bool, typer.Option("--json", help="Print results.json on standard output instead of the table.")]
StopWhenDead = Annotated[
    int | None, typer.Option(help="End a run that has been at chance for this many epochs. Default: never.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"strongreg {strongreg.__version__}")
        raise typer.Exit


@app.callback()
def _strongreg(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Strong regularization that deep networks endure: gradient-coherent L1, L2 and group penalties."""
    del version


@app.command(epilog=_EPILOG_COMPARE)
def compare(
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
    built = _recipe(
        recipe,
        settings,
        {
            "data.name": data,
            "model.name": model,
            "penalty.name": penalty,
            "penalty.strength": strength,
            "penalty.strength_scale": strength_scale,
            "gate.threshold": gate_threshold,
            "training.epochs": epochs,
            "training.device": device,
            "training.stop_when_dead": stop_when_dead,
        },
    )
    names = [name.strip() for name in methods.split(",")]
    for name in names:
        check_known("method", name, METHODS)
    chosen = [method for method in METHODS if method in names]
    comparison = Comparison(built, chosen, range(seeds), out or _new_directory("compare"), data_dir)
    _run(comparison, workers, as_json=as_json)


@app.command(epilog=_EPILOG_TRAIN)
def train(
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "coherent",
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
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the batch order, >= 0.")] = 0,
    device: Device = None,
    stop_when_dead: StopWhenDead = None,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the unfinished runs of this directory; other options are not taken.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network once; the numbers are those of the same method and seed in compare."""
    if resume is not None:
        _run(Comparison.open(resume, data_dir), 1, as_json=as_json)
        return
    check_known("method", method, METHODS)
    if not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed={seed}: must be between 0 and {_LARGEST_SEED}")
    built = _recipe(
        recipe,
        settings,
        {
            "data.name": data,
            "model.name": model,
            "penalty.name": penalty,
            "penalty.strength": strength,
            "penalty.strength_scale": strength_scale,
            "gate.threshold": gate_threshold,
            "training.epochs": epochs,
            "training.device": device,
            "training.stop_when_dead": stop_when_dead,
        },
    )
    chosen = [known for known in METHODS if known == method]
    comparison = Comparison(built, chosen, [seed], out or _new_directory("train"), data_dir)
    _run(comparison, 1, as_json=as_json)


def _recipe(file: Path | None, settings: list[str] | None, options: dict[str, Any]) -> Recipe:
    """The recipe that a command asked for: a file or the penalty's defaults, then options, then --set."""
    given = {name: value for name, value in options.items() if value is not None}
    given |= parse_settings(settings or [])
    if file is not None:
        return build_recipe(given, read_recipe(file))
    return build_recipe({**default_changes(str(given.get("penalty.name", "l1"))), **given})


def _run(comparison: Comparison, workers: int | None, *, as_json: bool) -> None:
    messages, training, out = Console(stderr=True), comparison.recipe.training, comparison.directory
    num_kept = len(comparison.results)
    num_missing = sum(job not in comparison.results for job in comparison.jobs)
    if num_kept or comparison.num_started:
        found = f"{num_kept} finished {'run' if num_kept == 1 else 'runs'} found in {out}, {num_missing} to train"
        if comparison.num_started:
            found += f", {comparison.num_started} of them from a checkpoint"
        messages.print(found, markup=False, highlight=False, soft_wrap=True)
    if workers is None:
        workers = (os.cpu_count() or 1) if training.device == "cpu" else 1
    try:
        with interruptible(), ProgressBars(messages, num_missing, training.epochs) as progress:
            comparison.run(max(1, min(workers, num_missing)), 1, progress)
    except KeyboardInterrupt:
        _conclude(comparison, messages, as_json=False)
        kept = sum(job in comparison.results for job in comparison.jobs)
        raise UserError(
            f"interrupted: {kept} of {len(comparison.jobs)} runs are finished and kept in {out}; the same "
            f"command with --out {out} goes on"
        ) from None
    _conclude(comparison, Console(), as_json=as_json)
    messages.print(
        f"wrote {out / 'results.json'} and {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True
    )


def _conclude(comparison: Comparison, console: Console, *, as_json: bool) -> None:
    """Write the report and show the table, or results.json."""
    results = comparison.own_results
    if not results:
        return
    from strongreg.experiments.report import write_report  # matplotlib is slow to import

    file = comparison.directory / "report.html"
    try:
        write_report(comparison, file)
    except OSError as error:
        raise UserError(f"cannot write to {file}: {error.strerror or error}") from error
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(result) for result in results]}, indent=2))
        return
    recipe = comparison.recipe
    penalty = f"{recipe.penalty.name} of strength {recipe.penalty.strength:g}"
    title = f"{recipe.model.name} on {recipe.data.name}, {penalty}, {recipe.training.epochs} epochs"
    show_table(console, title, summarize(results))


def _new_directory(command: str) -> Path:
    parent = Path("strongreg-out")
    number = 1
    while (parent / f"{command}-{number}").exists():
        number += 1
    return parent / f"{command}-{number}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; every error of the user is one line on standard error and exit code 2.

    Args:
        arguments: the command's arguments; those of the process by default.

    Raises:
        SystemExit: always; 0 for success, 2 for an error of the user or an interrupt.
    """
    try:
        code = app(arguments, standalone_mode=False, prog_name="strongreg")
        if code == _EXIT_INTERRUPTED:
            code = _fail("interrupted")
    except UserError as error:
        code = _fail(str(error))
    except _ClickException as error:
        hint = "" if arguments or sys.argv[1:] else " strongreg --help shows them"
        code = _fail(error.format_message() + hint)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted")
    except OSError as error:  # of standard output: a full disk, a closed pipe
        code = _fail(f"cannot write the output: {error.strerror or error}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    one_line = " ".join(message.split())
    sys.stderr.write(f"strongreg: error: {one_line}\n")
    return _EXIT_USER_ERROR
