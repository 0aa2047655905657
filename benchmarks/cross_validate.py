"""One setting of `strongreg train`, by 5-fold cross-validation on the training images: accuracy and times smaller.

    python benchmarks/cross_validate.py [--method coherent] [--set SECTION.KEY=VALUE ...] [--folds N]

The keys are those of strongreg.experiments.recipe.Recipe; the seed of a fold is its number. The epochs are
stretched by 5/4, so that four fifths of the images give as many steps as all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

import torch
from sklearn.model_selection import StratifiedKFold

from strongreg.experiments.data import ImageData, load_data
from strongreg.experiments.engine import RunResult, train
from strongreg.experiments.recipe import METHODS, Recipe, build_recipe, default_changes, parse_settings

NUM_FOLDS, SPLIT_SEED = 5, 7


def folds(data: ImageData) -> list[ImageData]:
    """The training images, each fifth once in the place of the test images."""
    splits = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=SPLIT_SEED).split(
        data.train.images, data.train.labels
    )
    return [
        dataclasses.replace(data, train=data.train.select(torch.tensor(a)), test=data.train.select(torch.tensor(b)))
        for a, b in splits
    ]


def recipe_of(settings: list[str]) -> Recipe:
    """The default recipe of the penalty with some keys set."""
    given = parse_settings(settings)
    recipe = build_recipe({**default_changes(given.get("penalty.name", "l1")), **given})
    epochs = round(recipe.training.epochs * NUM_FOLDS / (NUM_FOLDS - 1))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": epochs})})


def main() -> None:
    """Train on each fold and print a line for it, then the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="coherent")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    parser.add_argument("--folds", type=int, default=NUM_FOLDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipe_of(arguments.settings)
    results: list[RunResult] = []
    for seed, data in enumerate(folds(load_data(recipe.data.name))[: arguments.folds]):
        with tempfile.TemporaryDirectory() as directory:
            results.append(train(recipe, arguments.method, seed, data, Path(directory)))
        compression = results[-1].compression
        size = "nothing left" if compression is None else f"{compression:.1f} times smaller"
        print(
            f"fold {seed}: accuracy {results[-1].accuracy:.1%}, {size}, open {results[-1].open_fraction:.0%}",
            flush=True,
        )
    print(f"mean accuracy {statistics.fmean(result.accuracy for result in results):.1%}")


if __name__ == "__main__":
    main()
