"""Which weights are to stay zero over a step of the optimizer: a boolean for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class BooleanZeros:
    """Marks zeros before a step and sets them to zero after it, by torch's own operations."""

    def mark_zeros(
        self, weights: Sequence[Tensor], others: Sequence[Tensor | None], flags: Sequence[bool | Tensor]
    ) -> Any:
        """Mark the zeros of some tensors.

        Args:
            weights: n tensors.
            others: what is to be marked beside the zeros, n boolean tensors, or None.
            flags: whether anything of a tensor is to be marked at all, n entries; 0-d tensors on an accelerator.

        Returns:
            For :meth:`set_zeros`.
        """
        marks = []
        for weight, other, flag in zip(weights, others, flags, strict=True):
            zero = weight == 0 if other is None else (weight == 0) | other.to(weight.device)
            marks.append(zero & flag)
        return marks

    def set_zeros(self, weights: Sequence[Tensor], marks: Any) -> None:
        """Set what was marked to zero, in place.

        Args:
            weights: n tensors.
            marks: what :meth:`mark_zeros` returned for tensors of the same shapes.
        """
        for weight, mark in zip(weights, marks, strict=True):
            weight.masked_fill_(mark, 0.0)
