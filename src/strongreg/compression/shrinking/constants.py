"""Which elements of which activations are the same for every input, and what they are.

Where weights are zero, much of a network does not depend on its input: a filter of zeros gives its bias everywhere, and
so do the functions of it that follow. One pass through the operations, each element known or not, finds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from strongreg.compression.shrinking.capture import Program
from strongreg.compression.shrinking.operations import (
    BATCH_NORM,
    CONVOLUTIONS,
    ELEMENTWISE,
    MATRIX_PRODUCTS,
    MOVEMENTS,
    POOLS,
    REDUCTIONS,
    TRANSPOSED_CONVOLUTIONS,
    argument,
    arguments,
    channel_dim,
    channels_read,
    in_float64,
    is_plain_attention,
    name_of,
    on_image,
    reduced_dims,
    run,
    sources,
)


@dataclass(frozen=True)
class Known:
    """A tensor of which some elements are known.

    Args:
        value: the elements, floating-point ones in float64; 0 where they are not known.
        unknown: which of them depend on the input, boolean, same shape.
    """

    value: Tensor
    unknown: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.value.shape

    @property
    def zero(self) -> Tensor:
        """Which elements are known to be 0, boolean."""
        return ~self.unknown & (self.value == 0)


Value = Any
"""A Known, a list of them, or a Python object."""


def find_constants(program: Program) -> dict[fx.Node, Value]:
    """Follow what is known through a network.

    Args:
        program: its operations.

    Returns:
        For every node what is known of its outputs.
    """
    found: dict[fx.Node, Value] = {}
    for node in program.nodes:
        if node.op == "placeholder":
            found[node] = _given(program, node)
        elif node.op == "call_function":
            found[node] = _outputs(node, found)
    return found


def _given(program: Program, node: fx.Node) -> Value:
    if node in program.tensors:
        value = in_float64(program.tensors[node])
        return Known(value, torch.zeros(value.shape, dtype=torch.bool))
    example = program.example.get(node)
    return _nothing_known(example) if isinstance(example, Tensor) else example


def _nothing_known(like: Tensor) -> Known:
    dtype = torch.float64 if like.is_floating_point() else like.dtype
    return Known(torch.zeros(like.shape, dtype=dtype), torch.ones(like.shape, dtype=torch.bool))


def _outputs(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    name = name_of(node)
    if name == "getitem":
        source, index = arguments(node, 2)
        return found[source][index]
    is_random = name in ("dropout", "feature_dropout") and argument(node, 2, "train", False)
    return _whole(node, found) if is_random else _RULES.get(name, _whole)(node, found)


def _whole(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    """Known where every input is: constants that the network computes, and operations that are not told apart."""
    inputs = [found[source] for source in node.all_input_nodes]
    known = all(not isinstance(x, Known) or not x.unknown.any() for x in _flat(inputs))
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if known and not random:
        return _wrap(run(node, lambda source: _values(found[source])))
    outputs = node.meta["val"]
    if isinstance(outputs, tuple | list):
        return [_nothing_known(x) if isinstance(x, Tensor) else x for x in outputs]
    return _nothing_known(outputs) if isinstance(outputs, Tensor) else outputs


def _flat(values: Any) -> list[Any]:
    return [x for value in values for x in (_flat(value) if isinstance(value, list) else [value])]


def _values(value: Value) -> Any:
    if isinstance(value, list):
        return [_values(x) for x in value]
    return value.value if isinstance(value, Known) else value


def _wrap(value: Any) -> Value:
    if isinstance(value, list):
        return [_wrap(x) for x in value]
    return Known(value, torch.zeros(value.shape, dtype=torch.bool)) if isinstance(value, Tensor) else value


def _masked(value: Tensor, unknown: Tensor) -> Known:
    """What is not finite is not counted as known: it does not add up."""
    if value.is_floating_point():
        unknown = unknown | ~value.isfinite()
    return Known(value.masked_fill(unknown, 0), unknown)


# ---------------------------------------------------------------------- one rule per kind of operation


def _elementwise(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    value = run(node, lambda source: _values(found[source]))
    inputs = [found[source] for source in node.all_input_nodes if isinstance(found[source], Known)]
    unknown = torch.zeros(value.shape, dtype=torch.bool)
    for known in inputs:
        unknown = unknown | known.unknown
    if name_of(node) == "mul":
        for known in inputs:
            unknown = unknown & ~known.zero
        value = value.masked_fill(~unknown & (value != value), 0)
    return _masked(value, unknown)


def _movement(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    known = found[argument(node, 0)]
    values = run(node, lambda source: _values(found[source]))
    several = isinstance(values, list)
    outputs = [
        Known(value, torch.where(source < 0, False, known.unknown.flatten()[source.clamp(min=0)]))
        for value, source in zip(values if several else [values], sources(node, known.shape), strict=True)
    ]
    return outputs if several else outputs[0]


def _cat(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    parts = [found[source] for source in argument(node, 0)]
    dim = argument(node, 1, "dim", 0)
    join = torch.cat if name_of(node) == "cat" else torch.stack
    return Known(join([in_float64(x.value) for x in parts], dim), join([x.unknown for x in parts], dim))


def _convolution(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    """An output is known if every channel that it weighs is, and they add the same at every place of any image."""
    known, weight = found[argument(node, 0)], found[argument(node, 1)]
    bias_node = argument(node, 2, "bias", None)
    if weight.unknown.any() or (bias_node is not None and found[bias_node].unknown.any()):
        return _whole(node, found)
    dim = channel_dim(node, known.shape)
    places = known.value.movedim(dim, 0).flatten(1)
    varies = known.unknown.movedim(dim, 0).flatten(1).any(1) | (places != places[:, :1]).any(1)
    used = weight.value != 0
    unknown = (channels_read(node, used, len(varies)) & varies).any(1)
    at_border = used & ~on_image(node) if name_of(node) in CONVOLUTIONS else used
    unknown |= (channels_read(node, at_border, len(varies)) & (places[:, 0] != 0)).any(1)
    value = run(node, lambda source: _values(found[source]))
    return _masked(value, unknown.reshape(-1, *[1] * (value.dim() - dim - 1)).expand(value.shape))


def _linear(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    """An output is known if every input that it weighs is."""
    inputs, weight = found[argument(node, 0)], found[argument(node, 1)]
    if weight.unknown.any():
        return _whole(node, found)
    bias_node = argument(node, 2, "bias", None)
    if bias_node is not None and found[bias_node].unknown.any():
        return _whole(node, found)
    value = run(node, lambda source: _values(found[source]))
    unknown = functional.linear(inputs.unknown.double(), (weight.value != 0).double())
    return _masked(value, unknown > 0.5)


def _matrix_product(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    a, b = (found[source] for source in arguments(node, 2))
    value = run(node, lambda source: _values(found[source]))
    may_be_a, may_be_b = (~a.zero).double(), (~b.zero).double()
    unknown = torch.matmul(a.unknown.double(), may_be_b) + torch.matmul(may_be_a, b.unknown.double())
    return _masked(value, unknown > 0.5)


def _batch_norm(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    args = [None if source is None else found[source] for source in arguments(node, 5)]
    if any(stat is not None and stat.unknown.any() for stat in args[1:]):
        return _whole(node, found)
    x, weight, bias, mean, var = (None if known is None else known.value for known in args)
    value = functional.batch_norm(x, mean, var, weight, bias, eps=argument(node, 6, "eps", 1e-5))  # type: ignore[arg-type]
    unknown = found[argument(node, 0)].unknown
    if weight is not None:
        unknown = unknown & (weight != 0).reshape(-1, *[1] * (value.dim() - 2))
    return [_masked(value, unknown), None, None]


def _pool(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    x = found[argument(node, 0)]
    outputs = run(node, lambda source: _values(found[source]))
    varies = x.unknown | (_pads_with_zeros(node) & (x.value != 0))
    mixed = run(node, lambda source: varies.double() if source is argument(node, 0) else _values(found[source]))
    if not isinstance(outputs, list):
        return _masked(outputs, mixed > 0)
    return [_masked(outputs[0], mixed[0] > 0), _nothing_known(outputs[1])]


def _pads_with_zeros(node: fx.Node) -> bool:
    """Whether a pooling counts zeros around the image, so that a constant is no longer one."""
    padding = argument(node, 3, "padding", 0)
    in_average = name_of(node).startswith("avg_pool") and argument(node, 5, "count_include_pad", True)
    return bool(in_average and (any(padding) if isinstance(padding, list | tuple) else padding))


def _reduction(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    x = found[argument(node, 0)]
    value = run(node, lambda source: _values(found[source]))
    unknown = x.unknown
    for dim in reduced_dims(node, x.value.dim()):
        unknown = unknown.any(dim, keepdim=True)
    return _masked(value, unknown.expand(value.shape) if value.dim() == unknown.dim() else unknown.reshape(value.shape))


def _embedding(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    """A column that is the same for every row does not depend on the index."""
    weight, index = (found[source] for source in arguments(node, 2))
    if not index.unknown.any() or weight.unknown.any():
        return _whole(node, found)
    same = (weight.value == weight.value[:1]).all(0)
    shape = (*index.shape, weight.shape[1])
    return _masked(weight.value[0].expand(shape).clone(), (~same).expand(shape))


def _attention(node: fx.Node, found: Mapping[fx.Node, Value]) -> Value:
    """A mean of values with weights that add up to 1 is known where all values are the same."""
    query, value = found[argument(node, 0)], found[argument(node, 2)]
    if not is_plain_attention(node) or query.value.dim() != value.value.dim():
        return _whole(node, found)
    same = (value.value == value.value[..., :1, :]).all(-2, keepdim=True) & ~value.unknown.any(-2, keepdim=True)
    shape = (*query.shape[:-1], value.shape[-1])
    return _masked(value.value[..., :1, :].expand(shape).clone(), ~same.expand(shape))


_RULES = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(MOVEMENTS, _movement),
    **dict.fromkeys(("cat", "stack"), _cat),
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS), _convolution),
    "linear": _linear,
    **dict.fromkeys(MATRIX_PRODUCTS, _matrix_product),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduction),
    BATCH_NORM: _batch_norm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
}
