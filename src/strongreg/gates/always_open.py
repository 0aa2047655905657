"""The gate that is always open: the plain penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.gates.base import Gate


@dataclass(frozen=True)
class AlwaysOpen(Gate):
    """The penalty acts at every step: ordinary regularization, which collapses beyond the tolerance level.

    Example:
        >>> import torch, strongreg
        >>> strongreg.AlwaysOpen().is_open(torch.tensor(-1.0), torch.tensor(0))
        tensor(True)
    """

    def is_open(self, coherence: Tensor, step: Tensor) -> Tensor:
        """See :meth:`Gate.is_open`."""
        del step
        return torch.ones_like(coherence, dtype=torch.bool)
