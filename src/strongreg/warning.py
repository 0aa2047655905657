"""Warnings that point at the user's line, not at one within torch or strongreg."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, str(torch.__file__)))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the innermost line outside torch and strongreg as the place.

    Args:
        message: what happened, and what to do.
        category: the kind of warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
