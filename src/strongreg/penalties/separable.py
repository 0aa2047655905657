"""Penalties that act on each weight by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.penalties.base import Penalty, distance_to_interval, largest, sign, soft_threshold
from strongreg.penalties.terms import Terms
from strongreg.precision import at_least_float32
from strongreg.validation import check_number


@dataclass(frozen=True)
class L1(Penalty):
    r"""The lasso penalty, :math:`\lambda \sum_i |w_i|`.

    Args:
        strength: :math:`\lambda`, >= 0.

    Raises:
        ValueError: ``strength`` is negative or not finite.

    References:
        R. Tibshirani, *Regression Shrinkage and Selection via the Lasso*, J. R. Statist. Soc. B 58 (1996).

    Example:
        >>> import torch, strongreg
        >>> strongreg.L1(0.5).prox(torch.tensor([2.0, -0.25, 0.0]), step=1.0)
        tensor([1.5000, 0.0000, 0.0000])
    """

    def terms(self, shape: torch.Size) -> Terms:
        """See :meth:`Penalty.terms`."""
        del shape
        return Terms(l1=1.0)

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """See :meth:`Penalty.separable_dims`: all."""
        return range(len(shape))

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`."""
        w = at_least_float32(w)
        return self.strength * w.abs().sum()

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        return self.strength * sign(w)

    def critical_strength(self, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.critical_strength`."""
        return largest(grad.abs())

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        return _l1_gap(w, grad, self.strength)

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        return soft_threshold(w, threshold)


@dataclass(frozen=True)
class L2(Penalty):
    r"""The ridge penalty, :math:`\tfrac{\lambda}{2} \lVert w\rVert^2`: weight decay. It gives no exact zeros.

    Args:
        strength: :math:`\lambda`, >= 0; the same number as ``weight_decay`` in ``torch.optim.SGD``.

    Raises:
        ValueError: ``strength`` is negative or not finite.

    References:
        A. E. Hoerl, R. W. Kennard, *Ridge Regression*, Technometrics 12 (1970).

    Example:
        >>> import torch, strongreg
        >>> strongreg.L2(1.0).prox(torch.tensor([2.0, -1.0]), step=1.0)
        tensor([ 1.0000, -0.5000])
    """

    @property
    def has_exact_zeros(self) -> bool:
        """Always False: shrinking by a factor never reaches 0."""
        return False

    def terms(self, shape: torch.Size) -> Terms:
        """See :meth:`Penalty.terms`."""
        del shape
        return Terms(l2=1.0)

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """See :meth:`Penalty.separable_dims`: all."""
        return range(len(shape))

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`."""
        w = at_least_float32(w)
        return 0.5 * self.strength * w.square().sum()

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        return self.strength * w

    def critical_strength(self, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.critical_strength`: infinite unless the gradient is 0 already."""
        return _critical_for_ridge(grad)

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        return largest((grad + self.strength * w).abs())

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        return w / (1 + threshold)


@dataclass(frozen=True)
class ElasticNet(Penalty):
    r"""L1 and L2 as in scikit-learn, :math:`\lambda (\rho\lVert w\rVert_1 + \tfrac{1-\rho}{2}\lVert w\rVert^2)`.

    Args:
        strength: :math:`\lambda`, >= 0.
        l1_ratio: :math:`\rho`, the share of L1, between 0 (ridge) and 1 (lasso).

    Raises:
        ValueError: ``strength`` or ``l1_ratio`` is out of range.

    References:
        H. Zou, T. Hastie, *Regularization and Variable Selection via the Elastic Net*, J. R. Statist. Soc. B 67 (2005).

    Example:
        >>> import torch, strongreg
        >>> strongreg.ElasticNet(1.0, l1_ratio=0.5).prox(torch.tensor([2.0, 0.5]), step=1.0)
        tensor([1., 0.])
    """

    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        check_number(self, "l1_ratio", minimum=0.0, maximum=1.0)

    @property
    def has_exact_zeros(self) -> bool:
        """True unless ``l1_ratio`` is 0."""
        return self.l1_ratio > 0

    def terms(self, shape: torch.Size) -> Terms:
        """See :meth:`Penalty.terms`."""
        del shape
        return Terms(l1=self.l1_ratio, l2=1 - self.l1_ratio)

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """See :meth:`Penalty.separable_dims`: all."""
        return range(len(shape))

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`."""
        w = at_least_float32(w)
        return self.strength * (self.l1_ratio * w.abs().sum() + 0.5 * (1 - self.l1_ratio) * w.square().sum())

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        return self.strength * (self.l1_ratio * sign(w) + (1 - self.l1_ratio) * w)

    def critical_strength(self, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.critical_strength`: only the L1 part can hold a weight at 0."""
        if self.l1_ratio == 0:
            return _critical_for_ridge(grad)
        return largest(grad.abs()) / self.l1_ratio

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        ridge_gradient = self.strength * (1 - self.l1_ratio) * w
        return _l1_gap(w, grad + ridge_gradient, self.strength * self.l1_ratio)

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        return soft_threshold(w, threshold * self.l1_ratio) / (1 + threshold * (1 - self.l1_ratio))


@dataclass(frozen=True)
class MCP(Penalty):
    r"""The minimax concave penalty: L1 near 0, fading to no shrinkage at all beyond ``cutoff``.

    :math:`\lambda \sum_i |w_i| - w_i^2 / (2a)` for :math:`|w_i| \le a`, :math:`\lambda a / 2` beyond, with the cutoff
    :math:`a`. Its prox is the firm threshold. In Zhang's notation :math:`\gamma = a / \lambda`; here the cutoff stays
    fixed when a schedule or ``strength_scale`` changes :math:`\lambda`. The penalty is not convex: the prox is its
    global minimum (a hard threshold at :math:`\sqrt{step\,\lambda\,a}` once ``step * strength >= cutoff``), the
    critical strength and the optimality gap speak of stationary points.

    Args:
        strength: :math:`\lambda`, >= 0.
        cutoff: :math:`a`, in units of the weights, > 0.

    Raises:
        ValueError: ``strength`` is negative, ``cutoff`` is not positive, or one is not finite.

    References:
        C.-H. Zhang, *Nearly Unbiased Variable Selection under Minimax Concave Penalty*, Ann. Statist. 38 (2010).
        H.-Y. Gao, A. G. Bruce, *WaveShrink with Firm Shrinkage*, Statistica Sinica 7 (1997).

    Example:
        >>> import torch, strongreg
        >>> strongreg.MCP(0.1, cutoff=1.0).prox(torch.tensor([0.05, 0.5, 2.0]), step=1.0)
        tensor([0.0000, 0.4444, 2.0000])
    """

    cutoff: float = 0.3

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        super().__post_init__()
        check_number(self, "cutoff", minimum=0.0, exclusive=True)

    def terms(self, shape: torch.Size) -> Terms:
        """See :meth:`Penalty.terms`."""
        del shape
        return Terms(l1=1.0, cutoff=self.cutoff)

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """See :meth:`Penalty.separable_dims`: all."""
        return range(len(shape))

    def value(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.value`."""
        w = at_least_float32(w)
        size = w.abs().clamp(max=self.cutoff)
        return self.strength * (size - size.square() / (2 * self.cutoff)).sum()

    def subgradient(self, w: Tensor) -> Tensor:
        """See :meth:`Penalty.subgradient`."""
        return self.strength * sign(w) * (1 - w.abs() / self.cutoff).clamp(min=0)

    def critical_strength(self, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.critical_strength`."""
        return largest(grad.abs())

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        """See :meth:`Penalty.optimality_gap`."""
        at_zero = distance_to_interval(grad, self.strength)
        elsewhere = (grad + self.subgradient(w)).abs()
        return largest(torch.where(w == 0, at_zero, elsewhere))

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        threshold = torch.as_tensor(threshold, dtype=w.dtype, device=w.device)
        # beyond threshold = cutoff the scalar problem is concave inside the cutoff: only 0 and w itself can be minima
        dead_zone = torch.where(threshold < self.cutoff, threshold, (threshold * self.cutoff).sqrt())
        size = w.abs()
        shrunk = sign(w) * (size - threshold) / (1 - threshold / self.cutoff)
        # written so that NaN falls through to w
        outside = torch.where(size <= self.cutoff, shrunk, w)
        return torch.where(size <= dead_zone, torch.zeros_like(w), outside)


def _l1_gap(w: Tensor, grad: Tensor, strength: float) -> Tensor:
    # distance of -grad to [-strength, strength] where w = 0, to {strength * sign(w)} elsewhere
    return largest(torch.where(w == 0, distance_to_interval(grad, strength), (grad + strength * sign(w)).abs()))


def _critical_for_ridge(grad: Tensor) -> Tensor:
    size = largest(grad.abs())
    return torch.where(size > 0, torch.inf, size)  # NaN stays NaN
