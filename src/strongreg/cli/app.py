"""All commands together."""

from __future__ import annotations

from typing import Annotated

import typer

import strongreg
from strongreg.cli import doctor, export, packed, runs, shrink, study, sweep
from strongreg.cli.command import as_command
from strongreg.experiments.engine.distributed import Launch
from strongreg.experiments.errors import UserError

_EXIT_CODES = (
    "Exit codes: 0 done; 2 a mistake in what was asked for, something missing, or Ctrl-C, which one line says; "
    "143 (SIGTERM) and 129 (SIGHUP) asked to terminate, with the checkpoints of what was being trained saved; "
    "1 an error of strongreg."
)
_EPILOG = f"""{_EXIT_CODES}

Examples:

strongreg compare

strongreg train --method coherent --epochs 50

strongreg tolerance --penalty l2

strongreg sweep --trials 32

strongreg diagnose strongreg-out/compare-1

strongreg compare --help"""

app = typer.Typer(
    name="strongreg",
    help="Strong regularization that deep networks endure: gradient-coherent L1, L2 and group penalties.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
)
app.command(epilog=runs.EPILOG_COMPARE)(as_command(runs.compare))
app.command(epilog=runs.EPILOG_TRAIN)(as_command(runs.train))
app.command(epilog=study.EPILOG_TOLERANCE)(as_command(study.tolerance))
app.command(epilog=sweep.EPILOG_SWEEP)(as_command(sweep.sweep))
app.command(epilog=study.EPILOG_DIAGNOSE)(as_command(study.diagnose))
app.command(epilog=study.EPILOG_REPORT)(as_command(study.report))
app.command(epilog=packed.EPILOG_COMPRESS)(as_command(packed.compress))
app.command(epilog=packed.EPILOG_INSPECT)(as_command(packed.inspect))
app.command(epilog=packed.EPILOG_UNPACK)(as_command(packed.unpack))
app.command(epilog=shrink.EPILOG_SHRINK)(as_command(shrink.shrink))
app.command(epilog=export.EPILOG_EXPORT)(as_command(export.export))
app.command(epilog=doctor.EPILOG_DOCTOR)(as_command(doctor.doctor))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"strongreg {strongreg.__version__}")
        raise typer.Exit


@app.callback()
def _strongreg(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", hidden=True)] = False,
) -> None:
    """Strong regularization that deep networks endure: gradient-coherent L1, L2 and group penalties."""
    del version
    if quiet:
        raise UserError(f"--quiet stands behind the command: strongreg {context.invoked_subcommand} --quiet")
    if context.invoked_subcommand != "train" and Launch.read().size > 1:
        raise UserError(f"{context.invoked_subcommand} starts its own processes: under torchrun only train runs")
