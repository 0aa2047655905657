"""What weight decay a small language model wants that sees its text many times, and whether the gate helps it.

    python benchmarks/weight_decay.py
    python benchmarks/weight_decay.py --strengths 0.3 1 --seeds 1 --set training.epochs=10

recipes/language/weight_decay.toml without decay, and with each strength imposed always, after a delay, and
while the gradients are coherent. Writes OUT/<strength>/ (as `strongreg compare` does; opened again it goes on where it
stopped), and weight-decay.json in RESULTS: one entry per run, with its loss at its best epoch on validation text,
the lowest mean coherence of an epoch, and the norm of the weights in the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparisons import add_options, exit_code, finish, results_folder
from strongreg.experiments.compare import Comparison
from strongreg.experiments.engine import RunResult
from strongreg.experiments.recipe import Method, build_recipe, parse_settings, read_recipe
from strongreg.experiments.table import show_loss, summarize

_RECIPE = Path(__file__).parents[1] / "recipes" / "language" / "weight_decay.toml"
_METHODS: tuple[Method, ...] = ("always", "delayed", "coherent")


def main() -> int:
    """Run what was asked for, and print a table: a row for each strength, a column for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=_RECIPE)
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.1, 0.3, 1, 3, 10])
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), choices=list(_METHODS))
    add_options(parser, "weight-decay", num_seeds=3)
    arguments = parser.parse_args()
    return exit_code(lambda: _record(arguments), arguments.out)


def _record(arguments: argparse.Namespace) -> None:
    comparisons = [_trained(0.0, ["dense"], arguments)]
    comparisons += [_trained(strength, arguments.methods, arguments) for strength in arguments.strengths]
    results = [result for comparison in comparisons for result in comparison.own_results]
    print(_table(results, ["dense", *arguments.methods]))
    entries = [entry for comparison in comparisons for entry in _entries(comparison)]
    text = json.dumps({"runs": entries}, indent=2) + "\n"
    (results_folder(arguments) / "weight-decay.json").write_text(text, encoding="utf-8")


def _trained(strength: float, methods: list[Method], arguments: argparse.Namespace) -> Comparison:
    changes = {"penalty.strength": strength, **parse_settings(arguments.settings)}
    recipe = build_recipe(changes, read_recipe(arguments.recipe))
    folder = arguments.out / ("dense" if strength == 0 else f"{strength:g}")
    return finish(recipe, methods, folder, arguments)


def _entries(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for job in comparison.jobs:
        losses = {epoch.epoch: epoch.loss for epoch in comparison.metrics(job) if epoch.loss is not None}
        best = min(losses, key=lambda epoch: losses[epoch], default=None)  # None where no loss was finite
        of_best = {"best_epoch": best, "best_validation_loss": None if best is None else losses[best]}
        seen = [epoch.coherence for epoch in comparison.metrics(job) if epoch.coherence is not None]
        of_gate = {"lowest_coherence": min(seen, default=None), "weight_norm": comparison.metrics(job)[-1].weight_norm}
        yield {**asdict(comparison.results[job]), **of_best, **of_gate}


def _table(results: list[RunResult], methods: list[str]) -> str:
    """The loss on the test text, in nats per byte, with half the 95 % interval of its mean."""
    lines = [f"| strength | {' | '.join(methods)} |", f"|---{'|---' * len(methods)}|"]
    for strength in sorted({result.strength for result in results}):
        summaries = summarize([result for result in results if result.strength == strength])
        by_method = {summary.method: show_loss(summary) for summary in summaries}
        cells = [by_method.get(method, "") for method in methods]
        lines.append(f"| {' | '.join([f'{strength:g}', *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
