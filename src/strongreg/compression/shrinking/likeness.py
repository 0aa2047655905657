"""Whether two networks are the same operations with the same numbers, except for sizes.

Code that takes the width of a layer for a number (``x / x.shape[1]``), or branches on it, is another network once the
width has changed. Inputs on which that cannot be seen exist; in the operations it always can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from strongreg.compression.shrinking.capture import Program
from strongreg.compression.shrinking.operations import (
    CONVOLUTIONS,
    MOVEMENTS,
    TRANSPOSED_CONVOLUTIONS,
    name_of,
)

_COPIES = frozenset(("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "expand"))
"""Compute nothing, and come and go with the order of elements in memory."""

_MAKERS = frozenset(("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full"))
"""Take a size, first or after the tensor that they are like."""

_PERMUTATIONS = frozenset(("permute", "transpose", "squeeze", "unsqueeze"))
"""Take axes, not sizes."""


Shapes = Mapping[fx.Node, Any]
"""For each node the shape of its output, or a list of them."""


def unlikeness(program: Program, other: Program, shapes: Shapes) -> str | None:
    """What differs.

    Args:
        program: a network.
        other: the same network with other sizes, and perhaps with biases where it had none.
        shapes: those that the outputs of the operations of ``program`` should have in ``other``.

    Returns:
        The first operation that is another or has other numbers; None if there is none.
    """
    first, second = _calls(program), _calls(other)
    number_of = {node: i for calls in (first, second) for i, node in enumerate(calls)}
    for a, b in zip(first, second, strict=False):
        resized = _shapes(a) != _shapes(b)
        one, two = (_content(node, of, number_of, resized) for node, of in ((a, program), (b, other)))
        if not _fits(b.meta.get("val"), shapes[a]):
            return f"{name_of(a) or a.name} would not get the shape {_text(shapes[a])}"
        if one != two:
            return f"{name_of(a) or a.name} would compute something else"
    if len(first) != len(second):
        return f"it would be {len(second)} operations instead of {len(first)}"
    own, others = _constants(program), _constants(other)
    if len(own) != len(others) or not all(_same(a, b) for a, b in zip(own, others, strict=True)):
        return "a constant that it makes would be another"
    return None


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) == len(shape) and all(_fits(x, part) for x, part in zip(value, shape, strict=True))
    return not shape or not isinstance(value, Tensor) or tuple(value.shape) == shape


def _text(shape: Any) -> str:
    return "x".join(map(str, shape)) if isinstance(shape, tuple) else " and ".join(map(_text, shape))


def _calls(program: Program) -> list[fx.Node]:
    return [node for node in program.nodes if node.op == "call_function" and name_of(node) not in _COPIES]


def _constants(program: Program) -> list[Tensor]:
    return [tensor for node, tensor in program.tensors.items() if node not in program.names]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _shapes(node: fx.Node) -> list[Any]:
    values = [node.meta.get("val"), *(source.meta.get("val") for source in node.all_input_nodes)]
    return [getattr(value, "shape", None) for value in values]


def _content(node: fx.Node, program: Program, number_of: dict[fx.Node, int], resized: bool) -> Any:
    """An operation with its numbers, and where its inputs come from; without sizes, where those have changed."""
    name = name_of(node)
    named = _named(node)
    if name in (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, "linear"):
        named.pop("bias")
        if resized and name in CONVOLUTIONS:
            named.pop("groups")
        named = {key: _of_each_dim(value) for key, value in named.items()}
    if resized and name in MOVEMENTS and name not in _PERMUTATIONS:
        named = {key: value for key, value in named.items() if not _is_size(value)}
    if resized and name in _MAKERS:
        named.pop("size")

    def plain(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return _source(x, program, number_of)
        if isinstance(x, list | tuple):
            return tuple(plain(y) for y in x)
        return (type(x).__name__, x)

    called = "view" if name == "_unsafe_view" else name
    return (called, tuple((key, plain(value)) for key, value in named.items()))


def _named(node: fx.Node) -> dict[str, Any]:
    """All arguments by name, those left out, too: torch leaves out such as are the default."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # getitem
        return dict(enumerate(node.args))  # type: ignore[arg-type]
    given = dict(zip((x.name for x in schema.arguments), node.args, strict=False)) | node.kwargs
    return {x.name: given.get(x.name, x.default_value) for x in schema.arguments}


def _of_each_dim(value: Any) -> Any:
    """One number where it is the same along each axis."""
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _is_size(x: Any) -> bool:
    return isinstance(x, int) or (isinstance(x, list | tuple) and all(isinstance(y, int) for y in x))


def _source(node: fx.Node, program: Program, number_of: dict[fx.Node, int]) -> Any:
    while node.op == "call_function" and name_of(node) in _COPIES:
        (node,) = node.all_input_nodes
    if node in program.names:
        return ("own", program.names[node])
    if node.op == "placeholder":
        same_kind = [x for x in program.nodes if x.op == "placeholder" and x not in program.names]
        return ("given", same_kind.index(node))
    return ("call", number_of[node])
