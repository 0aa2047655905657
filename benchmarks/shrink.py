"""A network that a group penalty with the coherence gate makes physically smaller, against the dense one.

    python benchmarks/shrink.py --out FOLDER [--case resnet18-digits] [--data-dir DIR] [--seeds 3] [--json FILE]

Each case trains the network dense, with weight decay, and with a group penalty under the gate, from recipes/shrink;
shrinks the second, to the sizes that its zeros leave and to multiples of 8; and measures them in this process,
interleaved: test accuracy, parameters, FLOPs, and the time of one batch of 1 and of 64 images in torch and in
onnxruntime (one thread each, ratio of medians). Runs are kept in FOLDER: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from strongreg import export_onnx, shrink_and_report
from strongreg.experiments.data import ImageData
from strongreg.experiments.engine import evaluate, train
from strongreg.experiments.engine.record import RECIPE_FILE, RESULT_FILE, load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import Method, Recipe, build_recipe, parse_settings, read_recipe
from strongreg.experiments.trained import load_trained
from strongreg.timing import interleaved_medians

RECIPES = Path(__file__).parents[1] / "recipes" / "shrink"
CASES = tuple(sorted(file.stem for file in RECIPES.glob("*.toml")))
BATCH_SIZES = (1, 64)
ROUND_TO = (1, 8)
ROUNDS = 5


def trained(recipe: Recipe, method: Method, seed: int, data: ImageData, folder: Path) -> nn.Module:
    """The network of a run, trained unless it lies in the folder."""
    if not (folder / RESULT_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        train(recipe, method, seed, data, folder)
    elif build_recipe({}, read_recipe(folder / RECIPE_FILE)) != recipe.for_method(method):
        raise UserError(f"{folder} holds a run of another recipe: choose another --out")
    return load_trained(folder).model.eval()


def passes(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    """One pass in each library at each batch size, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.onnx"
        export_onnx(model, images[:2], file)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    calls: dict[str, Callable[[], Any]] = {}
    for size in BATCH_SIZES:
        batch = images[:size].contiguous()
        calls[f"torch, batch {size}"] = partial(model, batch)
        calls[f"onnxruntime, batch {size}"] = partial(session.run, None, {name: batch.numpy()})
    return calls


def measure(
    case: str, recipe: Recipe, data: ImageData, seed: int, folder: Path, seconds: float
) -> list[dict[str, Any]]:
    """One seed of one case: a row of the table for each rounding."""
    dense = trained(recipe, "dense", seed, data, folder / f"{case}-dense-seed{seed}")
    directory = folder / f"{case}-coherent-seed{seed}"
    large = trained(recipe, "coherent", seed, data, directory)
    images = data.normalize(data.test.images[: max(BATCH_SIZES)])
    accuracies = {
        name: evaluate(x, data.test, data.normalize).accuracy for name, x in (("dense", dense), ("coherent", large))
    }
    passes_of_dense = passes(dense, images)
    rows = []
    for round_to in ROUND_TO:
        small, report = shrink_and_report(large, images[:1], round_to=round_to)
        milliseconds, speedup = {}, {}
        for name, call in passes(small, images).items():
            with torch.no_grad():
                both = [
                    interleaved_medians([passes_of_dense[name], call], seconds=seconds / ROUNDS) for _ in range(ROUNDS)
                ]
            milliseconds[name] = [[1e3 * x for x in times] for times in both]
            speedup[name] = statistics.median(before / after for before, after in both)
        rows.append(
            {
                "case": case,
                "seed": seed,
                "round_to": round_to,
                "accuracy": {**accuracies, "shrunk": evaluate(small, data.test, data.normalize).accuracy},
                "num_parameters": report.num_parameters,
                "flops": report.flops,
                "speedup": speedup,
                "milliseconds_dense_and_shrunk": milliseconds,
                "open_fraction": load_result(directory / RESULT_FILE).open_fraction,
                "left": [f"{x.name}, {x.dim}: {x.count}, {x.reason}" for x in report.left],
            }
        )
    return rows


def row(measured: dict[str, Any]) -> str:
    """The row of a table in Markdown."""
    (before, after), (flops_before, flops_after) = measured["num_parameters"], measured["flops"]
    accuracy = measured["accuracy"]
    cells = [
        measured["case"],
        str(measured["seed"]),
        str(measured["round_to"]),
        f"{accuracy['dense']:.1%}",
        f"{accuracy['shrunk']:.1%}",
        f"{measured['open_fraction']:.0%}",
        f"{before / after:.1f}",
        f"{flops_before / flops_after:.1f}",
        *(f"{ratio:.1f}" for ratio in measured["speedup"].values()),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Train, shrink, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, for each ratio")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: list[dict[str, Any]] = []
    recipes = {}
    speeds = [f"{library}, batch {size}" for size in BATCH_SIZES for library in ("torch", "onnxruntime")]
    titles = ("case", "seed", "multiples of", "dense", "shrunk", "open", "fewer parameters", "fewer FLOPs", *speeds)
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    try:
        for case in arguments.case or CASES:
            recipe = build_recipe(parse_settings(arguments.settings), read_recipe(RECIPES / f"{case}.toml"))
            recipes[case] = recipe.model_dump(mode="json")
            data = recipe_data(recipe, arguments.data_dir)
            for seed in range(arguments.seeds):
                rows += measure(case, recipe, data, seed, arguments.out, arguments.seconds)
                print("\n".join(row(x) for x in rows[-len(ROUND_TO) :]), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json is not None:
        versions = {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        }
        arguments.json.write_text(json.dumps({"versions": versions, "recipes": recipes, "runs": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
