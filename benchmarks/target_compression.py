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
import statistics
import sys
from dataclasses import asdict
from typing import Any

from comparisons import add_options, exit_code, finish, results_folder
from strongreg.experiments.engine import RunResult
from strongreg.experiments.recipe import Method, build_recipe, parse_settings

_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {},
    "fashion_mnist": {"model.name": "lenet300", "training.epochs": 20},
}


def main() -> int:
    """Run what was asked for, and print a row for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(_RECIPES), choices=list(_RECIPES))
    parser.add_argument("--targets", nargs="+", type=float, default=[5, 10, 20, 50])
    add_options(parser, "target-compression", num_seeds=5)
    arguments = parser.parse_args()
    return exit_code(lambda: _record(arguments), arguments.out)


def _record(arguments: argparse.Namespace) -> None:
    entries = [entry for data in arguments.data for entry in _run(data, arguments)]
    file = results_folder(arguments) / "target-compression.json"
    others = [] if not file.exists() else json.loads(file.read_text(encoding="utf-8"))["runs"]
    entries += [entry for entry in others if entry["data"] not in arguments.data]
    entries.sort(key=lambda entry: list(_RECIPES).index(entry["data"]))
    file.write_text(json.dumps({"runs": entries}, indent=2) + "\n", encoding="utf-8")


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
        method: Method = "dense" if target is None else "coherent"
        comparison = finish(recipe, [method], folder, arguments)
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
