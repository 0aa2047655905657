"""A small language model made smaller by L1 and by GroupL2: the loss that is left, and the heads and neurons.

    python benchmarks/language_compression.py
    python benchmarks/language_compression.py --penalties group_l2 --targets 5 --seeds 1

recipes/language/compression.toml dense, and for each penalty and number of times that there are to be fewer weights
with the penalty always on and under the gate; then shrinks what is left. Writes OUT/<penalty>-<times>/
(as `strongreg compare` does; opened again it goes on where it stopped), and language-compression.json in RESULTS: one
entry per run, with what shrinking has left of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from comparisons import add_options, exit_code, finish, results_folder
from strongreg import shrink_and_report
from strongreg.experiments.recipe import Method, build_recipe, parse_settings, read_recipe
from strongreg.experiments.table import half_width_95, with_error
from strongreg.experiments.trained import load_trained

_RECIPE = Path(__file__).parents[1] / "recipes" / "language" / "compression.toml"
_METHODS: tuple[Method, ...] = ("always", "coherent")
_HEADER = "penalty", "asked", "method", "loss", "weights", "open", "parameters", "bytes", "heads", "neurons"


def main() -> int:
    """Run what was asked for, and print a table: a row for each penalty, size and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--penalties", nargs="+", default=["l1", "group_l2"])
    parser.add_argument("--targets", nargs="+", type=float, default=[3, 10], help="times fewer weights")
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), choices=list(_METHODS))
    add_options(parser, "language-compression", num_seeds=3)
    arguments = parser.parse_args()
    return exit_code(lambda: _record(arguments), arguments.out)


def _record(arguments: argparse.Namespace) -> None:
    settings = parse_settings(arguments.settings)
    entries = _trained({}, settings, ["dense"], arguments.out / "dense", arguments)
    for penalty in arguments.penalties:
        for target in arguments.targets:
            folder = arguments.out / f"{penalty}-{target:g}"
            changes = {"penalty.name": penalty, "penalty.target_compression": target}
            entries += _trained(changes, settings, arguments.methods, folder, arguments)
    print("\n".join(_table(entries)))
    text = json.dumps({"runs": entries}, indent=2) + "\n"
    (results_folder(arguments) / "language-compression.json").write_text(text, encoding="utf-8")


def _trained(
    changes: dict[str, Any],
    settings: dict[str, Any],
    methods: list[Method],
    folder: Path,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    recipe = build_recipe({**changes, **settings}, read_recipe(_RECIPE))
    comparison = finish(recipe, methods, folder, arguments)
    asked = changes.get("penalty.target_compression")
    return [
        {**asdict(comparison.results[job]), "asked": asked, **_left(folder / "runs" / job.directory_name)}
        for job in comparison.jobs
    ]


def _left(run: Path) -> dict[str, Any]:
    """What shrinking leaves of the network of a run."""
    model = load_trained(run).model.eval()
    small, report = shrink_and_report(model, torch.zeros(1, 16, dtype=torch.int64))
    before, after = _units(model), _units(small)
    return {"num_parameters": report.num_parameters, "heads": [before[0], after[0]], "neurons": [before[1], after[1]]}


def _units(model: nn.Module) -> tuple[list[int], list[int]]:
    """Heads and neurons of each block."""
    size = model.cosines.shape[-1]  # of a head
    heads = [block.attention.out.weight.shape[1] // size for block in model.blocks]
    return heads, [block.mlp.out.weight.shape[1] for block in model.blocks]


def _table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Means over the seeds, and half the 95 % interval of the mean of the loss, in nats per byte of the test text."""
    lines = [f"| {' | '.join(_HEADER)} |", "|---" * len(_HEADER) + "|"]
    rows = dict.fromkeys((each["asked"], each["penalty"], each["method"]) for each in entries)
    for row in rows:
        lines.append(_row([each for each in entries if (each["asked"], each["penalty"], each["method"]) == row]))
    return lines


def _row(runs: Sequence[dict[str, Any]]) -> str:
    first = runs[0]
    is_dense, losses = first["method"] == "dense", [run["loss"] for run in runs]
    cells = [
        "-" if is_dense else first["penalty"],
        "-" if is_dense else f"{first['asked']:g}",
        first["method"],
        with_error(statistics.fmean(losses), half_width_95(losses)),
        _range([run["compression"] or float("inf") for run in runs], "{:.1f}"),
        "-" if is_dense else f"{sum(run['open_fraction'] for run in runs) / len(runs):.0%}",
        _range([run["num_parameters"][0] / run["num_parameters"][1] for run in runs], "{:.1f}"),
        _range([run["dense_bytes"] / run["file_bytes"] for run in runs], "{:.1f}"),
        _range([sum(run["heads"][1]) for run in runs], "{}") + f" of {sum(first['heads'][0])}",
        _range([sum(run["neurons"][1]) for run in runs], "{}") + f" of {sum(first['neurons'][0])}",
    ]
    return f"| {' | '.join(cells)} |"


def _range(numbers: Sequence[float], form: str) -> str:
    low, high = form.format(min(numbers)), form.format(max(numbers))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    sys.exit(main())
