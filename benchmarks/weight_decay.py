"""What weight decay a small language model wants that sees its text many times, and whether the gate helps it.

    python benchmarks/weight_decay.py
    python benchmarks/weight_decay.py --strengths 0.3 1 --seeds 1 --set training.epochs=10

recipes/weight_decay/tiny_shakespeare.toml without decay, and with each strength imposed always, after a delay, and
while the gradients are coherent. Writes OUT/<strength>/ (as `strongreg compare` does; opened again it goes on where it
stopped), and weight-decay.json in RESULTS: one entry per run, with its loss at its best epoch on validation text.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from strongreg.experiments.compare import Comparison
from strongreg.experiments.console import ProgressBars
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import interruptible
from strongreg.experiments.recipe import Method, build_recipe, parse_settings, read_recipe

_RECIPE = Path(__file__).parents[1] / "recipes" / "weight_decay" / "tiny_shakespeare.toml"
_METHODS: tuple[Method, ...] = ("always", "delayed", "coherent")


def main() -> int:
    """Run what was asked for, and print a table: a row for each strength, a column for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=_RECIPE)
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.1, 0.3, 1, 3, 10])
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), choices=list(_METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("strongreg-out/weight-decay"), help="where the runs lie")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args()
    try:
        entries = _run(0.0, ["dense"], arguments)
        for strength in arguments.strengths:
            entries += _run(strength, arguments.methods, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: the same command with --out {arguments.out} goes on", file=sys.stderr)
        return 2
    print(_table(entries, ["dense", *arguments.methods]))
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"runs": entries}, indent=2) + "\n"
    (arguments.results / "weight-decay.json").write_text(text, encoding="utf-8")
    return 0


def _run(strength: float, methods: list[Method], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs of one strength.

    Raises:
        UserError: one cannot be run.
    """
    changes = {"penalty.strength": strength, **parse_settings(arguments.settings)}
    recipe = build_recipe(changes, read_recipe(arguments.recipe))
    folder = arguments.out / ("dense" if strength == 0 else f"{strength:g}")
    comparison = Comparison(recipe, methods, range(arguments.seeds), folder, arguments.data_dir)
    missing = sum(job not in comparison.results for job in comparison.jobs)
    with interruptible(), ProgressBars(Console(stderr=True), missing, recipe.training.epochs) as progress:
        comparison.run(max(1, min(arguments.workers, missing)), 1, progress)
    entries = []
    for job in comparison.jobs:
        losses = [epoch.loss for epoch in comparison.metrics(job) if epoch.loss is not None]
        result = comparison.results[job]
        best = min(losses, default=None)
        entries.append({**asdict(result), "best_validation_loss": best, "best_epoch": losses.index(best) + 1})
    return entries


def _table(entries: list[dict[str, Any]], methods: list[str]) -> str:
    """The loss on the test text, in nats per byte, with half the 95 % interval of its mean."""
    strengths = sorted({entry["strength"] for entry in entries})
    lines = [f"| strength | {' | '.join(methods)} |", f"|---{'|---' * len(methods)}|"]
    for strength in strengths:
        row = [f"{strength:g}"]
        for method in methods:
            losses = [e["loss"] for e in entries if (e["strength"], e["method"]) == (strength, method)]
            row.append(_mean(losses))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _mean(losses: list[float | None]) -> str:
    finite = [math.nan if loss is None else loss for loss in losses]
    if len(finite) < 2:
        return f"{finite[0]:.3f}" if finite else ""
    from scipy import stats  # slow to import

    width = stats.t.ppf(0.975, len(finite) - 1) * statistics.stdev(finite) / math.sqrt(len(finite))
    return f"{statistics.fmean(finite):.3f} ± {width:.3f}"


if __name__ == "__main__":
    sys.exit(main())
