"""In which precision things are computed."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF_PRECISION = (torch.float16, torch.bfloat16)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it is of half precision.

    Args:
        tensor: any shape, floating-point.

    Returns:
        Tensor of the same shape.
    """
    return tensor.float() if is_half(tensor.dtype) else tensor


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers have 16 bits.

    Args:
        dtype: a floating-point dtype.

    Returns:
        True for float16 and bfloat16.
    """
    return dtype in _HALF_PRECISION


def scalar_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the few scalars that decide: inner products, multipliers, schedules.

    Args:
        device: any device.

    Returns:
        float64, or float32 on Apple's GPUs, which have no float64.
    """
    return torch.float32 if device.type == "mps" else torch.float64
