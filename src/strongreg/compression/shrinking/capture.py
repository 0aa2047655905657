"""A network as a graph of torch operations, with its tensors by name."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from strongreg.compression.errors import ShrinkError
from strongreg.compression.shrinking.operations import name_of


@dataclass(frozen=True)
class Program:
    """What a network computes, in evaluation mode.

    Args:
        nodes: the operations in order, placeholders first and the output last; none changes a tensor in place.
        names: of the network's parameters and buffers, by their placeholders.
        tensors: parameters, buffers and other constants, by their placeholders.
        example: the values of the other placeholders, the network's inputs.
    """

    nodes: tuple[fx.Node, ...]
    names: Mapping[fx.Node, str]
    tensors: Mapping[fx.Node, Tensor]
    example: Mapping[fx.Node, Any]

    @property
    def output(self) -> fx.Node:
        """The last node; its arguments are what the network returns."""
        return self.nodes[-1]


def capture(model: nn.Module, inputs: tuple[Any, ...]) -> Program:
    """Look into a network.

    Args:
        model: the network; it is not changed.
        inputs: positional inputs.

    Returns:
        Its operations on these inputs.

    Raises:
        ShrinkError: torch.export cannot follow the network, or a weight is not finite.
    """
    model = copy.deepcopy(model).cpu().eval()
    inputs = on_cpu(inputs)
    if any(isinstance(x, Tensor) and not x.numel() for x in torch.utils._pytree.tree_leaves(inputs)):
        raise ShrinkError("an example input has no elements, and shows nothing of the network: give one example")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ShrinkError(f"{name} holds NaN or infinity: shrink a network that has been trained without")
    try:
        with quiet():
            exported = torch.export.export(model, inputs, strict=False).run_decompositions({})
    except Exception as error:  # torch.export raises whatever the network's own code does
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ShrinkError(f"torch.export cannot follow {type(model).__name__} on these inputs: {reason}") from error
    # assertions on dtypes compute nothing
    nodes = tuple(node for node in exported.graph.nodes if not name_of(node).startswith("_assert"))
    placeholders = {node.name: node for node in nodes if node.op == "placeholder"}
    given = iter(torch.utils._pytree.tree_leaves(inputs))
    own = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    names: dict[fx.Node, str] = {}
    tensors: dict[fx.Node, Tensor] = {}
    example: dict[fx.Node, Any] = {}
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            example[node] = next(given)
        elif spec.target is not None:
            tensors[node] = _tensor(exported, model, spec.target)
            if spec.target in own:
                names[node] = spec.target
    return Program(nodes, names, tensors, example)


def _tensor(exported: torch.export.ExportedProgram, model: nn.Module, name: str) -> Tensor:
    # buffers that are not saved, and tensors that the code made, are constants
    of_name: dict[str, Tensor] = {**dict(model.named_buffers()), **exported.constants, **exported.state_dict}
    return of_name[name].detach()


def on_cpu(inputs: Any) -> Any:
    """Inputs on the CPU.

    Args:
        inputs: any nesting of tensors and other values.

    Returns:
        The same nesting.
    """
    return torch.utils._pytree.tree_map(lambda x: x.detach().cpu().clone() if isinstance(x, Tensor) else x, inputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch.export says to itself from the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
