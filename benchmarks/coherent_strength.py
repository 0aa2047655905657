"""A strength that is lowered until it is coherent, instead of a gate that is open or shut: tried on weight decay.

    python benchmarks/coherent_strength.py
    python benchmarks/coherent_strength.py --strengths 30 --thresholds 0.9
    python benchmarks/coherent_strength.py --strengths 6 --thresholds -1    # a constant strength, to compare with

The model, text and optimizer of recipes/language/weight_decay.toml in a loop of its own. At each step the decay is
imposed with the largest strength, up to the one asked for, at which the step with it still points where AdamW's step
alone does: cosine >= threshold. The library has no such gate yet; this is to see whether it would help. Prints a row
per run, with the mean strength of its first and last epoch, and writes coherent-strength.json into RESULTS, if given.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from strongreg import L1
from strongreg.experiments.data import TextData
from strongreg.experiments.engine import evaluate
from strongreg.experiments.engine.optimizers import build_optimizers, lr_schedule
from strongreg.experiments.engine.process import prepare_process
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import Recipe, build_recipe, parse_settings, read_recipe
from strongreg.groups import select_targets

_RECIPE = Path(__file__).parents[1] / "recipes" / "language" / "weight_decay.toml"
_HALVINGS = 30  # of the interval in which the strength lies
_HEADER = ("strength", "threshold", "seed", "loss", "best validation loss", "at epoch", "first epoch", "last epoch")


def coherent_strength(steps: list[Tensor], weights: list[Tensor], strength: float, threshold: float) -> float:
    """The largest strength of a decay that is coherent with the steps.

    Args:
        steps: what the optimizer has moved the weights by, negated and divided by the learning rate.
        weights: before the step.
        strength: the most.
        threshold: the least cosine between the steps and the steps with the decay, in [-1, 1); at -1 every strength is
            coherent.

    Returns:
        A strength in [0, strength].
    """
    pairs = list(zip(steps, weights, strict=True))
    squared = sum(float(step.square().sum()) for step in steps)
    product = sum(float((step * weight).sum()) for step, weight in pairs)
    weight_squared = sum(float(weight.square().sum()) for weight in weights)

    def is_coherent(tried: float) -> bool:
        norm = math.sqrt(max(squared * (squared + 2 * tried * product + tried**2 * weight_squared), 0.0))
        return squared + tried * product >= threshold * norm

    if is_coherent(strength):
        return strength
    low, high = 0.0, strength
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_coherent(middle) else (low, middle)
    return low


def train(recipe: Recipe, data: TextData, strength: float, threshold: float, seed: int) -> dict[str, Any]:
    """One run."""
    torch.manual_seed(seed)
    options = {"width": recipe.model.width, "depth": recipe.model.depth}
    model = build_model(recipe.model.name, data.input_shape, data.num_classes, **options)
    params = [target.param for target in select_targets(model, L1(0.0))]
    (optimizer,) = build_optimizers(model, recipe.optimizer)
    order = torch.Generator().manual_seed(seed)
    num_steps = recipe.training.epochs * math.ceil(len(data.train) / recipe.training.batch_size)
    factor = lr_schedule(recipe.optimizer, num_steps)
    losses, strengths, step = [], [], 0
    for _ in range(recipe.training.epochs):
        imposed = []
        for batch in torch.randperm(len(data.train), generator=order).split(recipe.training.batch_size):
            lr = recipe.optimizer.lr * factor(step)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            outputs = model(data.train.inputs[batch].long())
            functional.cross_entropy(outputs.flatten(0, 1), data.train.labels[batch].flatten().long()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm or math.inf)
            before = [param.detach().clone() for param in params]
            optimizer.step()
            with torch.no_grad():
                steps = [(weight - param) / lr for weight, param in zip(before, params, strict=True)]
                imposed.append(coherent_strength(steps, before, strength, threshold))
                for param in params:
                    param.div_(1 + lr * imposed[-1])
            step += 1
        losses.append(evaluate(model, data.validation, data.normalize).loss)
        strengths.append(statistics.fmean(imposed))
    best = min(range(len(losses)), key=losses.__getitem__)
    return {
        "strength": strength,
        "threshold": threshold,
        "seed": seed,
        "loss": evaluate(model, data.test, data.normalize).loss,
        "best_validation_loss": losses[best],
        "best_epoch": best + 1,
        "strengths": strengths,
    }


def main() -> int:
    """Train what was asked for, and print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", nargs="+", type=float, default=[30.0, 100.0])
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.7, 0.9])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare_process()
    runs = []
    try:
        recipe = build_recipe(parse_settings(arguments.settings), read_recipe(_RECIPE))
        data = recipe_data(recipe, arguments.data_dir)
        print(f"| {' | '.join(_HEADER)} |\n{'|---' * len(_HEADER)}|", flush=True)
        for strength in arguments.strengths:
            for threshold in arguments.thresholds:
                for seed in range(arguments.seeds):
                    run = train(recipe, data, strength, threshold, seed)
                    runs.append(run)
                    print(_row(run), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.results is not None:
        arguments.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"runs": runs}, indent=2) + "\n"
        (arguments.results / "coherent-strength.json").write_text(text, encoding="utf-8")
    return 0


def _row(run: dict[str, Any]) -> str:
    cells = [f"{run['strength']:g}", f"{run['threshold']:g}", str(run["seed"])]
    cells += [f"{run['loss']:.3f}", f"{run['best_validation_loss']:.3f}", str(run["best_epoch"])]
    cells += [f"{run['strengths'][0]:.1f}", f"{run['strengths'][-1]:.1f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
