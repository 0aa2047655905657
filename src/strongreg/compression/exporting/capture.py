"""A network as torch.export sees it, and inputs to try it with."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from strongreg.compression.errors import ExportError

_LONGEST_REASON = 300
_LOUD = ("torch", "onnxscript")
_OF_THE_EXPORTER: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"The tensor attributes? .*_flat_weights"),  # every LSTM, GRU and RNN of torch
)
"""What torch 2.13 warns of in its own code; warnings of the network itself pass."""


@dataclass(frozen=True)
class Candidate:
    """A network to export, with inputs of the shapes it takes.

    Args:
        model: a copy, in evaluation mode and on the CPU.
        inputs: what it is called with, on the CPU, each of any shape and dtype.
        batched: for each of them, whether its first dimension is the batch.
        num_outputs: tensors that it returns.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    batched: tuple[bool, ...]
    num_outputs: int

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> Candidate:
        """Copy a network and its inputs.

        Args:
            model: on any device and in any mode; it is left as it is.
            example_inputs: a tensor or several. The first dimension of the first is the batch, and so is that of every
                other of the same size.

        Returns:
            The copies.

        Raises:
            TypeError: the inputs are no tensors, the model is none, or it returns something else than tensors.
            ValueError: the first input has no batch, or it is empty.
            ExportError: the network cannot be copied, or fails on these inputs.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
        if not isinstance(inputs, Sequence) or not inputs or not all(isinstance(each, Tensor) for each in inputs):
            raise TypeError(f"example_inputs={_shown(example_inputs)}: give a tensor, or a tuple of them")
        if inputs[0].dim() == 0 or any(each.numel() == 0 for each in inputs):
            shapes = [tuple(each.shape) for each in inputs]
            raise ValueError(f"example_inputs of shapes {shapes}: the first dimension is the batch, of 1 or more")
        try:
            copied = copy.deepcopy(model).cpu().eval()
        except (RuntimeError, TypeError) as error:
            raise ExportError(f"{type(model).__name__} cannot be copied: {reason(error)}") from error
        inputs = tuple(each.detach().cpu() for each in inputs)
        try:
            with torch.no_grad():
                outputs = copied(*inputs)
        except Exception as error:
            raise ExportError(f"{type(model).__name__} fails on the example inputs: {reason(error)}") from error
        batched = tuple(each.dim() > 0 and len(each) == len(inputs[0]) for each in inputs)
        return cls(copied, inputs, batched, len(tensors_of(outputs)))

    @property
    def name(self) -> str:
        """The network's class, for messages."""
        return type(self.model).__name__

    @property
    def batch_size(self) -> int:
        """That of the example inputs."""
        return len(self.inputs[0])

    @property
    def num_bytes(self) -> int:
        """What parameters and buffers take; tied ones count once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def inputs_at(self, batch_size: int) -> tuple[Tensor, ...]:
        """Random inputs of the same kind; the same ones every time.

        Floating-point numbers are drawn from those of the example, or from a normal distribution where it has but one.
        Anything else (token numbers, masks) is made of whole rows of the example.

        Args:
            batch_size: >= 1.

        Returns:
            One per input; those without a batch are those of the example.
        """
        generator = torch.Generator().manual_seed(batch_size)
        return tuple(
            _drawn(each, batch_size, generator) if batched else each
            for each, batched in zip(self.inputs, self.batched, strict=True)
        )

    def capture(self, *, dynamic_batch: bool) -> torch.export.ExportedProgram:
        """The network's graph.

        Args:
            dynamic_batch: whether the graph takes batches of any size.

        Returns:
            What torch.export makes of it.

        Raises:
            ExportError: torch.export cannot.
        """
        # torch.export would take a batch size of 1 for a constant
        inputs = self.inputs_at(2) if dynamic_batch and self.batch_size == 1 else self.inputs
        shapes: Any = torch.export.ShapesCollection()
        if dynamic_batch:
            batch = torch.export.Dim("batch")
            for each, batched in zip(inputs, self.batched, strict=True):
                if batched:
                    shapes[each] = {0: batch}
        try:
            with _standard_error_of_success(), quiet(), torch.no_grad():
                return torch.export.export(self.model, inputs, dynamic_shapes=shapes)
        except Exception as error:
            if dynamic_batch and "Constraints violated" in str(error):
                raise ExportError(
                    f"{self.name} does not take batches of any size, or another dimension of the batch's size, "
                    f"{len(inputs[0])}, was taken for it: give an example of another batch size, or dynamic_batch=False"
                ) from error
            raise ExportError(f"torch cannot export {self.name}: {reason(error)}") from error


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of a network's outputs, in order.

    Args:
        outputs: a tensor, or tuples, lists and dictionaries of tensors, of any depth.

    Returns:
        The tensors.

    Raises:
        TypeError: there is something else.
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if not isinstance(outputs, list | tuple):
        raise TypeError(f"the network returns a {type(outputs).__name__}: it must return tensors, alone or in tuples")
    return [tensor for part in outputs for tensor in tensors_of(part)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporters log, and warn of in their own code."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category, message in _OF_THE_EXPORTER:
            warnings.filterwarnings("ignore", message, category)
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def reason(error: BaseException) -> str:
    """What lies at the bottom of an exception, in one line.

    Args:
        error: any exception.

    Returns:
        The first line of the text of its first cause, or its type.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__


@contextlib.contextmanager
def _standard_error_of_success() -> Iterator[None]:
    """Where torch.export fails it prints half a graph there; where it does not, the network's own words pass."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        yield
    sys.stderr.write(printed.getvalue())


def _drawn(example: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    shape = (batch_size, *example.shape[1:])
    if not example.is_floating_point():
        return example[torch.randint(len(example), (batch_size,), generator=generator)]
    values = example.flatten()
    if bool((values == values[0]).all()):
        return torch.randn(shape, generator=generator).to(example.dtype)
    return values[torch.randint(len(values), shape, generator=generator)]


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({', '.join(type(each).__name__ for each in value)})"
    return type(value).__name__
