"""Which weights are to stay zero over a step of the optimizer: a boolean for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedMask:
    """A mask on the CPU, a bit for each weight.

    Args:
        bits: of the entries in the order of the memory, those of a byte from its lowest bit on.
        shape: the mask's.
        stride: how its entries lay in the memory, without gaps.
    """

    bits: npt.NDArray[np.uint8]
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, mask: Tensor) -> PackedMask:
        """The bits of a boolean tensor.

        Args:
            mask: any shape; what torch made of other tensors, so that its entries lie without gaps.

        Returns:
            The same mask.
        """
        in_order = mask.as_strided((mask.numel(),), (1,))
        return cls(np.packbits(in_order.numpy(), bitorder="little"), mask.shape, mask.stride())

    def unpacked(self) -> Tensor:
        """The boolean tensor."""
        flags = np.unpackbits(self.bits, count=math.prod(self.shape), bitorder="little")
        return torch.from_numpy(flags).view(torch.bool).as_strided(self.shape, self.stride)


def as_boolean(mask: Tensor | PackedMask) -> Tensor:
    """A mask as a boolean tensor.

    Args:
        mask: of either kind.

    Returns:
        The tensor.
    """
    return mask.unpacked() if isinstance(mask, PackedMask) else mask


class BooleanZeros:
    """Marks zeros before a step and sets them to zero after it, by torch's own operations."""

    def mark_zeros(
        self, weights: Sequence[Tensor], others: Sequence[Tensor | PackedMask | None], flags: Sequence[bool | Tensor]
    ) -> Any:
        """Mark the zeros of some tensors.

        Args:
            weights: n tensors.
            others: what is to be marked beside the zeros, n masks, or None.
            flags: whether anything of a tensor is to be marked at all, n entries; 0-d tensors on an accelerator.

        Returns:
            For :meth:`set_zeros`.
        """
        marks = []
        for weight, other, flag in zip(weights, others, flags, strict=True):
            zero = weight == 0 if other is None else (weight == 0) | as_boolean(other).to(weight.device)
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
