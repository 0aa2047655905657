"""A network as a graph of torch operations, with its tensors by name."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from strongreg.compression.errors import ShrinkError
from strongreg.compression.shrinking.operations import name_of
from strongreg.compression.sparse_inference.layers import SparseConv1x1, SparseLinear
from strongreg.compression.torch_export import quiet_export, reason


@dataclass(frozen=True)
class Program:
    """What a network computes, in evaluation mode.

    Args:
        nodes: the operations in order, placeholders first and the output last; none changes a tensor in place.
        names: of the network's parameters and buffers, by their placeholders.
        tensors: parameters, buffers and other constants, by their placeholders.
        example: the values of the other placeholders, the network's inputs.
        of_layers: the names of the weights of linear layers and convolutions, which add a bias if they are given one.
    """

    nodes: tuple[fx.Node, ...]
    names: Mapping[fx.Node, str]
    tensors: Mapping[fx.Node, Tensor]
    example: Mapping[fx.Node, Any]
    of_layers: frozenset[str]

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
    _check_weights(model)
    model = copied(model).cpu().eval()
    inputs = on_cpu(inputs)
    if any(isinstance(x, Tensor) and not x.numel() for x in torch.utils._pytree.tree_leaves(inputs)):
        raise ShrinkError("an example input has no elements, and shows nothing of the network: give one example")
    try:
        with quiet_export(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, inputs, strict=False).run_decompositions({})
    except Exception as error:  # torch.export raises whatever the network's own code does
        name = type(model).__name__
        raise ShrinkError(f"torch.export cannot follow {name} on these inputs: {reason(error)}") from error
    # assertions on dtypes compute nothing
    nodes = tuple(node for node in exported.graph.nodes if not name_of(node).startswith("_assert"))
    if any(node.op == "get_attr" for node in nodes):
        name = type(model).__name__
        raise ShrinkError(f"{name} branches on its data (torch.cond and the like), which cannot be followed")
    placeholders = {node.name: node for node in nodes if node.op == "placeholder"}
    given = iter(torch.utils._pytree.tree_leaves(inputs))
    own = set(model.state_dict(keep_vars=True)) | {name for name, _ in model.named_parameters(remove_duplicate=False)}
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
    layers = ((path, x) for path, x in model.named_modules() if isinstance(x, nn.Linear | _ConvNd))
    of_layers = frozenset(f"{path}.weight".removeprefix(".") for path, _ in layers)
    return Program(nodes, names, tensors, example, of_layers)


def _check_weights(model: nn.Module) -> None:
    """Weights that can be looked at; buffers may hold any numbers, such as -inf in a mask."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseConv1x1):
            raise ShrinkError(
                f"{name or 'it'} is a {type(module).__name__}: shrink the network before it is sparsified"
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ShrinkError(f"{name} has no shape yet: call the network once, so that its lazy layers are built")
        if parameter.is_meta:
            raise ShrinkError(f"{name} is on the meta device, without values: load the network's weights first")
        if parameter.is_complex():
            raise ShrinkError(f"{name} is complex: only networks of real weights are shrunk")
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise ShrinkError(f"{name} holds NaN or infinity: shrink a network that has been trained without")


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network.

    Args:
        model: the network.

    Returns:
        The copy.

    Raises:
        ShrinkError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the network's own __deepcopy__ and what it holds raise
        raise ShrinkError(
            f"{type(model).__name__} cannot be copied: {reason(error)}. Where a weight is computed from others "
            "(torch.nn.utils.prune, weight_norm), make it a parameter first: prune.remove, remove_weight_norm"
        ) from error


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
