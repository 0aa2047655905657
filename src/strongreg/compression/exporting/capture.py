"""A network as torch.export sees it, and inputs to try it with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from strongreg.compression.errors import ExportError
from strongreg.compression.sparse_inference.layers import SparseConv1x1, SparseLinear
from strongreg.compression.torch_export import quiet_export, reason


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
        for name, module in model.named_modules():
            if isinstance(module, SparseLinear | SparseConv1x1):
                kind = type(module).__name__
                raise ExportError(f"{name or 'it'} is a {kind}: export the network before it is sparsified")
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and not parameter.is_meta and not parameter.isfinite().all():
                raise ExportError(f"{name} of {type(model).__name__} holds NaN or infinity: export a network without")
        try:
            copied = copy.deepcopy(model).cpu().eval()
        except (RuntimeError, TypeError) as error:
            raise ExportError(f"{type(model).__name__} cannot be copied: {reason(error)}") from error
        inputs = tuple(each.detach().cpu().clone() for each in inputs)
        try:
            with torch.no_grad():
                outputs = copied(*copy.deepcopy(inputs))
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
            with quiet_export(), torch.no_grad():
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
