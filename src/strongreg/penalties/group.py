"""Penalties on groups of weights: whole output channels or neurons become 0 together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.penalties.base import Penalty, distance_to_interval, largest, sign, soft_threshold
from strongreg.penalties.terms import Terms
from strongreg.precision import at_least_float32, scalar_dtype
from strongreg.validation import check_number

_NUM_BISECTIONS = 200


@dataclass(frozen=True)
class GroupL2(Penalty):
    r"""The group lasso, :math:`\lambda \sum_G \omega_G \lVert w_G\rVert_2`: each group is kept or exactly 0 as a whole.

    A group is all weights that share an index along ``dim``: ``dim=0`` the weights into one output channel or neuron,
    ``dim=1`` those out of one input channel, ``dim=(0, 1)`` one convolution kernel.

    Args:
        strength: :math:`\lambda`, >= 0.
        dim: dimension or dimensions that number the groups; None, the default, is the dimension of the output channels:
            0, and 1 for transposed convolutions when a :class:`strongreg.Regularizer` applies it.
        weight_by_size: whether :math:`\omega_G` is the square root of the group's number of weights (1 otherwise).

    Raises:
        ValueError: ``strength`` is negative or not finite, or ``dim`` is empty or repeated.
        TypeError: ``dim`` is not an int, a tuple of ints or None.

    References:
        M. Yuan, Y. Lin, *Model Selection and Estimation in Regression with Grouped Variables*, J. R. Statist. Soc. B
        68 (2006).

    Example:
        >>> import torch, strongreg
        >>> strongreg.GroupL2(1.0).prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), step=1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
    """

    dim: int | tuple[int, ...] | None = None
    weight_by_size: bool = False

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        _check_dim(self, self.dim)

    def for_output_dim(self, dim: int) -> GroupL2:
        """See :meth:`Penalty.for_output_dim`."""
        return self if self.dim is not None else dataclasses.replace(self, dim=dim)

    def check_shape(self, shape: torch.Size) -> None:
        """See :meth:`Penalty.check_shape`."""
        _reduced_dims(shape, self.dim)

    def terms(self, shape: torch.Size) -> Terms | None:
        """See :meth:`Penalty.terms`."""
        if not _is_along_rows(shape, self.dim):
            return None
        return Terms(group=_group_weight(shape, self.dim, self.weight_by_size))

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """See :meth:`Penalty.separable_dims`: those that number the groups."""
        return sorted(set(range(len(shape))) - set(_reduced_dims(shape, self.dim)))

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`."""
        w = at_least_float32(w)
        return self.strength * self._weight(w) * _group_norms(w, self.dim).sum()

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        return self.strength * self._weight(w) * _unit_groups(w, self.dim)

    def critical_strength(self, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.critical_strength`."""
        return largest(_group_norms(grad, self.dim)) / self._weight(grad)

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        return _group_gap(w, grad, 0.0, self.strength * self._weight(w), self.dim)

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        return _group_soft_threshold(w, threshold * self._weight(w), self.dim)

    def _weight(self, w: Tensor) -> float:
        return _group_weight(w.shape, self.dim, self.weight_by_size)


@dataclass(frozen=True)
class SparseGroup(Penalty):
    r"""The sparse group lasso, :math:`\lambda\,(\rho\lVert w\rVert_1 + (1-\rho) \sum_G \omega_G\lVert w_G\rVert_2)`.

    Whole groups become 0, and single weights within the groups that stay.

    Args:
        strength: :math:`\lambda`, >= 0.
        l1_ratio: :math:`\rho`, the share of L1, between 0 (group lasso) and 1 (lasso).
        dim: dimension or dimensions that number the groups, as in :class:`GroupL2`.
        weight_by_size: whether :math:`\omega_G` is the square root of the group's number of weights (1 otherwise).

    Raises:
        ValueError: ``strength`` or ``l1_ratio`` is out of range, or ``dim`` is empty or repeated.
        TypeError: ``dim`` is not an int, a tuple of ints or None.

    References:
        N. Simon, J. Friedman, T. Hastie, R. Tibshirani, *A Sparse-Group Lasso*, J. Comput. Graph. Statist. 22 (2013).

    Example:
        >>> import torch, strongreg
        >>> strongreg.SparseGroup(2.0, l1_ratio=0.5).prox(torch.tensor([[5.0, 0.5], [1.5, 1.0]]), step=1.0)
        tensor([[3., 0.],
                [0., 0.]])
    """

    l1_ratio: float = 0.5
    dim: int | tuple[int, ...] | None = None
    weight_by_size: bool = False

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        check_number(self, "l1_ratio", minimum=0.0, maximum=1.0)
        _check_dim(self, self.dim)

    def for_output_dim(self, dim: int) -> SparseGroup:
        """See :meth:`Penalty.for_output_dim`."""
        return self if self.dim is not None else dataclasses.replace(self, dim=dim)

    def check_shape(self, shape: torch.Size) -> None:
        """See :meth:`Penalty.check_shape`."""
        _reduced_dims(shape, self.dim)

    def terms(self, shape: torch.Size) -> Terms | None:
        """See :meth:`Penalty.terms`."""
        if not _is_along_rows(shape, self.dim):
            return None
        weight = _group_weight(shape, self.dim, self.weight_by_size)
        return Terms(l1=self.l1_ratio, group=(1 - self.l1_ratio) * weight)

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """See :meth:`Penalty.separable_dims`: those that number the groups."""
        return sorted(set(range(len(shape))) - set(_reduced_dims(shape, self.dim)))

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`."""
        w = at_least_float32(w)
        l1, l2 = self._parts(w)
        return self.strength * (l1 * w.abs().sum() + l2 * _group_norms(w, self.dim).sum())

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        l1, l2 = self._parts(w)
        return self.strength * (l1 * sign(w) + l2 * _unit_groups(w, self.dim))

    def critical_strength(self, grad: Tensor) -> Tensor:
        r"""See :meth:`Penalty.critical_strength`.

        The root of :math:`\lVert S(g_G, \lambda\rho)\rVert = \lambda (1-\rho)\omega_G`, the largest over the groups, by
        bisection to the last bit.
        """
        l1, l2 = self._parts(grad)
        if grad.numel() == 0 or l1 == 1:
            return largest(grad.abs())
        if l1 == 0:
            return largest(_group_norms(grad, self.dim)) / l2
        # above either bound alone the group is 0; w = 0 is stationary at strength 0 only if the gradient is 0
        reduced = _reduced_dims(grad.shape, self.dim)
        by_l1 = grad.abs().amax(reduced, keepdim=True) if reduced else grad.abs()
        high = torch.minimum(by_l1 / l1, _group_norms(grad, self.dim) / l2)
        low = torch.zeros_like(high)
        for _ in range(_NUM_BISECTIONS):
            middle = (low + high) / 2
            zero = _group_norms(soft_threshold(grad, middle * l1), self.dim) <= middle * l2
            low, high = torch.where(zero, low, middle), torch.where(zero, middle, high)
        return largest(high)

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        l1, l2 = self._parts(w)
        return _group_gap(w, grad, self.strength * l1, self.strength * l2, self.dim)

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        l1, l2 = self._parts(w)
        return _group_soft_threshold(soft_threshold(w, threshold * l1), threshold * l2, self.dim)

    def _parts(self, w: Tensor) -> tuple[float, float]:
        weight = _group_weight(w.shape, self.dim, self.weight_by_size)
        return self.l1_ratio, (1 - self.l1_ratio) * weight


def _check_dim(owner: object, dim: int | tuple[int, ...] | None) -> None:
    dims = (dim,) if isinstance(dim, int) else dim
    if dims is None:
        return
    label = f"{type(owner).__name__}(dim={dim!r})"
    if isinstance(dim, bool) or not isinstance(dims, tuple) or not all(type(d) is int for d in dims):
        raise TypeError(f"{label}: dim must be an int, a tuple of ints or None")
    if len(dims) == 0 or len(set(dims)) < len(dims):
        raise ValueError(f"{label}: dim must name at least one dimension, each once")


def _reduced_dims(shape: torch.Size, dim: int | tuple[int, ...] | None) -> list[int]:
    """The dimensions within a group: all that do not number the groups."""
    num_dims = len(shape)
    if num_dims == 0:
        return []
    dims = (0,) if dim is None else (dim,) if isinstance(dim, int) else dim
    outside = [d for d in dims if not -num_dims <= d < num_dims]
    if outside:
        raise ValueError(
            f"dim={dim!r} does not exist in weights of shape {tuple(shape)}: choose dims from 0 to {num_dims - 1}"
        )
    numbering = {d % num_dims for d in dims}
    return [d for d in range(num_dims) if d not in numbering]


def _is_along_rows(shape: torch.Size, dim: int | tuple[int, ...] | None) -> bool:
    """Whether dimension 0, and it alone, numbers groups of several weights."""
    return len(shape) > 1 and _reduced_dims(shape, dim) == list(range(1, len(shape)))


def _group_norms(w: Tensor, dim: int | tuple[int, ...] | None) -> Tensor:
    reduced = _reduced_dims(w.shape, dim)
    if not reduced:
        return w.abs()
    # squares of weights below 1e-19 leave the range of float32
    norms: Tensor = torch.linalg.vector_norm(w, dim=reduced, keepdim=True, dtype=scalar_dtype(w.device))
    return norms.to(w.dtype)


def _group_weight(shape: torch.Size, dim: int | tuple[int, ...] | None, weight_by_size: bool) -> float:
    # groups without weights have no influence; 1 keeps divisions by the weight finite
    return math.sqrt(max(math.prod(shape[d] for d in _reduced_dims(shape, dim)), 1)) if weight_by_size else 1.0


def _unit_groups(w: Tensor, dim: int | tuple[int, ...] | None) -> Tensor:
    norms = _group_norms(w, dim)
    return torch.where(norms == 0, torch.zeros_like(w), w / norms)


def _group_soft_threshold(w: Tensor, threshold: float | Tensor, dim: int | tuple[int, ...] | None) -> Tensor:
    norms = _group_norms(w, dim)
    # written so that a NaN norm falls through to NaN weights
    return torch.where(norms <= threshold, torch.zeros_like(w), w * (1 - threshold / norms))


def _group_gap(w: Tensor, grad: Tensor, l1: float, l2: float, dim: int | tuple[int, ...] | None) -> Tensor:
    """Distance of -grad to l1 * d||.||_1 + l2 * sum of d||.||_2, the largest over the groups."""
    # a group at 0: distance to l1 * [-1, 1]^n + l2 * (unit ball)
    at_zero = (_group_norms(distance_to_interval(grad, l1), dim) - l2).clamp(min=0)
    # elsewhere the group term is smooth; within the group, a weight at 0 has the interval [-l1, l1]
    smooth = grad + l2 * _unit_groups(w, dim)
    residual = torch.where(w == 0, distance_to_interval(smooth, l1), (smooth + l1 * sign(w)).abs())
    return largest(torch.where(_group_norms(w, dim) == 0, at_zero, _group_norms(residual, dim)))
