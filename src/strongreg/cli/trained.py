"""The options that say which trained network is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongreg.experiments.data import InputShape
from strongreg.experiments.errors import UserError
from strongreg.experiments.trained import Trained, load_trained

Source = Annotated[Path, typer.Argument(help="Directory of a run, or a packed or safetensors file.")]
Weights = Annotated[
    Path | None, typer.Option(help="Packed or safetensors file to take instead of the run's own weights.")
]
Recipe = Annotated[
    Path | None, typer.Option(help="TOML file that says what the network is. Default: the one beside the weights.")
]
Model = Annotated[
    str | None, typer.Option(help="Network, or package.module:factory. Default: the recipe's.", metavar="NAME")
]
Shape = Annotated[
    str | None,
    typer.Option(help="What it takes; of a text the bytes. Default: that of the recipe's data.", metavar="C,H,W"),
]
NumClasses = Annotated[int | None, typer.Option(help="Its outputs. Default: the classes of the recipe's data.", min=1)]


def load(
    source: Path,
    weights: Path | None,
    recipe: Path | None,
    model: str | None,
    image_shape: str | None,
    num_classes: int | None,
) -> Trained:
    """The network that these options name.

    Args:
        source: of the argument.
        weights: of --weights.
        recipe: of --recipe.
        model: of --model.
        image_shape: of --image-shape.
        num_classes: of --num-classes.

    Returns:
        The network.

    Raises:
        UserError: as :func:`strongreg.experiments.trained.load_trained`, or the shape is none.
    """
    shape = None if image_shape is None else _image_shape(image_shape)
    return load_trained(source, weights=weights, recipe=recipe, model=model, image_shape=shape, num_classes=num_classes)


def _image_shape(text: str) -> InputShape:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise UserError(f"--image-shape {text!r}: write channels,height,width, such as 3,32,32; for text the bytes")
    return sizes
