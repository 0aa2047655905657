"""How near runs end to the compression that they are asked for, and how accurate they are then.

    python benchmarks/target_compression.py
    python benchmarks/target_compression.py --seeds 1 --targets 20 --set training.epochs=50

plain_cnn on digits with the default recipe, lenet300 on Fashion-MNIST for 20 epochs: coherent with each target, and
dense. Writes OUT/<data>-<target>/ (as `strongreg compare` does; opened again it goes on where it stopped), and
target-compression.json in RESULTS: one entry per run; those of data that are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from strongreg.experiments.compare import Comparison
from strongreg.experiments.console import ProgressBars
from strongreg.experiments.engine import RunResult
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import interruptible
from strongreg.experiments.recipe import build_recipe, parse_settings

_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {},
    "fashion_mnist": {"model.name": "lenet300", "training.epochs": 20},
}


def main() -> int:
    """Run what was asked for, and print a row for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(_RECIPES), choices=list(_RECIPES))
    parser.add_argument("--targets", nargs="+", type=float, default=[5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("strongreg-out/target-compression"), help="where the runs lie")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args()
    try:
        entries = [entry for data in arguments.data for entry in _run(data, arguments)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: the same command with --out {arguments.out} goes on", file=sys.stderr)
        return 2
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "target-compression.json"
    others = [] if not file.exists() else json.loads(file.read_text(encoding="utf-8"))["runs"]
    entries += [entry for entry in others if entry["data"] not in arguments.data]
    entries.sort(key=lambda entry: list(_RECIPES).index(entry["data"]))
    file.write_text(json.dumps({"runs": entries}, indent=2) + "\n", encoding="utf-8")
    return 0


def _run(data: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs on one data set.

    Raises:
        UserError: one cannot be run.
    """
    print(f"| {data} | accuracy | times smaller | furthest off |\n|---|---|---|---|")
    entries: list[dict[str, Any]] = []
    for target in (None, *arguments.targets):
        changes = {**_RECIPES[data], "data.name": data, **parse_settings(arguments.settings)}
        recipe = build_recipe(changes if target is None else {**changes, "penalty.target_compression": target})
        folder = arguments.out / f"{data}-{'dense' if target is None else f'{target:g}'}"
        method = "dense" if target is None else "coherent"
        comparison = Comparison(recipe, [method], range(arguments.seeds), folder, arguments.data_dir)
        missing = sum(job not in comparison.results for job in comparison.jobs)
        console = Console(stderr=True)
        with interruptible(), ProgressBars(console, missing, recipe.training.epochs) as progress:
            comparison.run(max(1, min(arguments.workers, missing)), 1, progress)
        print(_row(target, comparison.own_results), flush=True)
        entries += [{"data": data, "target": target, **asdict(result)} for result in comparison.own_results]
    return entries


def _row(target: float | None, results: list[RunResult]) -> str:
    accuracy = statistics.mean(result.accuracy for result in results)
    spread = statistics.stdev(result.accuracy for result in results) if len(results) > 1 else 0.0
    row = f"| {'dense' if target is None else f'{target:g} times'} | {accuracy:.1%} ± {spread:.1%} | "
    if target is None:
        return row + "1 | |"
    compressions = [result.compression for result in results]
    furthest = max(abs(compression / target - 1) for compression in compressions)
    return row + f"{min(compressions):.2f} to {max(compressions):.2f} | {furthest:.2%} |"


if __name__ == "__main__":
    sys.exit(main())
