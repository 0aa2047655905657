"""What depends on where a tensor lives."""

from __future__ import annotations

import torch


def reading_is_free(device: torch.device) -> bool:
    """Whether the host can look at a tensor's value without waiting for an accelerator.

    Args:
        device: where the tensor is.

    Returns:
        True on the CPU.
    """
    return device.type == "cpu"
