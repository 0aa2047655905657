"""Tensors of which each process holds a part or a replica: torch's DTensor, as FSDP2 and tensor parallelism make them.

Plain tensors are taken for what they are, so that a caller need not know.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_MODULE = "torch.distributed.tensor"
_Anything = TypeVar("_Anything", bound=Tensor | None)


def is_dtensor(tensor: Tensor | None) -> bool:
    """Whether a tensor is one of which each process holds a part, or a replica.

    Args:
        tensor: any tensor.

    Returns:
        True for DTensors.
    """
    module = sys.modules.get(_MODULE)  # slow to import; where nobody has, there are none
    return module is not None and isinstance(tensor, module.DTensor)


def is_fsdp1(module: nn.Module) -> bool:
    """Whether a module's parameters are pieces of one flat tensor, without their shapes (FSDP1).

    Args:
        module: any module.

    Returns:
        True for ``torch.distributed.fsdp.FullyShardedDataParallel``.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody has imported it, there are none
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def local(tensor: _Anything, like: Tensor | None = None) -> _Anything:
    """The part of a tensor that this process holds, over the same memory.

    Args:
        tensor: any tensor, or None.
        like: the parameter that it belongs to. A gradient that is laid out over the processes in another way is first
            brought into the parameter's; this communicates.

    Returns:
        A plain tensor; the tensor itself where it is no DTensor.
    """
    if not is_dtensor(tensor):
        return tensor
    shared: Any = tensor
    wanted: Any = like
    if is_dtensor(like) and shared.placements != wanted.placements:
        shared = shared.redistribute(placements=wanted.placements)
    with torch.no_grad():
        part: _Anything = shared.to_local()
    return part


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes that hold a part must ask.

    Args:
        tensor: any tensor.

    Returns:
        A plain tensor; the tensor itself where it is no DTensor.
    """
    if not is_dtensor(tensor):
        return tensor
    shared: Any = tensor
    full: Tensor = shared.full_tensor()
    return full


def has_same_layout(tensor: Tensor, param: Tensor) -> bool:
    """Whether a tensor is laid out over the processes as a parameter is.

    Args:
        tensor: of the parameter's shape.
        param: the parameter.

    Returns:
        True where neither is a DTensor.
    """
    one: Any = tensor
    other: Any = param
    if not (is_dtensor(tensor) and is_dtensor(param)):
        return not is_dtensor(tensor) and not is_dtensor(param)
    return bool(one.placements == other.placements)


def as_dtensor(part: Tensor, param: Tensor) -> Tensor:
    """A tensor that is laid out over the processes as a parameter is.

    Args:
        part: this process's part.
        param: the parameter.

    Returns:
        A DTensor over the same memory where the parameter is one, otherwise the tensor itself.
    """
    if not is_dtensor(param):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = param
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def part_of(tensor: Tensor, param: Tensor) -> Tensor:
    """The part of a tensor that a process holds of a parameter; nothing is sent.

    Args:
        tensor: the whole, a plain tensor of the parameter's shape.
        param: the parameter.

    Returns:
        A plain tensor; the tensor itself where the parameter is no DTensor.
    """
    if not is_dtensor(param):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    like: Any = param
    replicas = [Replicate()] * like.device_mesh.ndim
    shared = DTensor.from_local(tensor, like.device_mesh, replicas, run_check=False)
    return shared.redistribute(placements=like.placements).to_local()
