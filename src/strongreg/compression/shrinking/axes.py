"""Which axes of which tensors belong together, so that whatever leaves one of them leaves all.

Every axis of every activation and parameter is an :class:`Axis`. What an operation does to it is one of three things:
it is the same axis on both sides (a rectifier, the channels of a convolution and the rows of its weight); each index of
a finer one belongs to an index of a coarser one (flattening, heads, groups, concatenation); or the operation needs it
as it is, and it is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    is_causal,
    is_plain_attention,
    name_of,
    reduced_dims,
    sources,
)


class Axis:
    """An axis of one or more tensors; axes that turn out to be the same are joined.

    Args:
        size: number of its indices.
        fixed: why nothing can be removed from it, or None.
    """

    def __init__(self, size: int, fixed: str | None = None) -> None:
        self.size = size
        self._fixed = fixed
        self._joined: Axis | None = None

    @property
    def root(self) -> Axis:
        """The one that stands for all that it was joined with."""
        axis = self
        while axis._joined is not None:
            axis = axis._joined
        return axis

    @property
    def fixed(self) -> str | None:
        """Why nothing can be removed from it, or None."""
        return self.root._fixed

    def fix(self, reason: str) -> None:
        """Keep it as it is.

        Args:
            reason: why; the first one stays.
        """
        self.root._fixed = self.root._fixed or reason

    def join(self, other: Axis) -> None:
        """From now on they are the same.

        Args:
            other: an axis of the same size; of another size, both are fixed.
        """
        a, b = self.root, other.root
        if a is b:
            return
        if a.size != b.size:
            for axis in (a, b):
                axis.fix("it is combined with an axis of another size")
            return
        b._joined = a
        a._fixed = a._fixed or b._fixed


@dataclass(frozen=True)
class Tie:
    """Each index of one axis belongs to one of another.

    Args:
        fine: the axis with more indices.
        coarse: candidates for the other; the first that is not fixed is taken and the others are fixed.
        index_of: for each candidate, the coarse index of each fine one, -1 for none.
    """

    fine: Axis
    coarse: tuple[Axis, ...]
    index_of: tuple[Tensor, ...]


Axes = list[Axis]

_REORDERINGS = frozenset(("roll", "channel_shuffle"))
"""Movements that put indices into an order that depends on how many there are."""


@dataclass
class Coupling:
    """The axes of a network's tensors.

    Args:
        axes: for each node those of its output, or a list of such lists.
        ties: between them.
    """

    axes: dict[fx.Node, Any]
    ties: list[Tie]


def couple(program: Program, found: Mapping[fx.Node, Value]) -> Coupling:
    """Find out which axes belong together.

    Args:
        program: the network's operations.
        found: the shapes, :func:`find_constants`.

    Returns:
        All axes and ties.
    """
    coupling = Coupling({}, [])
    for node in program.nodes:
        if node.op == "placeholder":
            is_input = node not in program.tensors
            coupling.axes[node] = _fresh(found[node], "it is the network's input" if is_input else None)
            if not is_input and node not in program.names:
                _fix(coupling.axes[node], "the network's code makes it")
        elif node.op == "call_function":
            coupling.axes[node] = _outputs(node, found, coupling)
    _join_tied(program, coupling)
    for node in program.output.all_input_nodes:
        _fix(coupling.axes[node], "the network returns it")
    return coupling


def _join_tied(program: Program, coupling: Coupling) -> None:
    """Parameters that are one tensor have the same axes; different views of one storage stay as they are."""
    by_storage: dict[int, list[fx.Node]] = {}
    for node, tensor in program.tensors.items():
        if tensor.numel():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(node)
    for first, *others in by_storage.values():
        if not any(node.users for node in (first, *others)):
            _fix(coupling.axes[first], "it is not used")
        for other in others:
            a, b = program.tensors[first], program.tensors[other]
            if (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride()):
                for one, same in zip(coupling.axes[first], coupling.axes[other], strict=True):
                    one.join(same)
            else:
                _fix((coupling.axes[first], coupling.axes[other]), "it shares its memory with another parameter")


def _fresh(value: Value, fixed: str | None) -> Any:
    if isinstance(value, list):
        return [_fresh(x, fixed) for x in value]
    return [Axis(size, fixed) for size in value.shape] if isinstance(value, Known) else []


def _fix(axes: Any, reason: str) -> None:
    for axis in axes:
        if isinstance(axis, Axis):
            axis.fix(reason)
        else:
            _fix(axis, reason)


def _outputs(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Any:
    if name_of(node) == "getitem":
        source, index = arguments(node, 2)
        return coupling.axes[source][index]
    rule = _RULES.get(name_of(node))
    axes = None if rule is None else rule(node, found, coupling)
    if axes is not None:
        return axes
    reason = f"{name_of(node) or node.name} needs all of it"
    for source in node.all_input_nodes:
        _fix(coupling.axes[source], reason)
    return _fresh(found[node], reason)


# ---------------------------------------------------------------------- one rule per kind of operation


def _elementwise(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    shape = found[node].shape
    axes: Axes = [Axis(size) for size in shape]
    for source in node.all_input_nodes:
        for own, axis in zip(reversed(coupling.axes[source]), reversed(axes), strict=False):
            if own.size == axis.size:
                axis.join(own)
    return axes


def _movement(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Any:
    source = node.all_input_nodes[0]
    shape, own = found[source].shape, coupling.axes[source]
    if name_of(node) in ("split", "split_with_sizes", "chunk"):
        return _split(node, found, coupling)
    outputs = [
        _moved(taken, shape, own, coupling, name_of(node)) if taken.numel() else [Axis(n, "empty") for n in taken.shape]
        for taken in sources(node, shape)
    ]
    return outputs if isinstance(found[node], list) else outputs[0]


def _split(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> list[Axes]:
    """Of equal parts each loses the same indices."""
    own = coupling.axes[node.all_input_nodes[0]]
    dim = argument(node, 2, "dim", 0) % len(own)
    sizes = {x.shape[dim] for x in found[node]}
    if len(sizes) > 1:
        own[dim].fix(f"{name_of(node)} cuts it into unequal parts")
        return [[*own[:dim], Axis(x.shape[dim], "it is a part of another"), *own[dim + 1 :]] for x in found[node]]
    (size,) = sizes
    part = Axis(size)
    coupling.ties.append(Tie(own[dim], (part,), (torch.arange(own[dim].size) % size,)))
    return [[*own[:dim], part, *own[dim + 1 :]] for _ in found[node]]


def _moved(taken: Tensor, shape: torch.Size, own: Axes, coupling: Coupling, name: str) -> Axes:
    """The axes of a tensor whose elements are taken from another, -1 for a filler."""
    if name in _REORDERINGS:
        for a, axis in enumerate(own):
            if not torch.equal(taken, taken.sort(a).values):
                axis.fix(f"{name} changes its order")
    places = [place.masked_fill(taken < 0, -1) for place in torch.unravel_index(taken.clamp(min=0), shape)]
    axes: list[Axis | None] = [Axis(1, "it has one index") if size == 1 else None for size in taken.shape]
    is_done = [axis.size == 1 for axis in own]
    for dim in (dim for dim, axis in enumerate(axes) if axis is None):
        coarse = [(a, index) for a, place in enumerate(places) if (index := _index_of(place, dim)) is not None]
        for a, index in coarse:
            if not is_done[a] and torch.equal(index, torch.arange(own[a].size)):
                axes[dim], is_done[a] = own[a], True
                break
        else:
            if coarse:
                axes[dim] = axis = Axis(taken.shape[dim])
                coupling.ties.append(Tie(axis, tuple(own[a] for a, _ in coarse), tuple(index for _, index in coarse)))
                for a, index in coarse:
                    is_done[a] = True
                    if (index < 0).any() or len(index.unique()) < own[a].size:
                        _fix((own[a], axis), f"{name} takes or fills a part of it")
    for a in (a for a, done in enumerate(is_done) if not done):
        finer = [
            (Axis(taken.shape[b]), b, index)
            for b, axis in enumerate(axes)
            if axis is None and (index := _dim_of(places[a], b, own[a].size)) is not None
        ]
        for axis, b, _ in finer:
            axes[b] = axis
        if finer:
            coupling.ties.append(Tie(own[a], tuple(axis for axis, _, _ in finer), tuple(index for *_, index in finer)))
        else:
            own[a].fix(f"{name} takes a part of it")
    return [
        Axis(size, f"{name} makes it") if axis is None else axis for axis, size in zip(axes, taken.shape, strict=True)
    ]


def _index_of(place: Tensor, dim: int) -> Tensor | None:
    """The index along an axis of the source that each index of an axis of the output comes from, if it is one."""
    rows = place.movedim(dim, 0).reshape(place.shape[dim], -1)
    high = rows.amax(1)
    low = rows.masked_fill(rows < 0, place.numel() + 1).amin(1)
    if not bool(((low == high) | (high < 0)).all()) or bool((high == high[0]).all()):
        return None
    return high


def _dim_of(place: Tensor, dim: int, size: int) -> Tensor | None:
    """The index along an axis of the output that each index of an axis of the source goes to, if it is one."""
    index = torch.arange(place.shape[dim]).reshape(-1, *[1] * (place.dim() - 1 - dim)).expand(place.shape)
    taken = place >= 0
    low = torch.full((size,), place.numel()).scatter_reduce(0, place[taken], index[taken], "amin")
    high = torch.full((size,), -1).scatter_reduce(0, place[taken], index[taken], "amax")
    return low if bool((low == high).all()) and not bool((low == low[0]).all()) else None


def _cat(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes | None:
    if name_of(node) == "stack":
        return None
    parts = [coupling.axes[source] for source in argument(node, 0)]
    shape = found[node].shape
    dim = argument(node, 1, "dim", 0) % len(shape)
    if any(len(part) != len(shape) for part in parts):
        return None
    axes = [Axis(size) for size in shape]
    start = 0
    for part in parts:
        for d, axis in enumerate(part):
            if d != dim:
                axes[d].join(axis)
        size = part[dim].size
        index = torch.full((shape[dim],), -1)
        index[start : start + size] = torch.arange(size)
        coupling.ties.append(Tie(axes[dim], (part[dim],), (index,)))
        start += size
    return axes


def _linear(node: fx.Node, _found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    inputs, (rows, columns) = coupling.axes[argument(node, 0)], coupling.axes[argument(node, 1)]
    inputs[-1].join(columns)
    _join_bias(node, rows, coupling)
    return [*inputs[:-1], rows]


def _join_bias(node: fx.Node, axis: Axis, coupling: Coupling) -> None:
    bias = argument(node, 2, "bias", None)
    if bias is not None:
        axis.join(coupling.axes[bias][0])


def _convolution(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    inputs, weight = coupling.axes[argument(node, 0)], coupling.axes[argument(node, 1)]
    *batch, channels = inputs[: len(inputs) - (len(weight) - 2)]
    outputs, columns = weight[:2]
    num_groups = channels.size // columns.size
    if num_groups == 1:
        channels.join(columns)
    else:
        columns.fix("it is an axis within a group")
        groups = Axis(num_groups)
        for axis in (channels, outputs):
            index = torch.arange(axis.size) // (axis.size // num_groups)
            coupling.ties.append(Tie(axis, (groups,), (index,)))
    for axis in weight[2:]:
        axis.fix("it is an axis of a kernel")
    _join_bias(node, outputs, coupling)
    places = [Axis(size, "it is an axis of pixels") for size in found[node].shape[len(batch) + 1 :]]
    _fix(inputs[len(batch) + 1 :], "it is an axis of pixels")
    return [*batch, outputs, *places]


def _transposed_convolution(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes | None:
    inputs, weight = coupling.axes[argument(node, 0)], coupling.axes[argument(node, 1)]
    if argument(node, 6, "groups", 1) != 1:
        return None
    num_batch = len(inputs) - (len(weight) - 1)
    inputs[num_batch].join(weight[0])
    for axis in (*weight[2:], *inputs[num_batch + 1 :]):
        axis.fix("it is an axis of pixels")
    _join_bias(node, weight[1], coupling)
    places = [Axis(size, "it is an axis of pixels") for size in found[node].shape[num_batch + 1 :]]
    return [*inputs[:num_batch], weight[1], *places]


def _matrix_product(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes | None:
    a, b = (coupling.axes[source] for source in arguments(node, 2))
    if min(len(a), len(b)) < 2:
        return None
    a[-1].join(b[-2])
    axes = [Axis(size) for size in found[node].shape[:-2]]
    for part in (a[:-2], b[:-2]):
        for own, axis in zip(reversed(part), reversed(axes), strict=False):
            if own.size == axis.size:
                axis.join(own)
    return [*axes, a[-2], b[-1]]


def _batch_norm(node: fx.Node, _found: Mapping[fx.Node, Value], coupling: Coupling) -> list[Axes]:
    inputs = coupling.axes[argument(node, 0)]
    for source in arguments(node, 5)[1:]:
        if source is not None:
            inputs[1].join(coupling.axes[source][0])
    return [list(inputs), [], []]


def _prelu(node: fx.Node, _found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes | None:
    inputs, slopes = (coupling.axes[source] for source in arguments(node, 2))
    if len(inputs) > 1 and slopes[0].size > 1:
        inputs[1].join(slopes[0])
    return list(inputs)


def _pool(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Any:
    inputs, num_mixed = coupling.axes[node.all_input_nodes[0]], POOLS[name_of(node)]
    _fix(inputs[-num_mixed:], "it is an axis of pixels")
    outputs = found[node] if isinstance(found[node], list) else [found[node]]
    axes = [
        [*inputs[:-num_mixed], *(Axis(size, "it is an axis of pixels") for size in x.shape[-num_mixed:])]
        for x in outputs
    ]
    return axes if isinstance(found[node], list) else axes[0]


def _reduction(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    inputs = coupling.axes[node.all_input_nodes[0]]
    dims = reduced_dims(node, len(inputs))
    keeps = len(found[node].shape) == len(inputs) and bool(dims)
    axes = []
    for dim, axis in enumerate(inputs):
        if dim in dims:
            axis.fix(f"{name_of(node)} is taken over it")
            axes += [Axis(1, "it has one index")] if keeps else []
        else:
            axes.append(axis)
    return axes


def _softmax(node: fx.Node, _found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    inputs = coupling.axes[node.all_input_nodes[0]]
    (dim,) = reduced_dims(node, len(inputs))
    inputs[dim].fix("softmax is taken over it")
    return list(inputs)


def _normalization(node: fx.Node, _found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    inputs, num = coupling.axes[argument(node, 0)], len(argument(node, 1))
    _fix(inputs[-num:], f"{name_of(node)} normalizes over it")
    for source in node.all_input_nodes[1:]:
        for own, axis in zip(coupling.axes[source], inputs[-num:], strict=True):
            axis.join(own)
    return list(inputs)


def _embedding(node: fx.Node, _found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes:
    (rows, columns), index = (coupling.axes[source] for source in arguments(node, 2))
    rows.fix("its rows are looked up")
    return [*index, columns]


def _attention(node: fx.Node, found: Mapping[fx.Node, Value], coupling: Coupling) -> Axes | None:
    shapes = {found[source].shape[:-2] for source in arguments(node, 3)}
    if not is_plain_attention(node) or len(shapes) > 1:
        return None
    query, key, value = (coupling.axes[source] for source in arguments(node, 3))
    for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True):
        q.join(k)
        q.join(v)
    key[-2].join(value[-2])
    key[-2].fix("softmax is taken over it")
    if is_causal(node):
        query[-2].fix("a causal mask counts along it")
    query[-1].join(key[-1])
    query[-1].fix("attention divides by the root of its size")
    return [*query[:-1], value[-1]]


_RULES = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(MOVEMENTS, _movement),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, _transposed_convolution),
    **dict.fromkeys(MATRIX_PRODUCTS, _matrix_product),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(SOFTMAXES, _softmax),
    **dict.fromkeys(NORMALIZATIONS, _normalization),
    "linear": _linear,
    BATCH_NORM: _batch_norm,
    "prelu": _prelu,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
}
