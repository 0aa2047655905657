"""The passes on the CPU by torch's own operations, in blocks that stay in the cache: for every dtype and penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strongreg.coherence import is_safe_square, squared_norm
from strongreg.devices import reading_is_free
from strongreg.groups import Target
from strongreg.kernels import reference
from strongreg.kernels.adam import AdamStep
from strongreg.kernels.layout import is_dense, is_plain, known_terms, laid_out_as
from strongreg.kernels.zeros import BooleanZeros
from strongreg.precision import at_least_float32
from strongreg.sharding import GatheredPenalty

_BLOCK = 65536  # entries: what is computed of a block is still in the second-level cache when it is used
_ZERO = torch.zeros((), dtype=torch.float64, device="cpu")


class BlockedPasses(BooleanZeros):
    """The passes over tensors of any dtype; a penalty whose terms are not known takes a tensor as one block.

    Args:
        targets: n penalized parameters, all of which :meth:`accepts` takes.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._penalties = [target.penalty for target in targets]
        self._terms = [known_terms(target) for target in targets]

    @staticmethod
    def accepts(target: Target) -> bool:
        """Whether a parameter can be worked on.

        Args:
            target: the penalized parameter.

        Returns:
            True for every plain tensor on the CPU, but where all processes must call the penalty equally often.
        """
        if isinstance(target.penalty, GatheredPenalty):
            return False
        return is_plain(target.param) and reading_is_free(target.param.device)

    def products(
        self, pulls: Sequence[Tensor | None], minus: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.products`."""
        sums = [self._sums(i, *each) for i, each in enumerate(zip(pulls, minus, weights, strict=True))]
        return torch.stack(sums)

    def foreseen(
        self, gradients: Sequence[Tensor | None], steps: Sequence[AdamStep], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.foreseen`."""
        each = zip(gradients, [None] * len(steps), weights, steps, strict=True)
        sums = torch.stack([self._sums(i, *arguments) for i, arguments in enumerate(each)])
        return torch.cat([sums, self.squares(gradients)[:, None]], dim=1)

    def squares(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.squares`."""
        squares = [_ZERO if each is None else _square(each) for each in tensors]
        return torch.stack(squares)

    def shrink(
        self, weights: Sequence[Tensor], factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]
    ) -> None:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.shrink`."""
        for i, (weight, factor, step_size) in enumerate(zip(weights, factors, step_sizes, strict=True)):
            step = float(factor) * float(step_size)
            if step > 0:
                for block in _cut(weight, self._length(i, weight)):
                    block.copy_(self._penalties[i].prox(block, step))

    def _sums(
        self, i: int, pull: Tensor | None, minus: Tensor | None, weight: Tensor, adam: AdamStep | None = None
    ) -> Tensor:
        if pull is None:
            return torch.stack([_ZERO, _ZERO, _ZERO, _square(weight)])
        penalty = self._penalties[i]
        sources = [pull, minus] if adam is None else [pull, adam.exp_avg, adam.exp_avg_sq]
        length = self._length(i, weight)
        blocks = _cut(weight, length)
        nothing = [None] * len(blocks)
        cut = [nothing if each is None else _cut(laid_out_as(weight, each, finer=True), length) for each in sources]
        parts = []
        for block, moved, *others in zip(blocks, *cut, strict=True):
            w = at_least_float32(block)
            p = moved if adam is None else adam.entries(moved, block, *others)
            p = _flat(p) if adam is not None or others[0] is None else _flat(p) - _flat(others[0])
            p, w = (each.to(torch.promote_types(p.dtype, w.dtype)) for each in (p, w))
            parts += [torch.dot(p, p), torch.dot(_flat(w), _flat(w))]
            if penalty.strength > 0:
                r = _flat(penalty.subgradient(w))
                parts += [torch.dot(p, r), torch.dot(r, r)]
        by_block = torch.stack(parts).double().reshape(len(blocks), -1).sum(dim=0)
        if all(is_safe_square(square) for square in (by_block[0], by_block[1], by_block[-1])):
            nothing_more = by_block.new_zeros(4 - len(by_block))
            return torch.cat([by_block, nothing_more])[[0, 2, 3, 1]]
        if adam is not None:
            pull = adam.entries(pull, weight, adam.exp_avg, adam.exp_avg_sq)
        return reference.sums(penalty, pull, minus, weight)

    def _length(self, i: int, weight: Tensor) -> int:
        """How many rows, or less than 0: how many entries, the penalty takes at once; 0 for all."""
        terms = self._terms[i]
        if weight.numel() <= _BLOCK or terms is None:
            return 0
        if terms.group:
            return max(_BLOCK * len(weight) // weight.numel(), 1)
        return -_BLOCK if is_dense(weight) else 0


def _cut(tensor: Tensor, length: int) -> list[Tensor]:
    """Views of parts of a tensor, in rows or in the order of its memory (less than 0)."""
    if length == 0:
        return [tensor]
    return list(tensor.split(length) if length > 0 else tensor.as_strided((tensor.numel(),), (1,)).split(-length))


def _flat(tensor: Tensor) -> Tensor:
    return at_least_float32(tensor.reshape(-1))


def _square(tensor: Tensor) -> Tensor:
    flat = _flat(tensor)
    square = torch.stack([torch.dot(block, block) for block in flat.split(_BLOCK)]).double().sum()
    return square if is_safe_square(square) else squared_norm(tensor)
