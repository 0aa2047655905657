"""A network that a group penalty with the coherence gate makes physically smaller, against the dense one.

    python benchmarks/shrink.py --out FOLDER [--case vgg_narrow] [--data-dir DIR] [--seeds 3] [--json FILE]

Each case trains the network dense, with weight decay, and with a group penalty under the gate, from recipes/shrink;
shrinks the second; and measures both in this process, interleaved: test accuracy, parameters, FLOPs, and the time of one
batch of 1 and of 64 images in torch and in onnxruntime (one thread each, ratio of medians). Runs are kept in FOLDER: the
same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from strongreg import export_onnx, shrink_and_report
from strongreg.experiments.data import ImageData
from strongreg.experiments.engine import evaluate, train
from strongreg.experiments.engine.record import RESULT_FILE, WEIGHTS_FILE, load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import Method, Recipe, build_recipe, parse_settings, read_recipe
from strongreg.timing import interleaved_medians

RECIPES = Path(__file__).parents[1] / "recipes" / "shrink"
CASES = tuple(sorted(file.stem for file in RECIPES.glob("*.toml")))
BATCH_SIZES = (1, 64)


def trained(recipe: Recipe, method: Method, seed: int, data: ImageData, folder: Path) -> nn.Module:
    """The network of a run, trained unless it lies in the folder."""
    if not (folder / RESULT_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        train(recipe, method, seed, data, folder)
    options = recipe.for_method(method).model.model_dump(exclude={"name"})
    model = build_model(recipe.model.name, data.image_shape, data.num_classes, **options)
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return model.eval()


def torch_speedup(dense: nn.Module, small: nn.Module, images: Tensor, seconds: float) -> float:
    """Time of the dense network / time of the small one, on a batch."""
    with torch.no_grad():
        before, after = interleaved_medians([lambda: dense(images), lambda: small(images)], seconds=seconds)
    return before / after


def onnx_speedup(dense: nn.Module, small: nn.Module, images: Tensor, seconds: float) -> float:
    """The same in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    calls = []
    with tempfile.TemporaryDirectory() as directory:
        for i, model in enumerate((dense, small)):
            file = Path(directory) / f"{i}.onnx"
            export_onnx(model, images[:2] if len(images) > 1 else images.expand(2, -1, -1, -1), file)
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: images.numpy()}
            calls.append(lambda session=session, feed=feed: session.run(None, feed))
        before, after = interleaved_medians(calls, seconds=seconds)
    return before / after


def measure(case: str, recipe: Recipe, data: ImageData, seed: int, folder: Path, seconds: float) -> dict[str, Any]:
    """One seed of one case: a row of the table."""
    dense = trained(recipe, "dense", seed, data, folder / f"{case}-dense-seed{seed}")
    directory = folder / f"{case}-coherent-seed{seed}"
    large = trained(recipe, "coherent", seed, data, directory)
    images = data.normalize(data.test.images[: max(BATCH_SIZES)])
    small, report = shrink_and_report(large, images[:1])
    accuracy = {
        name: evaluate(model, data.test, data.normalize)
        for name, model in (("dense", dense), ("coherent", large), ("shrunk", small))
    }
    speedup = {
        f"{library}, batch {size}": function(dense, small, images[:size].contiguous(), seconds)
        for library, function in (("torch", torch_speedup), ("onnxruntime", onnx_speedup))
        for size in BATCH_SIZES
    }
    return {
        "case": case,
        "seed": seed,
        "accuracy": accuracy,
        "num_parameters": report.num_parameters,
        "flops": report.flops,
        "speedup": speedup,
        "open_fraction": load_result(directory / RESULT_FILE).open_fraction,
        "left": [str(x) for x in report.left],
    }


def row(measured: dict[str, Any]) -> str:
    """The row of a table in Markdown."""
    (before, after), (flops_before, flops_after) = measured["num_parameters"], measured["flops"]
    accuracy = measured["accuracy"]
    cells = [
        measured["case"],
        str(measured["seed"]),
        f"{accuracy['dense']:.1%}",
        f"{accuracy['shrunk']:.1%}",
        f"{measured['open_fraction']:.0%}",
        f"{before:,} / {after:,} = {before / after:.1f}",
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
    rows = []
    speeds = [f"{library}, batch {size}" for library in ("torch", "onnxruntime") for size in BATCH_SIZES]
    print(f"| case | seed | dense | shrunk | open | parameters | fewer FLOPs | {' | '.join(speeds)} |")
    print("|---" * (7 + len(speeds)) + "|")
    try:
        for case in arguments.case or CASES:
            recipe = build_recipe(parse_settings(arguments.settings), read_recipe(RECIPES / f"{case}.toml"))
            data = recipe_data(recipe, arguments.data_dir)
            for seed in range(arguments.seeds):
                rows.append(measure(case, recipe, data, seed, arguments.out, arguments.seconds))
                print(row(rows[-1]), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json is not None:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        arguments.json.write_text(json.dumps({"versions": versions, "runs": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
