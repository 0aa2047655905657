"""The contract of a penalty: one abstract class."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.penalties.terms import Terms
from strongreg.precision import at_least_float32
from strongreg.validation import check_number


@dataclass(frozen=True)
class Penalty(abc.ABC):
    r"""A penalty :math:`\lambda\,\Omega(w)` on one weight tensor.

    Every method includes the strength: ``value`` is :math:`\lambda\Omega(w)`, ``subgradient`` one element of
    :math:`\lambda\,\partial\Omega(w)`, ``prox(w, step)`` is :math:`\mathrm{prox}_{step\cdot\lambda\Omega}(w)`.
    Penalties are immutable, so one object may serve any number of tensors.

    Args:
        strength: :math:`\lambda`, the factor of :math:`\Omega` in the objective :math:`L + \lambda\Omega`; in units of
            the loss per unit of :math:`\Omega`; finite, >= 0.

    Raises:
        ValueError: ``strength`` is negative, infinite or NaN.
        TypeError: ``strength`` is not a number.
    """

    strength: float

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_number(self, "strength", minimum=0.0)

    @property
    def has_exact_zeros(self) -> bool:
        """Whether ``prox`` maps small weights to exactly 0."""
        return True

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        r"""The proximal operator, :math:`\arg\min_x \tfrac12\lVert x-w\rVert^2 + step\cdot\lambda\,\Omega(x)`.

        Half-precision weights are computed in float32 and rounded once.

        Args:
            w: weights, any shape.
            step: effective step size, >= 0; a number or a 0-d tensor (then nothing is moved to the host).

        Returns:
            A new tensor of the shape and dtype of ``w``.

        Raises:
            ValueError: ``step`` is a negative number.
        """
        if not isinstance(step, Tensor) and not step >= 0:
            raise ValueError(f"step must be >= 0, got {step}: it is the effective step size of the optimizer")
        return self._prox(at_least_float32(w), step * self.strength).to(w.dtype)

    def for_output_dim(self, dim: int) -> Penalty:
        """This penalty for a tensor whose output channels lie along dimension ``dim``.

        Only penalties on groups differ; the others return themselves.

        Args:
            dim: dimension of the output channels (1 for transposed convolutions, otherwise 0).

        Returns:
            A penalty of the same class.
        """
        del dim
        return self

    def terms(self, shape: torch.Size) -> Terms | None:
        """This penalty at strength 1 as terms that the fast passes know (:mod:`strongreg.kernels`).

        A class that defines its own ``subgradient`` or ``prox`` and not this goes through its own methods.

        Args:
            shape: shape of the weights.

        Returns:
            The terms, or None where there are none: then the penalty's methods are called, tensor by tensor.
        """
        del shape
        return None

    def separable_dims(self, shape: torch.Size) -> Sequence[int]:
        """Dimensions along which weights may be cut so that this penalty treats each part as it treats the whole.

        Where processes hold parts of a tensor that is cut along another one, the tensor is gathered for the penalty, as
        for every class that does not define this method itself.

        Args:
            shape: shape of the weights.

        Returns:
            Numbers of dimensions, >= 0.
        """
        del shape
        return ()

    def check_shape(self, shape: torch.Size) -> None:  # noqa: B027 - most penalties take every shape
        """Check that this penalty fits tensors of a shape.

        Args:
            shape: shape of the weights.

        Raises:
            ValueError: the penalty needs a dimension that the shape does not have.
        """

    @abc.abstractmethod
    def value(self, w: Tensor) -> Tensor:
        r"""The penalty :math:`\lambda\,\Omega(w)`.

        Args:
            w: weights, any shape.

        Returns:
            0-d tensor, in units of the loss; float32 for weights of half precision, whose sum would leave their range.
        """

    @abc.abstractmethod
    def subgradient(self, w: Tensor) -> Tensor:
        r"""One element of :math:`\lambda\,\partial\Omega(w)`, the one of least norm at 0.

        Args:
            w: weights, any shape.

        Returns:
            Tensor of the shape of ``w``.
        """

    @abc.abstractmethod
    def critical_strength(self, grad: Tensor) -> Tensor:
        r"""The smallest strength at which ``w = 0`` is stationary for :math:`L + \lambda\Omega`.

        For convex losses and penalties: at this strength and above the solution is 0, below it is not. It does not
        depend on ``strength``.

        Args:
            grad: gradient of the loss at ``w = 0``, any shape.

        Returns:
            0-d tensor, >= 0; infinite where no strength gives 0.
        """

    @abc.abstractmethod
    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        r"""Distance of ``-grad`` to :math:`\lambda\,\partial\Omega(w)`: 0 if and only if ``w`` is stationary.

        Args:
            w: weights, any shape.
            grad: gradient of the loss at ``w``, same shape.

        Returns:
            0-d tensor >= 0: the largest distance over coordinates (over groups, in the 2-norm, for group penalties).
        """

    @abc.abstractmethod
    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        """``prox`` for threshold = step * strength."""


def largest(distances: Tensor) -> Tensor:
    """The largest of some distances, 0 for none.

    Args:
        distances: any shape, possibly empty.

    Returns:
        0-d tensor.
    """
    return distances.amax() if distances.numel() else distances.new_zeros(())


def distance_to_interval(x: Tensor, radius: float | Tensor) -> Tensor:
    """Distance of each coordinate to the interval [-radius, radius].

    Args:
        x: any shape.
        radius: half the interval's width, >= 0.

    Returns:
        Tensor of the shape of ``x``.
    """
    return (x.abs() - radius).clamp(min=0)


def sign(w: Tensor) -> Tensor:
    """The sign of each coordinate, 0 at 0 and NaN at NaN (torch's own is 0 there, which would hide it).

    Args:
        w: any shape; subnormal numbers count for less than 1.

    Returns:
        Tensor of the shape of ``w``.
    """
    wide = at_least_float32(w)
    # times the largest number, every normal one is beyond 1; three times as fast as to ask where NaN is
    return (wide * torch.finfo(wide.dtype).max).clamp_(-1, 1).to(w.dtype)


def soft_threshold(w: Tensor, threshold: float | Tensor) -> Tensor:
    """``sign(w) * max(|w| - threshold, 0)``, exactly 0 inside.

    Args:
        w: any shape.
        threshold: >= 0.

    Returns:
        Tensor of the shape of ``w``.
    """
    # w minus its projection onto [-threshold, threshold]: two passes, and w - w is exactly 0
    return w - torch.clamp(w, -threshold, threshold)  # type: ignore[arg-type]
