"""Whether a recipe can be run here, asked before anything is written or any process is started."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strongreg.experiments.data.optional import first_line
from strongreg.experiments.engine import check_board, check_method
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import WITHOUT_EFFECT, Method, Recipe, build_recipe, show_recipe
from strongreg.penalties import L1
from strongreg.regularizer import Regularizer

_HELD_OUT = 1 / 6


def on_a_real_device(recipe: Recipe) -> Recipe:
    """The recipe with "auto" replaced by the best device that there is.

    Args:
        recipe: any recipe.

    Returns:
        The recipe to run.
    """
    if recipe.training.device != "auto":
        return recipe
    accelerator = _accelerator()
    device = "cpu" if accelerator is None else accelerator.type
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": device})})


def holding_out(recipe: Recipe) -> Recipe:
    """The recipe with images held out: to find a level or a strength is to choose, for which there are images apart.

    Args:
        recipe: any recipe.

    Returns:
        It, with a sixth of the training images as validation images where it holds out none.
    """
    if recipe.data.validation_share > 0:
        return recipe
    return build_recipe({"data.validation_share": _HELD_OUT}, recipe.model_dump())


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def check_runnable(recipe: Recipe, methods: Iterable[Method], data_dir: Path | None) -> None:
    """Check that there are device, data and network, and that they fit the methods.

    Args:
        recipe: what every run shares.
        methods: the methods to train.
        data_dir: where the data sets lie; None for the usual places.

    Raises:
        UserError: something is not there, or does not fit.
    """
    _check_device(recipe.training.device)
    built: dict[str, tuple[nn.Module, int]] = {}
    for method in methods:
        own = recipe.for_method(method)
        text = show_recipe(own)
        if text not in built:
            built[text] = _built(own, data_dir)
        model, num_examples = built[text]
        steps_per_epoch = math.ceil(num_examples / own.training.batch_size)
        check_method(method, model, own, own.training.epochs * steps_per_epoch)


def _check_device(name: str) -> None:
    """Whether torch computes on it here."""
    here = f"choose {' or '.join(_devices_here())} here"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} cannot be used: write auto, cpu, cuda, cuda:1 or mps; {here}") from error
    if device.type == "meta":
        raise UserError(f"device {name!r} cannot be used: its tensors hold no numbers; {here}")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device {name!r} cannot be used: {first_line(error)}; {here}") from error


def _devices_here() -> list[str]:
    """What --device may be on this machine."""
    accelerator = _accelerator()
    if accelerator is None:
        return ["auto", "cpu"]
    several = [f"{accelerator.type}:{i}" for i in range(1, torch.accelerator.device_count())]
    return ["auto", "cpu", accelerator.type, *several]


def slow_choices(recipe: Recipe, methods: Iterable[Method]) -> list[str]:
    """What in a recipe makes its runs slow, in a way that is easily taken for a program that hangs.

    Args:
        recipe: what every run shares; its device is a real one.
        methods: the methods to train.

    Returns:
        One line for each such choice.
    """
    sections = [recipe.for_method(method).training for method in methods]
    lines = []
    if any(section.precision == "fp16" and section.device == "cpu" for section in sections):
        lines.append(
            "training.precision=fp16 on the CPU is tens of times slower than fp32 where there are convolutions: "
            "fp32 and bf16 are for the CPU"
        )
    if any(section.compile for section in sections):
        lines.append("training.compile=true: every run begins with compiling, which takes about a minute")
    return lines


def _built(recipe: Recipe, data_dir: Path | None) -> tuple[nn.Module, int]:
    """The network, and how many examples it is trained on."""
    if recipe.training.tensorboard:
        check_board()
    data = recipe_data(recipe, data_dir)
    options = recipe.model.model_dump(exclude={"name"})
    model = build_model(recipe.model.name, data.input_shape, data.num_classes, **options)
    try:
        Regularizer(model, L1(0.0))
    except ValueError as error:
        raise UserError(
            f"model {recipe.model.name!r}: nothing in it can be penalized or pruned; choose one that trains at least "
            "one weight of two or more dimensions outside normalization and embedding modules"
        ) from error
    return model, len(data.train)


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
