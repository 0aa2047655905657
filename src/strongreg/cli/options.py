"""The options that commands share, and what they are made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from strongreg.experiments.errors import UserError, check_known
from strongreg.experiments.recipe import Method, Recipe, build_recipe, default_changes, parse_settings, read_recipe

RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="TOML file to begin with; the options below and --set win over it.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key of the recipe: section.key=value, as often as needed.", metavar="A.B=C"),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data set: digits (default), mnist, fashion_mnist, cifar10, cifar100, svhn, or a folder of class folders."
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the data sets' parquet files. Default: $STRONGREG_DATA, then a download.")
]
Model = Annotated[
    str | None,
    typer.Option(help="Network: plain_cnn (default), lenet300, vgg16, resnet18, ... or package.module:factory."),
]
PenaltyName = Annotated[
    str | None, typer.Option("--penalty", help="l1 (default), l2, elastic_net, group_l2, sparse_group or mcp.")
]
Strength = Annotated[
    float | None,
    typer.Option(help="Strength lambda of the penalty, >= 0. Default: 0.1 for l2, 0.0125 for the others."),
]
TargetCompression = Annotated[
    float | None,
    typer.Option(
        help="How many times fewer weights the runs with a penalty are to leave: the strength adapts to it. (Those "
        "that prune have pruning.compression.) Default: none."
    ),
]
StrengthScale = Annotated[
    str | None,
    typer.Option(
        help="Strength per tensor: uniform (default), or inverse_std (in inverse proportion to its weights' spread)."
    ),
]
Threshold = Annotated[
    float | None, typer.Option(help="Threshold of the coherence gate, a cosine in [-1, 1]. Default: 0.7.")
]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the training data. Default: 60 for l2, 100 for the others.")
]
Device = Annotated[str | None, typer.Option(help="Torch device: auto, cpu (default), cuda, cuda:1, mps.")]


def _directory(text: str) -> Path:
    if not text.strip():
        raise UserError("--out '': give the directory a name, or leave the option out")
    return Path(text)


Out = Annotated[
    Path | None,
    typer.Option(parser=_directory, metavar="DIRECTORY", help="Default: a new one below strongreg-out."),
]
Json = Annotated[bool, typer.Option("--json", help="Print results.json on standard output instead of the table.")]
StopWhenDead = Annotated[
    int | None, typer.Option(help="End a run that has been at chance for this many epochs. Default: never.")
]


_KEYS = {
    "data": "data.name",
    "model": "model.name",
    "penalty": "penalty.name",
    "strength": "penalty.strength",
    "strength_scale": "penalty.strength_scale",
    "target_compression": "penalty.target_compression",
    "gate_threshold": "gate.threshold",
    "epochs": "training.epochs",
    "device": "training.device",
    "stop_when_dead": "training.stop_when_dead",
}
"""The key of the recipe behind each option."""


def recipe_of(
    file: Path | None, settings: list[str] | None, defaults: dict[str, Any] | None = None, **options: Any
) -> Recipe:
    """The recipe that a command asked for: a file or the penalty's defaults, then options, then --set.

    Args:
        file: of --recipe.
        settings: of --set.
        defaults: the command's own, where no file was given.
        **options: by name, None where one was not given.

    Returns:
        The recipe.

    Raises:
        UserError: something in it is wrong.
    """
    given = {_KEYS[name]: value for name, value in options.items() if value is not None}
    given |= parse_settings(settings or [])
    if file is not None:
        return build_recipe(given, read_recipe(file))
    name = str(given.get("penalty.name", "l1"))
    return build_recipe({**default_changes(name), **(defaults or {}), **given})


def most_workers(recipe: Recipe) -> int:
    """How many processes train at a time where the user says nothing.

    Args:
        recipe: of the runs.

    Returns:
        The number of cores on the CPU, 1 elsewhere.
    """
    return (os.cpu_count() or 1) if recipe.training.device == "cpu" else 1


def refuse_target(recipe: Recipe) -> None:
    """Check that a recipe whose strength is searched does not adapt it.

    Args:
        recipe: the recipe.

    Raises:
        UserError: it does.
    """
    if recipe.penalty.target_compression is not None:
        raise UserError(
            f"penalty.target_compression={recipe.penalty.target_compression:g} adapts the strength that is searched "
            "for here: leave it out, or use it with train or compare"
        )


def methods_of(text: str, known: Sequence[Method]) -> list[Method]:
    """The methods of --methods.

    Args:
        text: their names, separated by commas.
        known: those that there are.

    Returns:
        The methods, each once, in the order of ``known``.

    Raises:
        UserError: one is unknown, or a name is missing.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"--methods {text!r}: a name is missing; write some of {','.join(known)}, separated by commas")
    for name in names:
        check_known("method", name, known)
    return [method for method in known if method in names]


def new_directory(command: str) -> Path:
    """A directory that does not exist yet.

    Args:
        command: that writes it.

    Returns:
        Its path, below strongreg-out.
    """
    parent = Path("strongreg-out")
    number = 1
    while (parent / f"{command}-{number}").exists():
        number += 1
    return parent / f"{command}-{number}"
