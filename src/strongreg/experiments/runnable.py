"""Whether a recipe can be run here, asked before anything is written or any process is started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from strongreg.experiments.engine import check_board, check_method
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import WITHOUT_EFFECT, Method, Recipe, show_recipe


def on_a_real_device(recipe: Recipe) -> Recipe:
    """The recipe with "auto" replaced by the best device that there is.

    Args:
        recipe: any recipe.

    Returns:
        The recipe to run.
    """
    if recipe.training.device != "auto":
        return recipe
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if accelerator is None else accelerator.type
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": device})})


def check_runnable(recipe: Recipe, methods: Iterable[Method], data_dir: Path | None) -> None:
    """Check that there are device, data and network, and that they fit the methods.

    Args:
        recipe: what every run shares.
        methods: the methods to train.
        data_dir: where the data sets lie; None for the usual places.

    Raises:
        UserError: something is not there, or does not fit.
    """
    device = recipe.training.device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"device {device!r} cannot be used: {reason}") from error
    chosen = list(methods)
    for own in {show_recipe(r): r for r in map(recipe.for_method, chosen)}.values():
        if own.training.tensorboard:
            check_board()
        data = recipe_data(own, data_dir)
        options = own.model.model_dump(exclude={"name"})
        model = build_model(own.model.name, data.image_shape, data.num_classes, **options)
        for method in chosen:
            check_method(method, model)


def outcome(config: Any) -> Any:
    """What of a recipe decides its numbers.

    Args:
        config: a recipe as plain data, of any version; whatever else is returned as it is.

    Returns:
        The same without what changes no number.
    """
    if not isinstance(config, dict) or not isinstance(config.get("training"), dict):
        return config
    training = {key: value for key, value in config["training"].items() if key not in WITHOUT_EFFECT}
    return {**config, "training": training}
