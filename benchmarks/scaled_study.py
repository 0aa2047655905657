"""The scaled study: a narrow VGG-like network on 10,000 images of Fashion-MNIST and CIFAR-10, every method tuned alike.

    python benchmarks/scaled_study.py --out FOLDER [--data fashion_mnist] [--penalty l1] [--json FILE] [--seeds 3]

Each method tries four settings with seed 0, magnitude pruning four for each compression, which it is told and the
others reach or not: for them the same four serve both. The best by *validation*
accuracy among those at the asked compression or beyond is trained with all seeds, and only its test accuracies are
reported. The rows "always dies" are at the largest strength tried, if the penalty always on kills the network there,
chosen likewise with seed 0. Runs are kept in FOLDER: the same command goes on where it stopped. Writes one entry per
final run, as in compare's results.json, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from strongreg.experiments.engine import RunResult
from strongreg.experiments.engine.record import RECIPE_FILE, RESULT_FILE, load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import Task, TaskPool
from strongreg.experiments.recipe import Method, Recipe, build_recipe, parse_settings, read_recipe, show_recipe
from strongreg.experiments.runnable import outcome
from strongreg.experiments.table import cells, summarize

TARGETS = (10.0, 20.0)
RECIPES = Path(__file__).parents[1] / "recipes" / "study"
DECAY = "optimizer.weight_decay"
_RELAXING = {"penalty.ramp_share": 0.5, "penalty.final_factor": 0.0, "penalty.refit_share": 0.0}
_GROWING = {"penalty.strength": 1e-4, "penalty.ramp_share": 0.5}
# where the images are harder, L1 of the same strength leaves fewer weights and kills sooner
_L1_STRENGTHS = {"fashion_mnist": (0.002, 0.003, 0.006, 0.0125), "cifar10": (0.001, 0.0015, 0.002, 0.003)}
Setting = dict[str, Any]


def settings_of(method: Method, penalty: str, data: str) -> list[Setting]:
    """Four settings of a method on a data set; for magnitude pruning four at each compression."""
    if method == "dense":
        return [{DECAY: decay} for decay in (1e-4, 5e-4, 2e-3, 5e-3)]
    if method == "magnitude":
        return [
            {DECAY: decay, "pruning.end_share": end, "pruning.compression": target}
            for target in TARGETS
            for decay in (5e-4, 2e-3)
            for end in (0.4, 0.6)
        ]
    named = {"penalty.name": penalty}
    if penalty == "l2":  # a weight decay itself
        return [{**named, **_RELAXING, "penalty.strength": strength} for strength in (0.01, 0.03, 0.1, 0.2)]
    named[DECAY] = 5e-4  # of use in the refit
    if penalty == "mcp":
        grid = ((0.1, 35.0), (0.1, 70.0), (0.07, 100.0), (0.07, 200.0))
        return [{**named, **_GROWING, "penalty.cutoff": cutoff, "penalty.final_factor": f} for cutoff, f in grid]
    return [{**named, "penalty.strength": strength} for strength in _L1_STRENGTHS[data]]


class Study:
    """Runs in one folder, each found again by what it is.

    Args:
        folder: where they lie.
        data_dir: where the data sets lie.
        workers: processes at a time.
        changes: keys that differ from the study's own, for a smaller one.
    """

    def __init__(self, folder: Path, data_dir: Path | None, workers: int, changes: dict[str, Any]) -> None:
        self._folder, self._data_dir, self._workers, self._changes = folder, data_dir, workers, changes

    def train(self, wanted: Sequence[tuple[str, Method, Setting, int]]) -> list[RunResult]:
        """The results of runs (data, method, setting, seed), trained where they are not there yet."""
        folders = [self._run_folder(*run) for run in wanted]
        with TaskPool(self._workers) as pool:
            pending = {}
            for folder, (data, method, setting, seed) in zip(folders, wanted, strict=True):
                recipe = build_recipe({**setting, **self._changes}, read_recipe(RECIPES / f"{data}.toml"))
                if (folder / RESULT_FILE).exists():
                    _check_same(folder, recipe.for_method(method))
                elif folder not in pending.values():
                    folder.mkdir(parents=True, exist_ok=True)
                    pending[pool.submit(Task(recipe, method, seed, folder, self._data_dir))] = folder
            while pending:
                for future in pool.wait(pending):
                    folder, result = pending.pop(future), future.result()
                    if result is not None:
                        smaller = "nothing left" if result.compression is None else f"{result.compression:.1f}x"
                        print(f"{folder.name}: {result.accuracy:.1%} {smaller}", file=sys.stderr, flush=True)
        return [load_result(folder / RESULT_FILE) for folder in folders]

    def _run_folder(self, data: str, method: Method, setting: Setting, seed: int) -> Path:
        parts = [f"{key.rpartition('.')[2]}={value:g}" for key, value in setting.items() if isinstance(value, float)]
        penalty = setting.get("penalty.name", "")
        return self._folder / "-".join([data, method, *([penalty] if penalty else []), *parts, f"seed{seed}"])


def _check_same(folder: Path, recipe: Recipe) -> None:
    """A run that is found is only taken if it is the one that is asked for."""
    if outcome(read_recipe(folder / RECIPE_FILE)) != outcome(tomllib.loads(show_recipe(recipe))):
        raise UserError(f"{folder} holds a run of another recipe: choose another --out")


def choose(settings: Sequence[Setting], results: Sequence[RunResult], target: float) -> Setting | None:
    """The setting of the best validation accuracy among those compressed enough; None if there is none."""
    fitting = [
        (result.validation_accuracy or 0.0, i)
        for i, result in enumerate(results)
        if result.compression is not None and result.compression >= 0.95 * target and result.alive
    ]
    return settings[max(fitting)[1]] if fitting else None


def deadly(settings: Sequence[Setting], results: Sequence[RunResult]) -> Setting | None:
    """The setting of the largest strength, if it killed the network; None if the network outlived it.

    Somewhat below it, it is a matter of the seed.
    """
    setting, result = max(zip(settings, results, strict=True), key=lambda pair: float(pair[0]["penalty.strength"]))
    return None if result.alive else setting


def main() -> int:
    """Tune, train, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="fashion_mnist,cifar10")
    parser.add_argument("--penalty", default="l1,mcp,l2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    try:
        for data in arguments.data.split(","):
            if data not in _L1_STRENGTHS:
                raise UserError(f"--data {data}: the study knows {', '.join(_L1_STRENGTHS)}")
        study = Study(arguments.out, arguments.data_dir, arguments.workers, parse_settings(arguments.settings))
        entries: list[dict[str, Any]] = []
        print(
            "| data | penalty | asked | method | setting | accuracy | alive | kept | times smaller | open | seconds |"
        )
        print("|---" * 11 + "|")
        for data in arguments.data.split(","):
            for penalty in arguments.penalty.split(","):
                entries += run(study, data, penalty, range(arguments.seeds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"runs": entries}, indent=2) + "\n", encoding="utf-8")
    return 0


