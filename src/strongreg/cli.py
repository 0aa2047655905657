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

    from strongreg.experiments.compare import Comparison
    from strongreg.experiments.config import METHODS, Method, check_config, default_config
    from strongreg.experiments.console import ProgressBars, show_table
    from strongreg.experiments.errors import UserError, check_known
    from strongreg.experiments.report import write_report
    from strongreg.experiments.table import summarize
except ImportError as error:
    sys.stderr.write(f"strongreg: the command needs the package {error.name!r}: pip install 'strongreg[experiments]'\n")
    sys.exit(2)

_DEFAULT = default_config("l1")
# BadParameter -> UsageError -> ClickException: click's own, or the copy that newer typers carry
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C
_LARGEST_SEED = 2**63 - 1

_EPILOG_COMPARE = """Examples:

strongreg compare

strongreg compare --seeds 5 --out five-seeds

strongreg compare --penalty l2 --seeds 3

strongreg compare --json > results.json"""
_EPILOG_TRAIN = """Examples:

strongreg train

strongreg train --method always --strength 0.02

strongreg train --penalty group_l2 --strength 0.05 --seed 3 --out runs/group"""

app = typer.Typer(
    name="strongreg",
    help="Strong regularization that deep networks endure: gradient-coherent L1, L2 and group penalties.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, typer.Option(help="Data set: digits.")]
Model = Annotated[str, typer.Option(help="Network: plain_cnn or lenet300.")]
PenaltyName = Annotated[str, typer.Option("--penalty", help="l1, l2, elastic_net, group_l2, sparse_group or mcp.")]
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
Device = Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1, mps.")]
Out = Annotated[Path | None, typer.Option(help="Directory to write. Default: a new one below strongreg-out.")]
Json = Annotated[bool, typer.Option("--json", help="Print results.json on standard output instead of the table.")]


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
    data: Data = _DEFAULT.data,
    model: Model = _DEFAULT.model,
    penalty: PenaltyName = _DEFAULT.penalty,
    strength: Strength = None,
    strength_scale: StrengthScale = None,
    gate_threshold: Threshold = None,
    epochs: Epochs = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds of each method, 0 to N-1.")] = 1,
    device: Device = _DEFAULT.device,
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time. Default: the number of cores on the CPU, 1 elsewhere.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train a network four ways at equal budget: dense, penalty always on, delayed, gradient-coherent."""
    if seeds < 1:
        raise UserError(f"seeds={seeds}: must be >= 1")
    given = {"strength": strength, "strength_scale": strength_scale, "gate_threshold": gate_threshold, "epochs": epochs}
    fields = {"data": data, "model": model, "device": device, **_without_none(given)}
    _run(penalty, fields, METHODS, range(seeds), workers, out or _new_directory("compare"), as_json=as_json)


@app.command(epilog=_EPILOG_TRAIN)
def train(
    method: Annotated[str, typer.Option(help="dense, always, delayed or coherent.")] = "coherent",
    data: Data = _DEFAULT.data,
    model: Model = _DEFAULT.model,
    penalty: PenaltyName = _DEFAULT.penalty,
    strength: Strength = None,
    strength_scale: StrengthScale = None,
    gate_threshold: Threshold = None,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the batch order, >= 0.")] = 0,
    device: Device = _DEFAULT.device,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train a network once; the numbers are those of the same method and seed in compare."""
    check_known("method", method, METHODS)
    if not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed={seed}: must be between 0 and {_LARGEST_SEED}")
    methods = [known for known in METHODS if known == method]
    given = {"strength": strength, "strength_scale": strength_scale, "gate_threshold": gate_threshold, "epochs": epochs}
    fields = {"data": data, "model": model, "device": device, **_without_none(given)}
    _run(penalty, fields, methods, [seed], 1, out or _new_directory("train"), as_json=as_json)


def _run(
    penalty: str,
    fields: dict[str, Any],
    methods: Sequence[Method],
    seeds: Sequence[int],
    workers: int | None,
    out: Path,
    *,
    as_json: bool,
) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: must be >= 1")
    config = check_config(**{**default_config(penalty).model_dump(), **fields})
    comparison = Comparison(config, methods, seeds, out)
    messages = Console(stderr=True)
    num_kept = len(comparison.results)
    num_missing = sum(job not in comparison.results for job in comparison.jobs)
    if num_kept:
        found = f"{num_kept} finished {'run' if num_kept == 1 else 'runs'} found in {out}, {num_missing} to train"
        messages.print(found, markup=False, highlight=False, soft_wrap=True)
    if workers is None:
        workers = (os.cpu_count() or 1) if config.device == "cpu" else 1
    try:
        with ProgressBars(messages, num_missing, config.epochs) as progress:
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
    results = comparison.finished_results
    if not results:
        return
    file = comparison.directory / "report.html"
    try:
        write_report(comparison, file)
    except OSError as error:
        raise UserError(f"cannot write to {file}: {error.strerror or error}") from error
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(result) for result in results]}, indent=2))
        return
    config = comparison.config
    title = f"{config.model} on {config.data}, {config.penalty} of strength {config.strength:g}, {config.epochs} epochs"
    show_table(console, title, summarize(results))


def _new_directory(command: str) -> Path:
    parent = Path("strongreg-out")
    number = 1
    while (parent / f"{command}-{number}").exists():
        number += 1
    return parent / f"{command}-{number}"


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


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
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    one_line = " ".join(message.split())
    sys.stderr.write(f"strongreg: error: {one_line}\n")
    return _EXIT_USER_ERROR
