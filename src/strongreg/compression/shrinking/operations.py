"""The torch operations by what they do with channels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

ELEMENTWISE = frozenset(
    (
        *("relu", "relu6", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid"),
        *("leaky_relu", "elu", "selu", "celu", "softplus", "log_sigmoid", "threshold", "clamp", "clamp_min"),
        *("clamp_max", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "pow", "reciprocal", "erf", "sin"),
        *("cos", "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "where", "masked_fill"),
        *("clone", "contiguous", "detach", "alias", "to", "_to_copy", "lift_fresh_copy", "dropout", "feature_dropout"),
    )
)
"""Each element of the output depends on the elements at its own place, with broadcasting."""

MOVEMENTS = frozenset(
    (
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim"),
        *("squeeze", "unsqueeze", "expand", "slice", "select", "narrow", "unbind", "split", "split_with_sizes"),
        *("chunk", "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d"),
        *("replication_pad2d", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
        *("unfold", "upsample_nearest1d", "upsample_nearest2d"),
    )
)
"""Each element of the output is one of the first argument, or a filler."""

POOLS = {
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"), 1),
    **dict.fromkeys(
        ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d"), 2
    ),
    **dict.fromkeys(("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"), 3),
}
"""Mixes the last axes, as many as said, and keeps the others apart."""

REDUCTIONS = frozenset(("mean", "sum", "amax", "amin"))
SOFTMAXES = frozenset(("softmax", "_softmax", "log_softmax", "_log_softmax"))
CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d"))
TRANSPOSED_CONVOLUTIONS = frozenset(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
MATRIX_PRODUCTS = frozenset(("matmul", "mm", "bmm"))
NORMALIZATIONS = frozenset(("layer_norm", "rms_norm"))
BATCH_NORM = "_native_batch_norm_legit_no_training"
_QUERY_KEY_VALUE = 3
_ATTENTION = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


def name_of(node: fx.Node) -> str:
    """The name of a node's operation.

    Args:
        node: a node of an exported graph.

    Returns:
        Such as "relu", "getitem", or "" for placeholders and the output.
    """
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).partition("::")[2]


def argument(node: fx.Node, position: int, name: str = "", default: Any = None) -> Any:
    """An argument, given by position or by name.

    Args:
        node: the call.
        position: where it stands.
        name: its name.
        default: what it is when it is not given.

    Returns:
        The argument.
    """
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def arguments(node: fx.Node, num: int) -> list[Any]:
    """The first arguments.

    Args:
        node: the call.
        num: how many.

    Returns:
        The arguments.
    """
    return list(node.args[:num])


def is_plain_attention(node: fx.Node) -> bool:
    """Whether attention is one that is understood: over queries, keys and values, with no mask but the causal one.

    Args:
        node: the call of ``scaled_dot_product_attention``.

    Returns:
        False where a mask, dropout or shared heads are given.
    """
    options = {**_ATTENTION, **_options_of_attention(node)}
    return all(options[name] == _ATTENTION[name] for name in ("attn_mask", "dropout_p", "enable_gqa"))


def is_causal(node: fx.Node) -> bool:
    """Whether each query sees the keys up to its own position only.

    Args:
        node: the call of ``scaled_dot_product_attention``.

    Returns:
        Whether its mask is the causal one.
    """
    return bool(_options_of_attention(node).get("is_causal"))


def _options_of_attention(node: fx.Node) -> dict[str, Any]:
    return {**dict(zip(_ATTENTION, node.args[_QUERY_KEY_VALUE:], strict=False)), **node.kwargs}


def reduced_dims(node: fx.Node, num_dims: int) -> list[int]:
    """The axes that a reduction or softmax works along.

    Args:
        node: the call.
        num_dims: axes of its input.

    Returns:
        Their numbers, from 0; all of them where none is named.
    """
    dims = argument(node, 1, "dim", None)
    if dims is None or dims == []:
        return list(range(num_dims))
    return [dim % num_dims for dim in ([dims] if isinstance(dims, int) else dims)]


def channel_dim(node: fx.Node, shape: torch.Size) -> int:
    """The axis of the channels, of a convolution's input and output alike.

    Args:
        node: a convolution, transposed or not.
        shape: of its input, with or without a batch.

    Returns:
        0 or 1.
    """
    return len(shape) - (int(argument(node, 1).meta["val"].dim()) - 1)


def channels_read(node: fx.Node, used: Tensor, num_channels: int) -> Tensor:
    """Which channels of its input each output of a convolution reads.

    Args:
        node: a convolution, transposed or not.
        used: which of its weights are not 0, boolean, shape of the weight.
        num_channels: of the input.

    Returns:
        Boolean, shape (outputs, num_channels).
    """
    if name_of(node) in TRANSPOSED_CONVOLUTIONS:
        num_groups = argument(node, 6, "groups", 1)
        blocks = used.flatten(2).any(2).unflatten(0, (num_groups, -1)).mT  # groups, outputs, inputs of each
    else:
        num_groups = num_channels // used.shape[1]
        blocks = used.flatten(2).any(2).unflatten(0, (num_groups, -1))
    read: Tensor = torch.block_diag(*blocks.byte())
    return read.bool()


def on_image(node: fx.Node) -> Tensor:
    """Which places of a convolution's kernel lie on the image for every output, at any size of the image.

    Where zeros are added around the image, the outer places of the kernel do not, for outputs at the border.

    Args:
        node: a convolution, not transposed.

    Returns:
        Boolean, shape of the kernel.
    """
    kernel = argument(node, 1).meta["val"].shape[2:]
    padding = argument(node, 4, "padding", 0)
    always = torch.ones(kernel, dtype=torch.bool)
    for dim, size in enumerate(kernel):
        dilation = _of_dim(argument(node, 5, "dilation", 1), dim)
        if padding == "same":
            before = dilation * (size - 1) // 2
            after = dilation * (size - 1) - before
        else:
            before = after = 0 if padding == "valid" else _of_dim(padding, dim)
        place = torch.arange(size)
        inside = (place * dilation >= before) & ((size - 1 - place) * dilation >= after)
        always &= inside.reshape([-1 if d == dim else 1 for d in range(len(kernel))])
    return always


def _of_dim(value: Any, dim: int) -> int:
    """A setting of a convolution along one axis: one number for all, or one each."""
    if isinstance(value, int):
        return value
    return int(value[dim] if len(value) > 1 else value[0])


def run(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """Call a node's operation.

    Args:
        node: the call.
        value_of: the value of each node that it takes.

    Returns:
        What it returns, floating-point tensors in float64.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    # a view where the strides allow it; here they need not be the network's own
    call: Any = torch.reshape if name_of(node) in ("view", "_unsafe_view") else node.target
    with torch.no_grad():
        outputs = call(*args, **kwargs)
    return [in_float64(x) for x in outputs] if isinstance(outputs, tuple | list) else in_float64(outputs)


def in_float64(value: Any) -> Any:
    """A floating-point tensor in float64, anything else as it is.

    Args:
        value: the value.

    Returns:
        The value.
    """
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def sources(node: fx.Node, shape: torch.Size) -> list[Tensor]:
    """Where a movement takes each element from.

    Args:
        node: the call.
        shape: of its first argument.

    Returns:
        For each tensor that it returns one of its shape, int64: the position in the flattened argument, -1 for a
        filler.
    """
    # 0 is what padding fills with
    numbers = torch.arange(1, shape.numel() + 1, dtype=torch.float64).reshape(shape)
    args = list(node.args)
    if name_of(node) in ("pad", "constant_pad_nd"):
        value_at = 3 if name_of(node) == "pad" else 2
        args[value_at:] = []
    call: Any = node.target
    kwargs = {name: value for name, value in node.kwargs.items() if name != "value"}
    outputs = call(numbers, *args[1:], **kwargs)
    return [x.long() - 1 for x in (outputs if isinstance(outputs, tuple | list) else [outputs])]
