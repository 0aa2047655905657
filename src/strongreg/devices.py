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


def is_captured(device: torch.device) -> bool:
    """Whether what is launched on a device now goes into a CUDA graph, to be done again at each replay.

    Args:
        device: the current device, or one that has no such graphs.

    Returns:
        True during a capture.
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Constants:
    """Tensors of host numbers, kept: to send one to an accelerator at each step would wait for the accelerator."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._in_graphs: list[Tensor] = []

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
            self._kept[key] = torch.tensor(key[0], dtype=dtype, device=device)
        if is_captured(device):
            self._in_graphs.append(self._kept[key])  # it is read at each replay
        return self._kept[key]