def run(study: Study, data: str, penalty: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All methods with one penalty on one data set; L2 gives no zeros and is compared at no compression."""
    targets = (1.0,) if penalty == "l2" else TARGETS
    with_penalty: tuple[Method, ...] = ("coherent",) if penalty == "mcp" else ("always", "delayed", "coherent")
    # what needs no penalty is shown once, beside L1
    methods: tuple[Method, ...] = ("dense", *with_penalty, "magnitude") if penalty == "l1" else with_penalty
    grids = {method: settings_of(method, penalty, data) for method in methods}
    tried = study.train([(data, method, setting, 0) for method, grid in grids.items() for setting in grid])
    results = {}
    for method, grid in grids.items():
        results[method], tried = tried[: len(grid)], tried[len(grid) :]
    rows: list[tuple[str, Method, Setting | None]] = [
        (f"{target:g}x", method, choose(grid, results[method], target))
        for method, grid in grids.items()
        for target in ((1.0,) if method == "dense" else targets)
    ]
    if "always" in grids and (setting := deadly(grids["always"], results["always"])) is not None:
        rows += [("always dies", method, setting) for method in with_penalty]
    entries: list[dict[str, Any]] = []
    for asked, method, setting in rows:
        start = f"| {data} | {penalty} | {asked} | {method} |"
        if setting is None:
            print(f"{start} none of {len(grids[method])} | - | - | - | - | - | - |", flush=True)
            continue
        final = study.train([(data, method, setting, seed) for seed in seeds])
        shown = ", ".join(f"{key.partition('.')[2]}={value}" for key, value in setting.items())
        (summary,) = summarize(final)
        print(f"{start} {shown} | {' | '.join(cells(summary)[1:])} |", flush=True)
        mean = statistics.fmean(result.accuracy for result in final)
        entries += [{**asdict(r), "asked": [asked], "setting": setting, "mean_accuracy": mean} for r in final]
    return merged(entries)


def merged(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per run, though several rows may show it."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        key = json.dumps({name: entry[name] for name in ("data", "method", "seed", "setting")})
        if key in found:
            found[key]["asked"] += entry["asked"]
        else:
            found[key] = entry
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
