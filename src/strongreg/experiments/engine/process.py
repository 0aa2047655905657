"""What a process that does nothing but train is set to, for speed; no number changes by it but denormal ones."""

from __future__ import annotations

import ctypes
import os

import torch

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of glibc's mallopt
_ALL_BUT_HUGE, _OF_OLDER_GLIBC = 2**30, 2**25  # bytes
_NEVER, _AT_ONCE = 2**31 - 1, 2**26  # bytes
_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def prepare_process() -> None:
    """Set this process for training on the CPU: denormal numbers are 0, and memory that was freed is kept.

    The weights of a dying network pass through denormal numbers, which slow the CPU threefold. The memory of the
    activations of a step would go back to the system after each step, and come again page by page.
    """
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have glibc keep the memory that tensors have freed, for the tensors of the next step.

    Returns:
        Whether it does; False where there is no glibc, and where the user has set it by environment variables.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    large = mallopt(_MMAP_THRESHOLD, _ALL_BUT_HUGE) or mallopt(_MMAP_THRESHOLD, _OF_OLDER_GLIBC)
    return bool(large and mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_TOP_PAD, _AT_ONCE))
