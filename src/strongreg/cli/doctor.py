"""The command ``doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from strongreg.cli.options import DataDir
from strongreg.experiments import doctor as examination
from strongreg.experiments.errors import UserError

EPILOG_DOCTOR = """Examples:

strongreg doctor

strongreg doctor --data-dir data --json"""


def doctor(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Show what there is to work with: versions, devices, data sets, disk; exit code 2 if something is wrong."""
    findings = examination.examine(data_dir)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for section, members in groupby(findings, key=lambda finding: finding.section):
            typer.echo(section)
            for finding in members:
                typer.echo(f"  {finding.name:{width}}  {finding.found}")
                if finding.problem:
                    typer.echo(f"  {'':{width}}  problem: {finding.problem}")
    problems = [finding for finding in findings if finding.problem]
    if problems:
        first, *others = problems
        names = "; ".join(f"{finding.section}, {finding.name}" for finding in others)
        raise UserError(
            f"something is wrong with {first.section}, {first.name}: {first.found}: {first.problem}"
            + (f"; and with {names}" if others else "")
        )
