"""The step that Adam or AdamW is about to take, per unit of learning rate, from the gradient and the optimizer's state.

So the penalty can be compared with that step before it is taken, and no copy of the weights is needed to see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamStep:
    """What the step of one tensor is made of.

    Args:
        exp_avg: running mean of the gradients, None before the first step.
        exp_avg_sq: running mean of their squares, None before the first step.
        betas: how slowly the two follow, in [0, 1).
        num_steps: steps taken, this one included.
        eps: added to the root.
        weight_decay: the optimizer's own.
        decoupled: whether that acts beside the gradient (AdamW) and not within it.
        sign: -1 where the optimizer ascends along the gradient, otherwise 1.
    """

    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    betas: tuple[float, float]
    num_steps: float
    eps: float
    weight_decay: float
    decoupled: bool
    sign: float

    def constants(self) -> tuple[float, ...]:
        """What a loop over the entries needs beside them.

        Returns:
            The sign; the factor of the weights within the gradient; the factors of the gradient and of the running mean
            in the corrected mean; the same for the squares; ``eps``; the factor of the weights beside the gradient.
        """
        first, second = self.betas
        mean, square = 1 - first**self.num_steps, 1 - second**self.num_steps
        within, beside = (0.0, self.weight_decay) if self.decoupled else (self.weight_decay, 0.0)
        in_mean, in_square = ((1 - first) / mean, first / mean), ((1 - second) / square, second / square)
        return (self.sign, within, *in_mean, *in_square, self.eps, beside)

    def entries(self, gradient: Tensor, weight: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None) -> Tensor:
        """The step over some entries.

        Args:
            gradient: the loss gradient, any shape.
            weight: the weights, same shape.
            exp_avg: the running mean, same shape; None counts as zeros.
            exp_avg_sq: that of the squares, same shape; None counts as zeros.

        Returns:
            Weights before the step minus weights after it, divided by the learning rate; same shape.
        """
        sign, within, a, b, c, d, eps, beside = self.constants()
        gradient = sign * gradient + within * weight
        mean, square = a * gradient, c * gradient.square()
        if exp_avg is not None and exp_avg_sq is not None:
            mean, square = mean + b * exp_avg, square + d * exp_avg_sq
        return mean / (torch.sqrt(square) + eps) + beside * weight
