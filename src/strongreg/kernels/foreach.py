"""The passes on accelerators without Triton, by torch's own operations over joined tensors: few launches for many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from strongreg.devices import Constants, reading_is_free
from strongreg.groups import Target
from strongreg.kernels.layout import is_dense, is_plain, known_terms, laid_out_as, selected
from strongreg.kernels.reference import ReferencePasses
from strongreg.kernels.zeros import BooleanZeros
from strongreg.penalties import MCP
from strongreg.penalties.base import sign, soft_threshold
from strongreg.penalties.terms import Terms
from strongreg.precision import at_least_float32, scalar_dtype
from strongreg.scalars import one_tensor

_MOST_JOINED = 2**22  # entries: their copies, some of them in float64, are to stay small


class ForeachPasses(BooleanZeros):
    """The passes over tensors of one dtype on one device.

    Tensors whose penalties have the same terms are joined, worked on as one, and taken apart again by torch's foreach
    operations. The norms of groups take a launch for each tensor, and large tensors go one by one.

    Args:
        targets: n penalized parameters of one dtype and device, all of which :meth:`accepts` takes.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._device = targets[0].param.device
        self._constant = Constants()
        self._parts: list[tuple[list[int], _Joined | ReferencePasses]] = []
        for rows in _joined_rows(targets):
            members = [targets[i] for i in rows]
            self._parts.append((rows, _Joined(members) if len(rows) > 1 else ReferencePasses(members)))
        order = [i for rows, _ in self._parts for i in rows]
        self._places = [order.index(i) for i in range(len(order))]

    @staticmethod
    def accepts(target: Target) -> bool:
        """Whether a parameter can be worked on.

        Args:
            target: the penalized parameter.

        Returns:
            True for dense tensors on an accelerator under a penalty whose terms are known.
        """
        param = target.param
        if reading_is_free(param.device) or not is_plain(param) or not is_dense(param):
            return False
        return known_terms(target) is not None

    def products(
        self, pulls: Sequence[Tensor | None], minus: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.products`."""
        sums = [
            part.products(selected(pulls, rows), selected(minus, rows), selected(weights, rows))
            for rows, part in self._parts
        ]
        return torch.cat(sums).index_select(0, self._constant(self._places, torch.int64, self._device))

    def squares(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.squares`."""
        given = [tensor for tensor in tensors if tensor is not None]
        dtype = scalar_dtype(self._device)
        norms = torch.zeros(1, dtype=dtype, device=self._device)
        if given:
            norms = torch.cat([norms, _norms(given, 2, dtype)])
        places = iter(range(1, len(norms)))
        index = [0 if tensor is None else next(places) for tensor in tensors]
        return norms.square().index_select(0, self._constant(index, torch.int64, self._device))

    def shrink(
        self, weights: Sequence[Tensor], factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]
    ) -> None:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.shrink`."""
        for rows, part in self._parts:
            part.shrink(selected(weights, rows), selected(factors, rows), selected(step_sizes, rows))


class _Joined:
    """The passes over tensors under penalties of the same terms, in one tensor of all their entries."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._params = [target.param for target in targets]
        self._device = self._params[0].device
        self._constant = Constants()
        self._sizes = [param.numel() for param in self._params]
        terms = [known_terms(target) or Terms() for target in targets]
        self._terms = terms[0]
        self._strengths = self._numbers([target.penalty.strength for target in targets])
        self._repeats = torch.tensor(self._sizes, device=self._device), sum(self._sizes)
        # of each group the tensor that it is in, the weight of its norm, its number of entries
        grouped = self._params if self._terms.group else []
        of_groups = [k for k, param in enumerate(grouped) for _ in range(len(param))]
        lengths = [self._sizes[k] // len(self._params[k]) for k in of_groups]
        self._group_of = torch.tensor(of_groups, dtype=torch.int64, device=self._device)
        self._group_weights = self._numbers([terms[k].group for k in of_groups])
        self._group_repeats = torch.tensor(lengths, dtype=torch.int64, device=self._device), sum(lengths)

    def products(
        self, pulls: Sequence[Tensor | None], minus: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`ForeachPasses.products`."""
        wide = scalar_dtype(self._device)
        w = self._join(weights)
        p = self._join([w if pull is None else pull for pull, w in zip(pulls, weights, strict=True)])
        if any(other is not None for other in minus):
            pairs = zip(minus, weights, strict=True)
            q = self._join([w if other is None else other for other, w in pairs])
            p = p - q * self._spread(self._numbers([float(other is not None) for other in minus]), self._repeats)
        r = self._subgradient(w).to(wide)
        p, w = p.to(wide), w.to(wide)
        cross = p * r
        # torch sums many tensors at once as norms only: the positive and the negative part, each of one sign
        norms = _norms(self._split(p, r, w), 2, wide).view(3, -1).square()
        parts = _norms(self._split(cross.clamp(min=0), cross.clamp(max=0)), 1, wide).view(2, -1)
        strengths, known = self._strengths, self._numbers([float(pull is not None) for pull in pulls])
        sums = torch.stack([norms[0], (parts[0] - parts[1]) * strengths, norms[1] * strengths.square()])
        return torch.cat([torch.where(known > 0, sums, 0.0), norms[2:]]).T

    def shrink(
        self, weights: Sequence[Tensor], factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]
    ) -> None:
        """See :meth:`ForeachPasses.shrink`."""
        dtype = scalar_dtype(self._device)
        multipliers, steps = (one_tensor(each, dtype, self._device, self._constant) for each in (factors, step_sizes))
        thresholds = steps.clamp(min=0) * multipliers * self._strengths
        w = self._join(weights)
        is_open = self._spread((thresholds > 0).to(w.dtype), self._repeats) > 0
        shrunk = torch.where(is_open, self._prox(w, thresholds), w)
        torch._foreach_copy_([_in_memory(weight) for weight in weights], self._split(shrunk))

    def _subgradient(self, w: Tensor) -> Tensor:
        """The penalty's gradient at strength 1."""
        terms = self._terms
        r = torch.zeros_like(w)
        if terms.l1:
            faded = 1.0 if math.isinf(terms.cutoff) else (1 - w.abs() / terms.cutoff).clamp(min=0)
            r = terms.l1 * sign(w) * faded
        if terms.l2:
            r = r + terms.l2 * w
        if terms.group:
            norms = self._norms_of_groups(w)
            unit = w / self._spread(torch.where(norms == 0, 1.0, norms), self._group_repeats)
            r = r + unit * self._spread(self._group_weights.to(w.dtype), self._group_repeats)
        return r

    def _prox(self, w: Tensor, thresholds: Tensor) -> Tensor:
        """The proximal operator with a threshold for each tensor."""
        terms = self._terms
        if not math.isinf(terms.cutoff):
            return MCP(1.0, terms.cutoff)._prox(w, self._spread((thresholds * terms.l1).to(w.dtype), self._repeats))
        if terms.l1:
            w = soft_threshold(w, self._spread((thresholds * terms.l1).to(w.dtype), self._repeats))
        if terms.l2:
            w = w / self._spread((1 + thresholds * terms.l2).to(w.dtype), self._repeats)
        if terms.group:
            norms = self._norms_of_groups(w)
            t = (thresholds.index_select(0, self._group_of) * self._group_weights).to(w.dtype)
            # written so that a NaN norm falls through to NaN weights
            kept = self._spread(torch.where(norms <= t, 0.0, 1 - t / norms), self._group_repeats)
            w = torch.where(kept == 0, 0.0, w * kept)
        return w

    def _norms_of_groups(self, w: Tensor) -> Tensor:
        wide = scalar_dtype(w.device)
        pairs = zip(self._split(w), self._params, strict=True)
        norms = [torch.linalg.vector_norm(each.view(len(p), -1), dim=1, dtype=wide) for each, p in pairs if len(p)]
        return torch.cat([w.new_empty(0, dtype=wide), *norms]).to(w.dtype)

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        """All entries in the order of the parameters' memory, in the dtype to compute in."""
        pairs = zip(self._params, tensors, strict=True)
        return at_least_float32(torch.cat([_in_memory(laid_out_as(param, tensor)) for param, tensor in pairs]))

    def _split(self, *joined: Tensor) -> list[Tensor]:
        return [part for each in joined for part in each.split(self._sizes)]

    def _spread(self, numbers: Tensor, repeats: tuple[Tensor, int]) -> Tensor:
        """A number for each entry, from one for each tensor or group."""
        return torch.repeat_interleave(numbers, repeats[0], output_size=repeats[1])

    def _numbers(self, numbers: list[float]) -> Tensor:
        return self._constant(numbers, scalar_dtype(self._device), self._device)


def _joined_rows(targets: Sequence[Target]) -> list[list[int]]:
    """Which tensors to join: of the same terms, up to a number of entries."""
    joined: list[list[int]] = []
    last: dict[tuple[float, float, float, bool], tuple[list[int], int]] = {}
    for i, target in enumerate(targets):
        terms = known_terms(target) or Terms()
        kind = terms.l1, terms.l2, terms.cutoff, terms.group > 0
        rows, size = last.get(kind, ([], 0))
        size += target.param.numel()
        if not rows or size > _MOST_JOINED:
            rows, size = [], target.param.numel()
            joined.append(rows)
        rows.append(i)
        last[kind] = rows, size
    return joined


def _norms(tensors: Sequence[Tensor], order: float, dtype: torch.dtype) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors), order, dtype=dtype))


def _in_memory(tensor: Tensor) -> Tensor:
    """The entries of a dense tensor in the order of its memory: a view of one dimension."""
    return tensor.as_strided((tensor.numel(),), (1,))
