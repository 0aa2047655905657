"""A trained network again, from the files of its run, or from its weights and a word on what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from strongreg.compression import PackedFileError, is_packed, load_into, load_packed, load_shrunk
from strongreg.experiments.data import InputShape, input_format
from strongreg.experiments.data.text import DEFAULT_CONTEXT, NUM_BYTES
from strongreg.experiments.engine.record import RECIPE_FILE, WEIGHTS_FILE
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import MODELS, build_model
from strongreg.experiments.models.inputs import example_inputs, kind_of, output_shape
from strongreg.experiments.recipe import build_recipe, read_recipe

_BATCH_SIZE = 2  # as of the batch on which a network of one's own is tried


@dataclass(frozen=True)
class Trained:
    """A network with its weights.

    Args:
        model: on the CPU, in training mode; smaller than its code builds it if its weights are those of a shrunk one.
        input_shape: channels, height, width of the images it takes, or the bytes of a passage of text.
        num_classes: its outputs.
        weights: the file that its weights come from.
    """

    model: nn.Module
    input_shape: InputShape
    num_classes: int
    weights: Path

    def example(self, batch_size: int) -> Tensor:
        """Random inputs, always the same.

        Args:
            batch_size: number of them, >= 1.

        Returns:
            Images, standard normal, or tokens.
        """
        generator = torch.Generator().manual_seed(0)
        return example_inputs(batch_size, self.input_shape, self.num_classes, generator)


def load_trained(
    source: Path,
    *,
    weights: Path | None = None,
    recipe: Path | None = None,
    model: str | None = None,
    image_shape: InputShape | None = None,
    num_classes: int | None = None,
) -> Trained:
    """Build a network and load its weights, those of a shrunk one too.

    What it is says its recipe: the one given, or that beside the weights. The other arguments win over it; all three
    together need none.

    Args:
        source: directory of a run, or one with a single run in or below it; or a packed or safetensors file.
        weights: the file to take instead of the run's own.
        recipe: a TOML file.
        model: name of a network, or package.module:factory.
        image_shape: channels, height, width; of a text the bytes of a passage.
        num_classes: number of outputs.

    Returns:
        The network.

    Raises:
        UserError: a file is missing or damaged, the network is unknown or not said, or the weights do not fit it.
    """
    file, folder = weights_file(source, weights)
    beside = folder / RECIPE_FILE
    described = None if recipe is None and not beside.is_file() else build_recipe({}, read_recipe(recipe or beside))
    if described is None and None in (model, image_shape, num_classes):
        raise UserError(
            f"which network is {file}? Give the directory of its run, which is enough, or its --recipe, or --model, "
            "--image-shape and --num-classes"
        )
    options: dict[str, Any] = {}
    if described is not None:
        if model is None:
            model, options = described.model.name, described.model.model_dump(exclude={"name"})
        if image_shape is None or num_classes is None:
            shape, classes = _format(model, described.data.name, described.data.context)
            image_shape, num_classes = image_shape or shape, num_classes or classes
    assert model is not None
    assert image_shape is not None
    assert num_classes is not None
    network = build_model(model, image_shape, num_classes, **options)
    try:
        _load(network, read_weights(file), file, image_shape, num_classes)
    except ValueError as error:
        built = f"{model} for {kind_of(image_shape)} of {'x'.join(map(str, image_shape))} and {num_classes} classes"
        raise UserError(f"{error}; the model is {built}") from error
    return Trained(network, image_shape, num_classes, file)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a packed file or a safetensors file.

    Args:
        file: of either kind.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or of neither kind.
    """
    try:
        return load_packed(file) if is_packed(file) else read_safetensors(file)
    except PackedFileError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        file: where it is.

    Returns:
        Tensors by name, in the order of their names, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        # in an order of their own, which is another one each time: a file that is written from them must not be
        return dict(sorted(load(file.read_bytes()).items()))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file} is no safetensors file, or damaged: {error}") from error


def _load(
    network: nn.Module, state: Mapping[str, Tensor], file: Path, image_shape: InputShape, num_classes: int
) -> None:
    """Load weights into a network, which becomes smaller where they are; ValueError if they do not fit."""
    own = network.state_dict()
    shapes = {name: (tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state}
    differing = [name for name, (there, here) in shapes.items() if there != here]
    if own.keys() <= state.keys():  # names that are missing tell more than shapes
        for name in differing:
            there, here = shapes[name]
            if len(there) != len(here) or any(a > b for a, b in zip(there, here, strict=True)):
                raise ValueError(f"{file} does not fit the model: {name!r} is {there} there, {here} here")
    try:
        load_shrunk(network, state)
    except ValueError:
        load_into(network, state, file)  # says which names do not fit
        raise
    if differing and (problem := _problem(network, image_shape, num_classes)):
        there, here = shapes[differing[0]]
        raise ValueError(f"{file} does not fit the model: {differing[0]!r} is {there} there, {here} here; {problem}")


def _problem(network: nn.Module, image_shape: InputShape, num_classes: int) -> str | None:
    """Why a network is no shrunk one: shrinking leaves what it takes and returns as they were."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            outputs = network.eval()(example_inputs(_BATCH_SIZE, image_shape, num_classes))
    except Exception as error:  # whatever its code raises
        first = str(error).strip().partition("\n")[0]
        return f"a network of these sizes fails on such {kind_of(image_shape)} ({first})"
    finally:
        for module, training in modes:
            module.training = training
    shape = tuple(outputs.shape)
    if shape == output_shape(_BATCH_SIZE, image_shape, num_classes):
        return None
    return f"a network of these sizes returns shape {shape} for {_BATCH_SIZE} inputs"


def weights_file(source: Path, weights: Path | None = None) -> tuple[Path, Path]:
    """The file of weights that is meant, and the directory where its recipe may lie.

    Args:
        source: directory of a run, or one with a single run in or below it; or a file.
        weights: the file to take instead of the run's own.

    Returns:
        An existing file, and a directory.

    Raises:
        UserError: there is no such file, or there are several.
    """
    if source.is_dir():
        folder = _run_in(source)
        file = weights or folder / WEIGHTS_FILE
    elif weights is not None:
        raise UserError(f"--weights {weights} replaces the weights of a run, and {source} is no directory: give one")
    else:
        folder, file = source.parent, source
    if not file.is_file():
        raise UserError(f"there is no file {file}: give the directory of a finished run, or a file of weights")
    return file, folder


def _run_in(directory: Path) -> Path:
    """The run's own directory: the one given, or the only one with weights below it."""
    if (directory / WEIGHTS_FILE).exists():
        return directory
    found = sorted(file.parent for file in directory.glob(f"**/{WEIGHTS_FILE}"))
    if len(found) > 1:
        raise UserError(f"{directory} holds {len(found)} runs: name one, such as {found[0]}")
    return found[0] if found else directory


def _format(model: str, data: str, context: int | None) -> tuple[InputShape, int]:
    """What a network was trained on; a file of text need not be there any more."""
    if model in MODELS and MODELS[model].reads == "text":
        return (context or DEFAULT_CONTEXT,), NUM_BYTES
    try:
        return input_format(data, context)
    except UserError as error:
        raise UserError(f"{error}; or give --image-shape and --num-classes") from error
