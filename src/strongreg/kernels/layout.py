"""What the fast passes ask of a parameter: how its entries lie in memory, and what its penalty is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from strongreg.groups import Target
from strongreg.penalties.terms import Terms


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
    if other.dtype == weight.dtype and other.stride() == weight.stride():
        return other
    return torch.empty_like(weight).copy_(other)


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
