"""What the fast passes ask of a parameter: how its entries lie in memory, and what its penalty is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from strongreg.groups import Target
from strongreg.penalties.terms import Terms

_Entry = TypeVar("_Entry")


def is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill a stretch of memory without gaps, in whatever order of the dimensions.

    Args:
        tensor: any tensor.

    Returns:
        True for contiguous and channels-last tensors and their like.
    """
    if tensor.layout != torch.strided:
        return False
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def laid_out_as(weight: Tensor, other: Tensor) -> Tensor:
    """Another tensor in the dtype and the memory layout of the weights.

    Args:
        weight: the weights.
        other: a tensor of the same shape.

    Returns:
        The tensor itself where it is like that already.
    """
    if other.dtype == weight.dtype and _have_same_strides(weight, other):
        return other
    return torch.empty_like(weight).copy_(other)


def _have_same_strides(weight: Tensor, other: Tensor) -> bool:
    if other.stride() == weight.stride():
        return True
    # along a dimension of size 1 nobody goes; torch gives gradients of 1x1 convolutions other strides there
    return all(a == b or size <= 1 for a, b, size in zip(other.stride(), weight.stride(), weight.shape, strict=True))


def is_plain(param: Tensor) -> bool:
    """Whether it is a parameter as torch makes them, and not one of a class of its own (DTensor and its like).

    Args:
        param: the parameter.

    Returns:
        Whether its entries may be worked on in place.
    """
    return type(param) is nn.Parameter and type(param.data) is Tensor and param.layout == torch.strided


def known_terms(target: Target) -> Terms | None:
    """The terms of a target's penalty.

    Args:
        target: the penalized parameter.

    Returns:
        The terms; None where they are not known, where the class inherits them and may have changed what they describe,
        or where the groups' rows do not lie one after the other.
    """
    param, penalty = target.param, target.penalty
    terms = penalty.terms(param.shape) if "terms" in vars(type(penalty)) else None
    if terms is not None and terms.group and param.numel() and param.stride(0) * len(param) != param.numel():
        return None
    return terms


def at(entries: Sequence[_Entry], rows: list[int]) -> Sequence[_Entry]:
    """Some of the entries.

    Args:
        entries: K entries, one for each penalized tensor.
        rows: the positions of those wanted, in ascending order.

    Returns:
        The entries at these positions.
    """
    return entries if len(rows) == len(entries) else [entries[i] for i in rows]
