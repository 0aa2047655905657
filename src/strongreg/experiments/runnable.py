"""Whether a recipe can be run here, asked before anything is written or any process is started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strongreg.experiments.engine import check_board, check_method
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import WITHOUT_EFFECT, Method, Recipe, show_recipe
from strongreg.penalties import L1
from strongreg.regularizer import Regularizer


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
    models: dict[str, nn.Module] = {}
    for method in methods:
        own = recipe.for_method(method)
        text = show_recipe(own)
        if text not in models:
            models[text] = _built(own, data_dir)
        check_method(method, models[text], own.pruning.compression)


def _built(recipe: Recipe, data_dir: Path | None) -> nn.Module:
    if recipe.training.tensorboard:
        check_board()
    data = recipe_data(recipe, data_dir)
    options = recipe.model.model_dump(exclude={"name"})
    model = build_model(recipe.model.name, data.image_shape, data.num_classes, **options)
    try:
        Regularizer(model, L1(0.0))
    except ValueError as error:
        raise UserError(
            f"model {recipe.model.name!r}: nothing in it can be penalized or pruned; choose one that trains at least "
            "one weight of two or more dimensions outside normalization and embedding modules"
        ) from error
    return model


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
