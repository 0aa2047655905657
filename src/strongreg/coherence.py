r"""The coherence of a loss gradient with a penalty gradient: pure functions of inner products.

With the loss gradient :math:`g` and the penalty gradient :math:`\lambda r`, the coherence is

.. math:: c = \cos(g, g + \lambda r) = \frac{A + B}{\sqrt{A\,(A + 2B + C)}}, \qquad
          A = \langle g, g\rangle,\; B = \langle g, \lambda r\rangle,\; C = \langle \lambda r, \lambda r\rangle .

It is 1 when the penalty does not turn the gradient and falls as the penalty takes over. Three inner products, no second
backward pass. This reading of "coherent" is a reconstruction (docs/theory.md, equation 2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from strongreg.devices import reading_is_free
from strongreg.precision import at_least_float32, scalar_dtype
from strongreg.scalars import Scalars, namespace

_SMALLEST_NORM = 1e-30  # its reciprocal is still a float32
_SAFE = (1e-30, 1e30)  # sums of squares that have neither lost small terms nor overflown in float32


def inner_products(gradient: Tensor, penalty_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The inner products :math:`A`, :math:`B`, :math:`C` of a loss gradient and a penalty gradient.

    Gradients of a dying network have norms whose squares leave the range of float32. There, and on accelerators, where
    the host does not look, the squares are summed in float64 and the cross product is taken with the penalty gradient
    at unit length.

    Args:
        gradient: :math:`g`, any shape, memory layout and floating-point dtype.
        penalty_gradient: :math:`\lambda r`, same shape.

    Returns:
        Three 0-d tensors on the gradient's device, float64 where the device has it.
    """
    gradient_sq = squared_norm(gradient)
    penalty_sq = squared_norm(penalty_gradient)
    dtype = torch.promote_types(gradient.dtype, penalty_gradient.dtype)  # a gradient's need not be the weight's
    g, r = _flat(gradient.to(dtype)), _flat(penalty_gradient.to(dtype))
    if is_safe_square(gradient_sq) and is_safe_square(penalty_sq):
        return gradient_sq, torch.dot(g, r).to(penalty_sq.dtype), penalty_sq
    to_unit = penalty_sq.sqrt().clamp(min=_SMALLEST_NORM).reciprocal()
    cross = torch.dot(g, r * to_unit.to(r.dtype)).to(penalty_sq.dtype) / to_unit
    return gradient_sq, cross, penalty_sq


def squared_norm(tensor: Tensor) -> Tensor:
    """The squared 2-norm.

    Args:
        tensor: any shape and memory layout.

    Returns:
        0-d tensor, float64 where the device has it.
    """
    dtype = torch.promote_types(tensor.dtype, scalar_dtype(tensor.device))
    if reading_is_free(tensor.device):
        flat = _flat(tensor)
        square = torch.dot(flat, flat).to(dtype)  # three times as fast as the norm in float64
        if is_safe_square(square):
            return square
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=dtype)
    return norm.square()


def is_safe_square(square: Tensor) -> bool:
    """Whether a sum of squares has neither lost small terms nor overflown.

    Args:
        square: 0-d.

    Returns:
        Whether it is well within the range of float32; False where to look would mean to wait for an accelerator.
    """
    return reading_is_free(square.device) and _SAFE[0] < square.item() < _SAFE[1]


def coherence(gradient_sq: Scalars, cross: Scalars, penalty_sq: Scalars) -> Scalars:
    r"""The coherence :math:`c = \cos(g, g + \lambda r)` from inner products, elementwise.

    Args:
        gradient_sq: :math:`A`, tensor or array of any shape, float64 where the device has it (the products of two
            squares must not underflow).
        cross: :math:`B`, same shape and kind.
        penalty_sq: :math:`C`, same shape and kind.

    Returns:
        The same shape and kind, in [-1, 1]. 1 where the penalty gradient is 0; 0 where the gradient, or the sum of
        both, is 0 and the penalty gradient is not; NaN where an inner product is NaN or infinite.
    """
    xp = namespace(gradient_sq)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        aligned = gradient_sq + cross
        # rounding can push |g + lambda r|^2 below 0 when the two cancel
        total_sq = (aligned + cross + penalty_sq).clip(0)
        lengths = xp.sqrt(gradient_sq) * xp.sqrt(total_sq)
        cosine = xp.where(lengths > 0, (aligned / lengths).clip(-1, 1), 0.0)
        cosine = xp.where(penalty_sq == 0, 1.0, cosine)
        # x * 0 is 0 for finite x and NaN otherwise
        return cosine + (aligned + penalty_sq) * 0


def _flat(tensor: Tensor) -> Tensor:
    return at_least_float32(tensor.reshape(-1))
