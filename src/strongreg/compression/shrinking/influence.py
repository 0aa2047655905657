"""Which elements of which activations have a say in what the network returns.

An element that every reader weighs with 0 has none, nor have the elements from which only such are computed. One pass
through the operations, backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from strongreg.compression.shrinking.capture import Program
from strongreg.compression.shrinking.constants import Known, Value
from strongreg.compression.shrinking.operations import (
    BATCH_NORM,
    CONVOLUTIONS,
    ELEMENTWISE,
    MATRIX_PRODUCTS,
    MOVEMENTS,
    NORMALIZATIONS,
    POOLS,
    REDUCTIONS,
    SOFTMAXES,
    TRANSPOSED_CONVOLUTIONS,
    argument,
    arguments,
    channel_dim,
    channels_read,
    is_plain_attention,
    name_of,
    reduced_dims,
    sources,
)

Influence = dict[fx.Node, Any]
"""For each node a boolean tensor of its output's shape, or a list of them."""


def find_influence(program: Program, found: Mapping[fx.Node, Value]) -> Influence:
    """Follow back from the outputs what they are computed from.

    Args:
        program: the network's operations.
        found: what is known of each output, :func:`find_constants`.

    Returns:
        For each node whether each element of its output matters.
    """
    matters: Influence = {node: _full(value, False) for node, value in found.items()}
    for node in program.output.all_input_nodes:
        matters[node] = _full(found[node], True)
    for node in reversed(program.nodes):
        if node.op == "call_function":
            _spread(node, found, matters)
    return matters


def _full(value: Value, fill: bool) -> Any:
    if isinstance(value, list):
        return [_full(x, fill) for x in value]
    return torch.full(value.shape, fill) if isinstance(value, Known) else None


def _spread(node: fx.Node, found: Mapping[fx.Node, Value], matters: Influence) -> None:
    name, out = name_of(node), matters[node]
    if name == "getitem":
        source, index = arguments(node, 2)
        if matters[source][index] is not None:
            matters[source][index] |= out
        return
    tensors = [x for x in (out if isinstance(out, list) else [out]) if x is not None]
    if not any(bool(x.any()) for x in tensors):
        return
    rule: Any = _RULES.get(name)
    masks = None if rule is None else rule(node, found, out)
    if masks is None:
        masks = {source: _full(found[source], True) for source in node.all_input_nodes}
    for source, mask in masks.items():
        matters[source] = _either(matters[source], mask)


def _either(a: Any, b: Any) -> Any:
    if isinstance(a, list):
        return [_either(x, y) for x, y in zip(a, b, strict=True)]
    return None if a is None or b is None else a | b


