"""The engine's time per epoch against a bare loop over the same tensors with the same network, interleaved.

    python benchmarks/epoch_time.py [--json FILE] [--rounds 5]

The bare loop shuffles, indexes, normalizes, computes the loss, steps, and evaluates after each epoch, as the engine
does; nothing else. Ratios of medians over the rounds, one torch thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from strongreg.experiments.data import ImageData, load_data
from strongreg.experiments.engine import evaluate, train
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import Recipe, build_recipe

CASES = {
    "plain_cnn, digits, batch 64": {"training.epochs": 30},
    "lenet300, digits, batch 64": {"model.name": "lenet300", "training.epochs": 100},
    "plain_cnn, digits, batch 256": {"training.epochs": 30, "training.batch_size": 256},
}


def bare(recipe: Recipe, data: ImageData) -> None:
    """What one would write by hand."""
    torch.manual_seed(0)
    model = build_model(recipe.model.name, data.image_shape, data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.optimizer.lr, momentum=recipe.optimizer.momentum)
    order = torch.Generator().manual_seed(0)
    for _ in range(recipe.training.epochs):
        for batch in torch.randperm(len(data.train), generator=order).split(recipe.training.batch_size):
            optimizer.zero_grad()
            images = data.normalize(data.train.images[batch])
            functional.cross_entropy(model(images), data.train.labels[batch]).backward()
            optimizer.step()
        evaluate(model, data.test, data.normalize)


def engine(recipe: Recipe, data: ImageData, method: str) -> None:
    """One run of the engine, files included."""
    with tempfile.TemporaryDirectory() as directory:
        train(recipe, method, 0, data, Path(directory))  # type: ignore[arg-type]


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    data = load_data("digits")
    rows = []
    print("| case | bare, ms per epoch | engine, dense | engine, coherent |\n|---|---|---|---|")
    for name, changes in CASES.items():
        recipe = build_recipe({"training.checkpoint_every": 0, **changes})
        times: dict[str, list[float]] = {"bare": [], "dense": [], "coherent": []}
        bare(recipe, data)
        for _ in range(arguments.rounds):
            for kind, seconds in times.items():
                started = time.perf_counter()
                bare(recipe, data) if kind == "bare" else engine(recipe, data, kind)
                seconds.append((time.perf_counter() - started) / recipe.training.epochs)
        medians = {kind: statistics.median(seconds) for kind, seconds in times.items()}
        ratios = {kind: medians[kind] / medians["bare"] for kind in ("dense", "coherent")}
        print(
            f"| {name} | {1e3 * medians['bare']:.0f} | {ratios['dense']:.2f} | {ratios['coherent']:.2f} |", flush=True
        )
        rows.append({"case": name, "bare_seconds": medians["bare"], **ratios})
    if arguments.json is not None:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        arguments.json.write_text(json.dumps({"versions": versions, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
