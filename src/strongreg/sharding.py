"""Penalized parameters of which each process holds a part: the parts, and sums over all of them.

The passes of a step see nothing but the plain local parts. What is summed over weights is then summed over processes,
so that all of them take the same decision. In networks of plain tensors (one process, DistributedDataParallel) nothing
here does anything: there every process holds all weights and the mean gradient, and comes to the same decision itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from strongreg.devices import Constants
from strongreg.dtensors import as_dtensor, is_dtensor, local, part_of, whole
from strongreg.groups import Target
from strongreg.penalties import Penalty
from strongreg.scalars import Scalars, as_scalars, as_tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_Anything = TypeVar("_Anything", bound=Tensor | None)


@dataclass(frozen=True)
class GatheredPenalty(Penalty):
    """A penalty that only makes sense on the whole tensor, for the part of it that this process holds.

    Each method gathers the tensor first, and gives back this process's part: all processes must call it.

    Args:
        strength: its strength.
        penalty: the penalty.
        param: the parameter, a DTensor.
    """

    penalty: Penalty
    param: DTensor

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """See :meth:`Penalty.prox`; a class may have its own."""
        return part_of(self.penalty.prox(self._whole(w), step), self.param)

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`: in the first of the processes, and 0 in the others, for the sum over them."""
        value = self.penalty.value(self._whole(w))
        return value if _is_first(self.param) else torch.zeros_like(value)

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        return part_of(self.penalty.subgradient(self._whole(w)), self.param)

    def critical_strength(self, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.critical_strength`."""
        return self.penalty.critical_strength(self._whole(grad))

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        return self.penalty.optimality_gap(self._whole(w), self._whole(grad))

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        return part_of(self.penalty._prox(self._whole(w), threshold), self.param)

    def _whole(self, w: Tensor) -> Tensor:
        return whole(as_dtensor(w, self.param))


class Shards:
    """What each process holds of the penalized parameters.

    Args:
        targets: the K penalized parameters.

    Raises:
        ValueError: a parameter is a DTensor of partial sums.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._is_dtensor = [is_dtensor(target.param) for target in targets]
        self._constant = Constants()
        for target in targets:
            _check_placements(target)

    @functools.cached_property
    def _groups(self) -> list[list[dist.ProcessGroup]]:
        return [_groups_of(target.param) for target in self._targets]

    def targets(self) -> Sequence[Target]:
        """The K penalized parameters with this process's parts in the place of the tensors."""
        if not any(self._is_dtensor):
            return self._targets
        return [
            Target(target.name, local(target.param), penalty, target.by_pattern) if shared else target
            for target, penalty, shared in zip(self._targets, self._penalties, self._is_dtensor, strict=True)
        ]

    @functools.cached_property
    def _penalties(self) -> list[Penalty]:
        return [_penalty_of_part(target) for target in self._targets]

    def parts(self, tensors: Sequence[_Anything]) -> Sequence[_Anything]:
        """This process's parts of tensors that are laid out as the parameters are, or are brought into that form.

        Args:
            tensors: K tensors, or None.

        Returns:
            K plain tensors, or None.
        """
        if not any(self._is_dtensor):
            return tensors
        return [local(tensor, target.param) for tensor, target in zip(tensors, self._targets, strict=True)]

    @property
    def sizes(self) -> list[int]:
        """The number of weights of each parameter, in all processes together, K entries."""
        return [target.param.numel() for target in self._targets]

    def num_zeros(self) -> list[int]:
        """The number of weights that are 0 of each parameter, K entries; all processes must ask."""
        device = self._targets[0].param.device
        counts = torch.stack([(target.param == 0).sum().to(device) for target in self.targets()])
        return self.total(as_scalars(counts))[0].tolist()  # type: ignore[no-any-return]

    def total(
        self, sums: Scalars, others: Scalars = 0.0, other_params: Sequence[Tensor] = ()
    ) -> tuple[Scalars, Scalars]:
        """Sums over the weights of this process, summed over all processes. They must all ask.

        Args:
            sums: of the penalized parameters, shape (K,) or (K, n).
            others: of the other parameters together, 0-d and not negative: some sum that is finite, or 0, where each of
                theirs is.
            other_params: these parameters.

        Returns:
            Both, the same in all processes.
        """
        others_groups = [_groups_of(param) for param in other_params if is_dtensor(param)]
        groups = list(dict.fromkeys(group for each in (*self._groups, *others_groups) for group in each))
        if not groups:
            return sums, others
        mine = as_tensor(sums)
        rest = as_tensor(others).to(mine)
        for group in groups:
            both = torch.cat([mine.reshape(-1), rest.reshape(1)])
            dist.all_reduce(both, group=group)
            is_cut = self._constant([group in each for each in self._groups], torch.bool, mine.device)
            summed = both[:-1].view_as(mine)
            # what is no sum over these processes is their mean, so that all of them have the same where theirs differ
            mean = torch.div(summed, group.size(), rounding_mode=None if mine.is_floating_point() else "floor")
            mine = torch.where(is_cut if mine.dim() == 1 else is_cut[:, None], summed, mean)
            rest = both[-1]
        return as_scalars(mine), as_scalars(rest)


def _penalty_of_part(target: Target) -> Penalty:
    """The penalty for the part of a parameter that this process holds."""
    param: Any = target.param
    penalty = target.penalty
    if not is_dtensor(param):
        return penalty
    cut = {placement.dim for placement in param.placements if not placement.is_replicate()}
    # a class that changes what it inherits may not be cut as what it inherits from
    known = "separable_dims" in vars(type(penalty))
    if cut and not (known and cut <= set(penalty.separable_dims(param.shape))):
        return GatheredPenalty(penalty.strength, penalty, param)
    return penalty


def _check_placements(target: Target) -> None:
    param: Any = target.param
    if is_dtensor(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"parameter {target.name!r} is a DTensor of partial sums ({param.placements}): redistribute it to Shard or "
            "Replicate before it is penalized"
        )


def _groups_of(param: Tensor) -> list[dist.ProcessGroup]:
    """The groups of processes, one per dimension of the mesh, over whose parts a sum must be taken."""
    if not is_dtensor(param):
        return []
    shared: Any = param
    mesh = shared.device_mesh
    return [
        mesh.get_group(dim)
        for dim, placement in enumerate(shared.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    ]


def _is_first(param: DTensor) -> bool:
    coordinate: Any = param.device_mesh.get_coordinate()
    return not any(place for place, each in zip(coordinate, param.placements, strict=True) if not each.is_replicate())
