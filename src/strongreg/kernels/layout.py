"""What the fast passes ask of a parameter: how its entries lie in memory, and what its penalty is made of."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from strongreg.groups import Target
from strongreg.penalties.terms import Terms

_Entry = TypeVar("_Entry")
_PLAIN_TYPES = {Tensor, nn.Parameter}
_dtype, _shape = operator.attrgetter("dtype"), operator.attrgetter("shape")


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


def laid_out_as(weight: Tensor, other: Tensor, *, finer: bool = False) -> Tensor:
    """Another tensor in the dtype and the memory layout of the weights.

    Args:
        weight: the weights.
        other: a tensor of the same shape.
        finer: whether a dtype that is finer than that of the weights is kept.

    Returns:
        The tensor itself where it is like that already, and its entries are where its address says.

    Raises:
        RuntimeError: the shapes differ, or its memory was freed.
    """
    if other.shape != weight.shape:
        raise RuntimeError(
            f"a gradient or optimizer state has shape {tuple(other.shape)}, its parameter {tuple(weight.shape)}: "
            "build optimizer and Regularizer anew after a parameter has changed its shape"
        )
    dtype = torch.promote_types(weight.dtype, other.dtype) if finer else weight.dtype
    if other.dtype == dtype and has_plain_memory(other) and _have_same_strides(weight, other):
        return other
    if has_freed_memory(other):
        raise RuntimeError(f"a tensor of shape {tuple(other.shape)} has no memory: its storage was freed")
    return torch.empty_like(weight, dtype=dtype).copy_(other)


def all_laid_out_as(weights: Sequence[Tensor], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    """:func:`laid_out_as` of each of several tensors.

    Args:
        weights: n tensors of weights.
        others: n tensors of their shapes; None is none.

    Returns:
        n tensors, None where there is none.
    """
    if _are_laid_out_as(weights, others):
        return list(others)
    pairs = zip(weights, others, strict=True)
    return [None if other is None else laid_out_as(weight, other) for weight, other in pairs]


def _are_laid_out_as(weights: Sequence[Tensor], others: Sequence[Tensor | None]) -> bool:
    """Whether all of the others surely are, looked at by columns: half the time of looking at each."""
    if any(map(operator.is_, others, itertools.repeat(None))):
        return False
    tensors = cast("Sequence[Tensor]", others)
    columns: Sequence[Callable[[Tensor], Any]] = (_dtype, _shape, Tensor.stride)
    return all_have_plain_memory(tensors) and all(list(map(of, tensors)) == list(map(of, weights)) for of in columns)


def all_have_plain_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether :func:`has_plain_memory` holds for all of several tensors, none of which is empty.

    Args:
        tensors: n tensors.

    Returns:
        Whether the memory of all may be read; False, too, where one has no entries.
    """
    return (
        set(map(type, tensors)) <= _PLAIN_TYPES
        and all(tensor.layout == torch.strided for tensor in tensors)
        and not any(map(Tensor.is_neg, tensors))
        and not any(map(Tensor._is_zerotensor, tensors))
        and all(map(Tensor.data_ptr, tensors))
    )


def has_plain_memory(tensor: Tensor) -> bool:
    """Whether the entries lie at the tensor's address: it is of no class of its own, and no lazy negative or zero.

    Args:
        tensor: any tensor.

    Returns:
        Whether its memory may be read.
    """
    if type(tensor) not in _PLAIN_TYPES or tensor.layout != torch.strided or tensor.is_neg():
        return False
    return tensor.numel() == 0 or (not tensor._is_zerotensor() and tensor.data_ptr() != 0)


def _have_same_strides(weight: Tensor, other: Tensor) -> bool:
    if other.stride() == weight.stride():
        return True
    # along a dimension of size 1 nobody goes; torch gives gradients of 1x1 convolutions other strides there
    return all(a == b or size <= 1 for a, b, size in zip(other.stride(), weight.stride(), weight.shape, strict=True))


def has_freed_memory(tensor: Tensor) -> bool:
    """Whether it should have memory, and has none; torch itself does not look before it reads.

    Args:
        tensor: any tensor.

    Returns:
        True after ``tensor.untyped_storage().resize_(0)``.
    """
    if type(tensor) not in _PLAIN_TYPES or tensor.layout != torch.strided or tensor._is_zerotensor():
        return False
    return tensor.numel() > 0 and tensor.data_ptr() == 0


def is_plain(param: Tensor) -> bool:
    """Whether it is a parameter as torch makes them, and not one of a class of its own (DTensor and its like).

    Args:
        param: the parameter.

    Returns:
        Whether its entries may be worked on in place.
    """
    return type(param.data) is Tensor and has_plain_memory(param)


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


def group_sizes(params: Sequence[Tensor], terms: Sequence[Terms]) -> list[int]:
    """How many entries may not be cut apart: those of a row where the penalty is on rows.

    Args:
        params: n tensors.
        terms: of their penalties, n entries.

    Returns:
        n numbers, 1 where the penalty acts on each entry by itself.
    """
    pairs = zip(params, terms, strict=True)
    return [param.numel() // len(param) if term.group and param.numel() else 1 for param, term in pairs]


def selected(entries: Sequence[_Entry], rows: list[int]) -> Sequence[_Entry]:
    """Some of the entries.

    Args:
        entries: K entries, one for each penalized tensor.
        rows: the positions of those wanted, in ascending order.

    Returns:
        The entries at these positions.
    """
    return entries if len(rows) == len(entries) else [entries[i] for i in rows]
