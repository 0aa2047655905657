"""The two passes of a step over all penalized tensors, each by the fastest way that takes it.

To be called where gradients are not recorded (``torch.no_grad``). Where each process holds a part of a parameter, all
tensors are such parts, and so are the sums: :attr:`Passes.shards` sums them over the processes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from strongreg.devices import Constants, reading_is_free
from strongreg.groups import Target
from strongreg.kernels.adam import AdamStep
from strongreg.kernels.blocks import BlockedPasses
from strongreg.kernels.compiled import CompiledPasses, square_of_all
from strongreg.kernels.foreach import ForeachPasses
from strongreg.kernels.layout import has_plain_memory, selected
from strongreg.kernels.multi_tensor import MultiTensorPasses
from strongreg.kernels.reference import ReferencePasses
from strongreg.kernels.zeros import PackedMask
from strongreg.precision import scalar_dtype
from strongreg.scalars import Scalars, as_scalars
from strongreg.sharding import Shards

_Way = CompiledPasses | BlockedPasses | MultiTensorPasses | ForeachPasses | ReferencePasses
_WAYS: tuple[type[_Way], ...] = (CompiledPasses, BlockedPasses, MultiTensorPasses, ForeachPasses, ReferencePasses)
_ASPECTS: tuple[Callable[[Tensor], Any], ...] = (
    type,
    operator.attrgetter("device"),
    operator.attrgetter("dtype"),
    operator.attrgetter("shape"),
    Tensor.stride,
    Tensor.is_neg,
    lambda param: param.data_ptr() == 0,
)
"""What decides on the way for a parameter."""
_LAID_OUT = slice(2, 5)
"""Those of its dtype, shape and strides."""


class Passes:
    """The passes over the penalized tensors of a network, whatever their devices and dtypes.

    Attributes:
        constant: the numbers of the host that they need on an accelerator.
        shards: what this process holds of the parameters.

    Args:
        targets: the K penalized parameters.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.constant = Constants()
        self.shards = Shards(targets)
        self._targets = self.shards.targets()
        self._seen: list[list[Any]] = []
        self._is_off = [target.penalty.strength == 0 for target in targets]
        self._parts: list[tuple[list[int], _Way]] = []

    def products(
        self,
        pulls: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        device: torch.device,
        minus: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Inner products at full strength.

        Args:
            pulls: what moves each tensor apart from the penalty, K tensors; None counts as zeros, the penalty gradient
                too.
            weights: where to take the penalty gradients, K tensors.
            device: where to gather the numbers.
            minus: what is to be subtracted from each pull, K tensors.

        Returns:
            Shape (K, 4), float64 where the device has it: of pull and pull, pull and penalty gradient, penalty gradient
            and itself, weights and themselves.
        """
        others = [None] * len(pulls) if minus is None else minus
        parts = [
            (rows, way.products(selected(pulls, rows), selected(others, rows), selected(weights, rows)))
            for rows, way in self._current()
        ]
        return self._without_the_off(self._gather(parts, device))

    def foreseen(
        self,
        gradients: Sequence[Tensor | None],
        steps: Sequence[AdamStep],
        weights: Sequence[Tensor],
        device: torch.device,
    ) -> Tensor:
        """Inner products of the steps that Adam is about to take and the penalty gradients, at full strength.

        Args:
            gradients: the loss gradients, K tensors on the CPU; None counts as zeros, the penalty gradient too.
            steps: what the steps are made of, K entries.
            weights: the weights before the steps, K tensors on the CPU.
            device: where to gather the numbers.

        Returns:
            Shape (K, 5): as from :meth:`products`, and of gradients and themselves.
        """
        parts = []
        for rows, way in self._current():
            assert not isinstance(way, MultiTensorPasses | ForeachPasses)  # for accelerators
            parts.append(
                (rows, way.foreseen(selected(gradients, rows), selected(steps, rows), selected(weights, rows)))
            )
        return self._without_the_off(self._gather(parts, device))

    def squares(self, tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
        """Squared norms.

        Args:
            tensors: K tensors of the shapes of the parameters; None counts as zeros.
            device: where to gather the numbers.

        Returns:
            Shape (K,), float64 where the device has it.
        """
        parts = [(rows, way.squares(selected(tensors, rows))) for rows, way in self._current()]
        return self._gather(parts, device)

    def shrink(self, factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]) -> None:
        """The proximal step of every parameter, in place.

        Args:
            factors: factor on the strength of each, K entries; at 0 no bit changes. Numbers, or 0-d tensors where the
                host does not know whether the gate is open.
            step_sizes: effective step size for each, K entries.
        """
        if not any(isinstance(factor, Tensor) or factor for factor in factors):
            return
        current = self._current()
        weights = [target.param for target in self._targets]
        for rows, way in current:
            way.shrink(selected(weights, rows), selected(factors, rows), selected(step_sizes, rows))

    def mark_zeros(
        self, weights: Sequence[Tensor], others: Sequence[Tensor | PackedMask | None], flags: Sequence[bool | Tensor]
    ) -> list[Any]:
        """Mark the weights that are 0.

        Args:
            weights: the weights before the step, K tensors.
            others: what is to be marked beside them, K masks, or None.
            flags: whether anything of a tensor is to be marked at all, K entries; 0-d tensors where the host does not
                know.

        Returns:
            For :meth:`set_zeros`.
        """
        return [
            way.mark_zeros(selected(weights, rows), selected(others, rows), selected(flags, rows))
            for rows, way in self._current()
        ]

    def set_zeros(self, marks: list[Any]) -> None:
        """Set what was marked to zero in every parameter, in place.

        Args:
            marks: what :meth:`mark_zeros` returned.

        Raises:
            RuntimeError: a parameter is not laid out as it was then.
        """
        weights = [target.param for target in self._targets]
        if [list(map(of, weights)) for of in _ASPECTS[_LAID_OUT]] != self._seen[_LAID_OUT]:
            raise RuntimeError(
                "the optimizer has changed shape, memory layout or dtype of a parameter within its step, and the "
                "zeros of a refit cannot be told in it: use an optimizer that changes parameters in place"
            )
        for (rows, way), marked in zip(self._parts, marks, strict=True):
            way.set_zeros(selected(weights, rows), marked)

    def _current(self) -> list[tuple[list[int], _Way]]:
        """The ways for the parameters as they are now: a network may have been moved or converted."""
        self._targets = self.shards.targets()
        params = [target.param for target in self._targets]
        seen = [list(map(of, params)) for of in _ASPECTS]
        if seen != self._seen:
            parts: dict[tuple[type[_Way], torch.device, torch.dtype], list[int]] = {}
            for i, target in enumerate(self._targets):
                kind = next(way for way in _WAYS if way.accepts(target))
                parts.setdefault((kind, target.param.device, target.param.dtype), []).append(i)
            self._parts = [(rows, kind([self._targets[i] for i in rows])) for (kind, _, _), rows in parts.items()]
            self._seen = seen
        return self._parts

    def _without_the_off(self, products: Tensor) -> Tensor:
        """A penalty of strength 0 has no gradient, not even where weights are not finite."""
        if any(self._is_off):
            off = self.constant(self._is_off, torch.bool, products.device)
            products[:, 1:3] = torch.where(off[:, None], 0.0, products[:, 1:3])
        return products

    def _gather(self, parts: list[tuple[list[int], Tensor]], device: torch.device) -> Tensor:
        """The rows of all parts in the order of the parameters."""
        numbers = [part.to(device=device, dtype=scalar_dtype(device)) for _, part in parts]
        if len(parts) == 1:
            return numbers[0]
        places = {row: place for place, row in enumerate(row for rows, _ in parts for row in rows)}
        order = self.constant([places[row] for row in range(len(places))], torch.int64, device)
        return torch.cat(numbers).index_select(0, order)


def size_of_all(tensors: Sequence[Tensor], device: torch.device) -> Scalars:
    """A norm of all entries of some tensors, to tell whether they are finite or 0.

    Args:
        tensors: any number, none of them empty.
        device: where to put the answer.

    Returns:
        0-d: finite if and only if all entries are, 0 if and only if all are.
    """
    if not tensors:
        return np.float64(0) if reading_is_free(device) else torch.zeros((), device=device)
    if all(reading_is_free(tensor.device) for tensor in tensors):
        size = square_of_all(tensors)
        if size is not None and 0 < size < math.inf:
            return (
                np.float64(size)
                if reading_is_free(device)
                else torch.tensor(size, dtype=scalar_dtype(device), device=device)
            )
        if all(has_plain_memory(tensor) for tensor in tensors):
            norm: Tensor = get_total_norm(tensors, 2.0, foreach=True)  # a tenth of the time of the largest entry
            if torch.isfinite(norm) and norm > 0:
                return as_scalars(norm.to(device, scalar_dtype(device)))
    # the largest entry, which cannot overflow or underflow as a sum of squares can
    return as_scalars(get_total_norm(tensors, math.inf).to(device, scalar_dtype(device)))
