"""What depends on where a tensor lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MAX_CONSTANTS = 64
_HOST = ("cpu",)


def reading_is_free(device: torch.device) -> bool:
    """Whether the host can look at a tensor's value without waiting for an accelerator.

    Args:
        device: where the tensor is.

    Returns:
        True on the CPU.
    """
    return device.type in _HOST


class Constants:
    """Tensors of host numbers, kept: to send one to an accelerator at each step would wait for the accelerator."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def __len__(self) -> int:
        """Number of kept tensors."""
        return len(self._kept)

    def __call__(self, values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The numbers as a tensor.

        Args:
            values: n numbers.
            dtype: its dtype.
            device: where it lives.

        Returns:
            Tensor of shape (n,), not to be written to.
        """
        key = (tuple(values), dtype, device)
        if key not in self._kept:
            if len(self._kept) >= _MAX_CONSTANTS:  # which parameters have a gradient may differ at every step
                self._kept.clear()
            self._kept[key] = torch.tensor(values, dtype=dtype, device=device)
        return self._kept[key]
