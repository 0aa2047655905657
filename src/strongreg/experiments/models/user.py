"""Networks of the user's own, named ``package.module:factory``."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from strongreg.experiments.data import InputShape
from strongreg.experiments.errors import UserError
from strongreg.experiments.models.inputs import example_inputs, kind_of, output_shape

_FORM = "a network of your own is named package.module:factory"
_BATCH = 2
_LONGEST = 400


def build_user_model(name: str, image_shape: InputShape, num_classes: int) -> nn.Module:
    """Import a factory and call it; its network keeps the weights it comes with.

    The current directory is searched first, as by ``python -m``. One batch of zeros is passed through the network in
    evaluation mode to see that it fits the images and classes.

    Args:
        name: ``package.module:factory``; the factory takes (image_shape, num_classes) and returns a module.
        image_shape: channels, height, width; of a text the bytes of a passage alone.
        num_classes: number of outputs.

    Returns:
        The network.

    Raises:
        UserError: the module or factory cannot be found, is not what it should be or raises, or the network does not
            map images, or each token, to one output per class.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"model {name!r}: {_FORM}, such as nets.mine:build for build() in nets/mine.py")
    with _current_directory_first():
        factory = _find(name, _import(name, module_name), attribute)
        try:
            model = factory(image_shape, num_classes)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"model {name!r}: {attribute}({image_shape}, {num_classes}) raised {_tell(error)}; "
                "a factory takes (image_shape, num_classes) and returns a torch.nn.Module"
            ) from error
        if not isinstance(model, nn.Module):
            raise UserError(
                f"model {name!r}: {attribute}({image_shape}, {num_classes}) returned {_show_type(model)}; "
                "a factory returns a torch.nn.Module"
            )
        _check_output(name, model, image_shape, num_classes)
    return model


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # what the user's module does to the path stays
            sys.path.remove(directory)


def _import(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"model {name!r}: there is no module {missing!r} in {Path.cwd()} or among the installed packages; "
                f"{_FORM}: start where the package lies, or install it"
            ) from error
        raise UserError(
            f"model {name!r}: importing {module_name} raised {_tell(error)}; see that python -c 'import {module_name}' "
            "works here"
        ) from error


def _find(name: str, module: ModuleType, attribute: str) -> Any:
    if not hasattr(module, attribute):
        close = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {close[0]!r}?" if close else _FORM
        raise UserError(f"model {name!r}: module {module.__name__!r} has no {attribute!r}; {hint}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise UserError(
            f"model {name!r}: {attribute!r} is {_show_type(factory)} and cannot be called; "
            "name a function (image_shape, num_classes) that returns a torch.nn.Module"
        )
    return factory


def _check_output(name: str, model: nn.Module, image_shape: InputShape, num_classes: int) -> None:
    """Pass zeros through, and leave the modes of all modules and torch's random numbers as they were."""
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = example_inputs(_BATCH, image_shape, num_classes).to(device)
    kind, expected = kind_of(image_shape), output_shape(_BATCH, image_shape, num_classes)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            outputs = model.eval()(inputs)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"model {name!r}: the network fails on {kind} of shape {tuple(inputs.shape)}: {_tell(error)}; "
            "build it for the image_shape that the factory is given"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    shown = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else _show_type(outputs)
    if not isinstance(outputs, Tensor) or outputs.shape != expected:
        raise UserError(
            f"model {name!r}: the network turns {kind} of shape {tuple(inputs.shape)} into {shown} instead of shape "
            f"{expected}; return one output per class, num_classes in all"
        )


def _tell(error: BaseException) -> str:
    """Type and text of an exception, on one line of bearable length."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST, placeholder=" ...").removesuffix(":")


def _show_type(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
