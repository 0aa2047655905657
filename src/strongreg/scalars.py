"""The few numbers that decide, one per tensor: numpy arrays on the host, tensors on an accelerator.

On an accelerator the host does not wait for them. On the host numpy takes a fifth of torch's time for so few. Both have
the methods and functions that are used here, under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strongreg.devices import Constants, reading_is_free

Scalars = Any
"""A numpy array, a numpy number or a tensor."""


def namespace(scalars: Scalars) -> Any:
    """Where the functions for such numbers are.

    Args:
        scalars: the numbers.

    Returns:
        The module torch or numpy.
    """
    return torch if isinstance(scalars, Tensor) else np


def stack(rows: Sequence[Scalars]) -> Scalars:
    """Rows of numbers, one below the other.

    Args:
        rows: n rows of m numbers, all arrays or all tensors.

    Returns:
        Shape (n, m).
    """
    return torch.stack(list(rows)) if isinstance(rows[0], Tensor) else np.array(rows)


def as_scalars(tensor: Tensor | float) -> Scalars:
    """The numbers of a tensor.

    Args:
        tensor: any shape; a number, which a user's own gate or schedule may return, is as good.

    Returns:
        A numpy array over the same memory where the host can look, otherwise the tensor itself.
    """
    return tensor.numpy() if isinstance(tensor, Tensor) and reading_is_free(tensor.device) else tensor


def as_tensor(scalars: Scalars) -> Tensor:
    """The numbers as a tensor.

    Args:
        scalars: the numbers.

    Returns:
        A tensor, over the same memory where there is an array.
    """
    return scalars if isinstance(scalars, Tensor) else torch.from_numpy(np.asarray(scalars))


def per_tensor(scalars: Scalars, devices: Sequence[torch.device]) -> list[Any]:
    """The numbers one by one.

    Args:
        scalars: K numbers.
        devices: where each is needed, K entries.

    Returns:
        Numbers of Python where they are on the host, otherwise 0-d tensors on those devices.
    """
    if not isinstance(scalars, Tensor):
        return list(scalars.tolist())
    there = {device: scalars.to(device).unbind() for device in dict.fromkeys(devices)}
    return [there[device][i] for i, device in enumerate(devices)]


def one_tensor(
    numbers: Sequence[float | Tensor], dtype: torch.dtype, device: torch.device, constant: Constants
) -> Tensor:
    """One tensor of numbers, most of which are the same number again and again (of a parameter group).

    Nothing is launched for each of them, and nothing waits for an accelerator.

    Args:
        numbers: K numbers, or tensors of one entry.
        dtype: dtype of the result.
        device: where the result is.
        constant: what keeps tensors of host numbers.

    Returns:
        Shape (K,).
    """
    keys = [id(number) if isinstance(number, Tensor) else float(number) for number in numbers]
    distinct = dict(zip(keys, numbers, strict=True))
    made = [
        number.reshape(()).to(device, dtype) if isinstance(number, Tensor)
        else torch.full((), number, dtype=dtype, device=device)
        for number in distinct.values()
    ]  # fmt: skip
    if len(made) == 1:
        return made[0].expand(len(numbers))
    if len(made) == len(numbers):
        return torch.stack(made)
    places = {key: place for place, key in enumerate(distinct)}
    return torch.stack(made).index_select(0, constant([places[key] for key in keys], torch.int64, device))
