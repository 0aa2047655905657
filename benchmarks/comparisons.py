"""What the studies share that train many runs: their options, how a comparison is run, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from strongreg.experiments.compare import Comparison
from strongreg.experiments.console import ProgressBars, say
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import interruptible
from strongreg.experiments.recipe import Method, Recipe


def add_options(parser: argparse.ArgumentParser, name: str, num_seeds: int) -> None:
    """Add --seeds, --set, --workers, --data-dir, --out and --results.

    Args:
        parser: of a study.
        name: of its folder of runs.
        num_seeds: how many there are by default.
    """
    parser.add_argument("--seeds", type=int, default=num_seeds)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("strongreg-out") / name, help="where the runs lie")
    parser.add_argument("--results", type=Path, help="where the tables go; by default OUT, too")


def results_folder(arguments: argparse.Namespace) -> Path:
    """Where the tables go.

    Args:
        arguments: of :func:`add_options`.

    Returns:
        A folder that exists.
    """
    folder: Path = arguments.results or arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finish(
    recipe: Recipe, methods: Sequence[Method], folder: Path, arguments: argparse.Namespace, *, announce: bool = False
) -> Comparison:
    """Train what is missing of a comparison.

    Args:
        recipe: of its runs.
        methods: theirs.
        folder: of its files, opened again if it is there.
        arguments: of :func:`add_options`.
        announce: whether to say how many runs there are to train.

    Returns:
        The comparison, with every run finished.

    Raises:
        UserError: a run cannot be trained.
    """
    comparison = Comparison(recipe, methods, range(arguments.seeds), folder, arguments.data_dir)
    missing = sum(job not in comparison.results for job in comparison.jobs)
    on_cpu = comparison.recipe.training.device == "cpu"
    workers = arguments.workers or ((os.cpu_count() or 1) if on_cpu else 1)
    console = Console(stderr=True)
    if announce:
        say(console, f"{folder.name}: {missing} runs to train")
    with interruptible(), ProgressBars(console, missing, recipe.training.epochs) as progress:
        comparison.run(max(1, min(workers, missing)), 1, progress)
    return comparison


def exit_code(work: Callable[[], None], out: Path) -> int:
    """Do the work of a study, with errors for people.

    Args:
        work: trains and writes.
        out: where its runs lie.

    Returns:
        0, or 2 after an error or Ctrl-C.
    """
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: the same command with --out {out} goes on", file=sys.stderr)
        return 2
    return 0