def _reduced(mask: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: an element matters where any of its copies does."""
    return mask.double().sum_to_size(shape) > 0


# ---------------------------------------------------------------------- one rule per kind of operation


def _elementwise(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence:
    inputs = [source for source in node.all_input_nodes if isinstance(found[source], Known)]
    masks = {}
    for source in inputs:
        mask = out
        if name_of(node) == "mul":
            for other in inputs:
                if other is not source:
                    mask = mask & ~found[other].zero
        masks[source] = _reduced(mask, found[source].shape)
    return masks


def _movement(node: fx.Node, found: Mapping[fx.Node, Value], out: Any) -> Influence:
    source = node.all_input_nodes[0]
    shape = found[source].shape
    mask = torch.zeros(shape.numel(), dtype=torch.bool)
    for taken, part in zip(sources(node, shape), out if isinstance(out, list) else [out], strict=True):
        places = taken[part]
        mask[places[places >= 0]] = True
    return {source: mask.reshape(shape)}


def _cat(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence | None:
    dim = argument(node, 1, "dim", 0)
    parts = list(argument(node, 0))
    if name_of(node) == "cat" and any(len(found[source].shape) != out.dim() for source in parts):
        return None  # an empty tensor, of any shape
    if name_of(node) == "cat":
        pieces = out.split([found[source].shape[dim] for source in parts], dim)
    else:
        pieces = out.unbind(dim)
    masks: Influence = {}
    for source, piece in zip(parts, pieces, strict=True):
        masks[source] = masks[source] | piece if source in masks else piece
    return masks


def _linear(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence | None:
    """Back along the weights that are not 0."""
    inputs, weight = arguments(node, 2)
    if inputs is weight:
        return None
    used = (found[weight].unknown | (found[weight].value != 0)).double()
    masks = {source: _full(found[source], True) for source in node.all_input_nodes}
    return {**masks, inputs: torch.matmul(out.double(), used) > 0.5}


def _convolution(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence | None:
    """Every place of a channel, where any that matters reads it: which places do changes with the image's size."""
    inputs, weight = arguments(node, 2)
    if inputs is weight:
        return None
    shape = found[inputs].shape
    dim = channel_dim(node, shape)
    rows = out.movedim(dim, 0).flatten(1).any(1)
    used = channels_read(node, found[weight].unknown | (found[weight].value != 0), shape[dim])
    columns = (rows[:, None] & used).any(0)
    masks = {source: _full(found[source], True) for source in node.all_input_nodes}
    return {**masks, inputs: columns.reshape(-1, *[1] * (len(shape) - dim - 1)).expand(shape)}


def _matrix_product(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence | None:
    first, second = arguments(node, 2)
    a, b = found[first], found[second]
    if min(a.value.dim(), b.value.dim()) < 2:
        return None
    of_a = torch.matmul(out.double(), (~b.zero).double().mT) > 0.5
    of_b = torch.matmul((~a.zero).double().mT, out.double()) > 0.5
    masks = {first: _reduced(of_a, a.shape)}
    masks[second] = _either(masks.get(second, torch.zeros(b.shape, dtype=torch.bool)), _reduced(of_b, b.shape))
    return masks


def _batch_norm(node: fx.Node, found: Mapping[fx.Node, Value], out: list[Tensor]) -> Influence:
    inputs, weight = arguments(node, 2)
    mask = out[0]
    if weight is not None:
        used = ~found[weight].zero
        mask = mask & used.reshape(-1, *[1] * (mask.dim() - 2))
    masks = {source: _full(found[source], True) for source in node.all_input_nodes}
    return {**masks, inputs: mask}


def _pool(node: fx.Node, found: Mapping[fx.Node, Value], out: Any) -> Influence:
    """All places of a channel, where any matters."""
    source = node.all_input_nodes[0]
    mask = out[0] | out[1] if isinstance(out, list) else out
    num_mixed = POOLS[name_of(node)]
    mask = mask.flatten(-num_mixed).any(-1)
    return {source: mask.reshape(*mask.shape, *[1] * num_mixed).expand(found[source].shape)}


def _reduction(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence:
    source = node.all_input_nodes[0]
    shape = list(found[source].shape)
    for dim in reduced_dims(node, len(shape)):
        shape[dim] = 1
    return {source: out.reshape(shape).expand(found[source].shape)}


def _softmax(node: fx.Node, _found: Mapping[fx.Node, Value], out: Tensor) -> Influence:
    (dim,) = reduced_dims(node, out.dim())
    return {node.all_input_nodes[0]: out.any(dim, keepdim=True).expand(out.shape)}


def _normalization(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence:
    num = len(argument(node, 1))
    whole = out.flatten(-num).any(-1).reshape(*out.shape[:-num], *[1] * num).expand(out.shape)
    masks = {source: _full(found[source], True) for source in node.all_input_nodes}
    return {**masks, argument(node, 0): whole}


def _attention(node: fx.Node, found: Mapping[fx.Node, Value], out: Tensor) -> Influence | None:
    """A head matters where any of its outputs does, a dimension of the values where it does for any query.

    Which keys a query looks at does not matter where all values are the same.
    """
    query, key, value = arguments(node, 3)
    if not is_plain_attention(node) or len({query, key, value}) < 3:
        return None
    shapes = [found[source].shape for source in (query, key, value)]
    if len({shape[:-2] for shape in shapes}) > 1:
        return None
    varies = out & found[node].unknown
    of_head = varies.flatten(-2).any(-1)[..., None, None]
    return {
        query: varies.any(-1, keepdim=True).expand(shapes[0]),
        key: of_head.expand(shapes[1]),
        value: out.any(-2, keepdim=True).expand(shapes[2]),
    }


_RULES = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(MOVEMENTS, _movement),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS), _convolution),
    "linear": _linear,
    **dict.fromkeys(MATRIX_PRODUCTS, _matrix_product),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(SOFTMAXES, _softmax),
    **dict.fromkeys(NORMALIZATIONS, _normalization),
    BATCH_NORM: _batch_norm,
    "scaled_dot_product_attention": _attention,
}
