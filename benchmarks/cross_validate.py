"""One setting of `strongreg train`, by 5-fold cross-validation on the training images: accuracy and times smaller.

    python benchmarks/cross_validate.py [--method coherent] [--set FIELD=VALUE ...] [--folds N]

The fields are those of strongreg.experiments.config.RunConfig; the seed of a fold is its number. The epochs are
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

from strongreg.experiments.config import METHODS, RunConfig, check_config, default_config
from strongreg.experiments.data import ImageData, load_data
from strongreg.experiments.engine import RunResult, train

NUM_FOLDS, SPLIT_SEED = 5, 7


def folds(data: ImageData) -> list[ImageData]:
    """The training images, each fifth once in the place of the test images."""
    splits = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=SPLIT_SEED).split(
        data.train_images, data.train_labels
    )
    images, labels = data.train_images, data.train_labels
    return [
        dataclasses.replace(
            data, train_images=images[a], train_labels=labels[a], test_images=images[b], test_labels=labels[b]
        )
        for a, b in splits
    ]


def configuration(settings: list[str]) -> RunConfig:
    """The default configuration of the penalty with some fields set."""
    given = dict(setting.split("=", maxsplit=1) for setting in settings)
    config = check_config(**{**default_config(given.get("penalty", "l1")).model_dump(), **given})
    return config.model_copy(update={"epochs": round(config.epochs * NUM_FOLDS / (NUM_FOLDS - 1))})


def main() -> None:
    """Train on each fold and print a line for it, then the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="coherent")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings")
    parser.add_argument("--folds", type=int, default=NUM_FOLDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = configuration(arguments.settings)
    results: list[RunResult] = []
    for seed, data in enumerate(folds(load_data(config.data))[: arguments.folds]):
        with tempfile.TemporaryDirectory() as directory:
            results.append(train(config, arguments.method, seed, data, Path(directory), lambda _: None))
        compression = results[-1].compression
        size = "nothing left" if compression is None else f"{compression:.1f} times smaller"
        print(
            f"fold {seed}: accuracy {results[-1].accuracy:.1%}, {size}, open {results[-1].open_fraction:.0%}",
            flush=True,
        )
    print(f"mean accuracy {statistics.fmean(result.accuracy for result in results):.1%}")


if __name__ == "__main__":
    main()
