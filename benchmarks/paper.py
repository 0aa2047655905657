"""Runs any part of the paper's grid, seed by seed; opened again it goes on where it stopped.

    python benchmarks/paper.py --only 'vgg16-cifar10-*' --seeds 3
    python benchmarks/paper.py --only 'lenet*' --recipes my/recipes --set training.epochs=2

Writes OUT/<recipe>/ (as `strongreg compare` does), and paper.json and paper.md in RESULTS with all that is finished:
one entry per run, as in compare's results.json, with the recipe's name and the images trained on per second (of the
whole run, its compilation, evaluations and files included).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparisons import add_options, exit_code, finish, results_folder
from strongreg.experiments.compare import Comparison
from strongreg.experiments.errors import UserError, check_known
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import METHODS, build_recipe, parse_settings, read_recipe
from strongreg.experiments.table import HEADER, cells, summarize

RECIPES = Path(__file__).parents[1] / "recipes" / "paper"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of recipes, with wildcards")
    parser.add_argument("--recipes", type=Path, default=RECIPES, metavar="FOLDER")
    parser.add_argument("--methods", default="dense,always,delayed,coherent,magnitude")
    add_options(parser, "paper", num_seeds=1)
    arguments = parser.parse_args()
    return exit_code(lambda: run(arguments), arguments.out)


def run(arguments: argparse.Namespace) -> None:
    """Run every recipe whose name fits, and write the tables after each.

    Raises:
        UserError: no recipe fits, or one cannot be run.
    """
    files = [f for f in sorted(arguments.recipes.glob("*.toml")) if fnmatch.fnmatch(f.stem, arguments.only)]
    if not files:
        raise UserError(f"--only {arguments.only!r} fits no recipe in {arguments.recipes}")
    names = [name.strip() for name in arguments.methods.split(",")]
    for name in names:
        check_known("method", name, METHODS)
    methods = [method for method in METHODS if method in names]
    for file in files:
        recipe = build_recipe(parse_settings(arguments.settings), read_recipe(file))
        finish(recipe, methods, arguments.out / file.stem, arguments, announce=True)
        write_tables(arguments.out, results_folder(arguments), arguments.data_dir)


def write_tables(out: Path, target: Path, data_dir: Path | None) -> None:
    """Collect all finished runs of a folder."""
    entries: list[dict[str, Any]] = []
    lines = ["| recipe | " + " | ".join(HEADER) + " | images/s |", "|---" * (len(HEADER) + 2) + "|"]
    for folder in sorted(path.parent for path in out.glob("*/results.json")):
        comparison = Comparison.open(folder, data_dir)
        results = comparison.finished_results
        speeds = {r.method: [] for r in results}
        num_images = len(recipe_data(comparison.recipe, data_dir).train)
        for result in results:
            speed = num_images * result.epochs / result.train_seconds
            speeds[result.method].append(speed)
            entries.append({"recipe": folder.name, **asdict(result), "images_per_second": speed})
        for summary in summarize(results):
            speed = sum(speeds[summary.method]) / len(speeds[summary.method])
            lines.append(f"| {folder.name} | " + " | ".join(cells(summary)) + f" | {speed:,.0f} |")
    target.mkdir(parents=True, exist_ok=True)
    (target / "paper.json").write_text(json.dumps({"runs": entries}, indent=2) + "\n", encoding="utf-8")
    (target / "paper.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
