"""The nearest peer at the task of `strongreg compare`: torchao's PruneOptimizer with ProxLasso, over its strengths.

    pip install torchao==0.18
    python benchmarks/torchao_lasso.py [--json FILE] [--seeds 3]

Same network, images, batches, learning rates and epochs as compare's default recipe. Its proximal step begins at once
and its "healing" (zeros frozen, the rest trains on) where compare's refit does. Every strength is trained with seed 0,
the last column says what each does; the strength with the best accuracy at 20 times fewer weights or more, on the test
images, is then trained with all seeds: a choice in the peer's favour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchao.prototype.pat.optim import PruneOptimizer

from strongreg.experiments.data import Augmentation, ImageData, load_data
from strongreg.experiments.engine import evaluate
from strongreg.experiments.engine.batches import Batches
from strongreg.experiments.engine.optimizers import lr_schedule
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import build_recipe, default_changes

STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SMALLEST_COMPRESSION = 20.0


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    data = load_data("digits")
    print("| reg_lambda | seed | accuracy | times smaller | seconds |\n|---|---|---|---|---|")
    runs = [train(data, strength, 0) for strength in STRENGTHS]
    small = [run for run in runs if run["compression"] >= SMALLEST_COMPRESSION]
    if small:
        best = max(small, key=lambda run: run["accuracy"])
        finals = [best, *(train(data, best["strength"], seed) for seed in range(1, arguments.seeds))]
        mean = statistics.fmean(run["accuracy"] for run in finals)
        print(f"\nreg_lambda {best['strength']:g}, {len(finals)} seeds: {mean:.1%}")
        runs += finals[1:]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"runs": runs}, indent=2) + "\n", encoding="utf-8")


def train(data: ImageData, strength: float, seed: int) -> dict[str, Any]:
    """One run, with the numbers of a results.json that exist here."""
    recipe = build_recipe(default_changes("l1"))
    torch.manual_seed(seed)
    model = build_model(recipe.model.name, data.image_shape, data.num_classes)
    weights = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    regularized = {"params": weights, "prox_type": "ProxLasso", "group_type": "ElemGrouper"}
    lr = recipe.optimizer.lr
    inner = torch.optim.SGD([regularized, {"params": others}], lr=lr, momentum=recipe.optimizer.momentum)
    batches = Batches(data, recipe.training.batch_size, Augmentation(), seed)
    num_steps = recipe.training.epochs * len(batches)
    healing = round((1 - recipe.penalty.refit_share) * num_steps)
    optimizer = PruneOptimizer(inner, healing_start_step=healing, reg_lambda=strength)
    factor = lr_schedule(recipe.optimizer, num_steps)
    started, step = time.perf_counter(), 0
    for _ in range(recipe.training.epochs):
        for images, labels, _share in batches.epoch():
            for group in optimizer.param_groups:
                group["lr"] = lr * factor(step)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            step += 1
    run = {
        "method": "torchao PruneOptimizer, ProxLasso",
        "data": "digits",
        "model": recipe.model.name,
        "strength": strength,
        "seed": seed,
        "accuracy": evaluate(model, data.test, data.normalize).accuracy,
        "compression": _compression(weights),
        "train_seconds": time.perf_counter() - started,
    }
    print(
        f"| {strength:g} | {seed} | {run['accuracy']:.1%} | {run['compression']:.1f} | {run['train_seconds']:.0f} |",
        flush=True,
    )
    return run


def _compression(weights: list[nn.Parameter]) -> float:
    num_nonzero = sum(int((w != 0).sum()) for w in weights)
    return sum(w.numel() for w in weights) / max(num_nonzero, 1)


if __name__ == "__main__":
    main()
