"""The passes one tensor after the other, by the penalty's own methods: for every device and kind of tensor.

What the other ways compute is held to this one by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strongreg.coherence import inner_products, squared_norm
from strongreg.groups import Target
from strongreg.kernels.adam import AdamStep
from strongreg.kernels.zeros import BooleanZeros
from strongreg.penalties import Penalty
from strongreg.precision import at_least_float32, scalar_dtype


class ReferencePasses(BooleanZeros):
    """The passes over any tensors.

    Args:
        targets: n penalized parameters.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._penalties = [target.penalty for target in targets]

    @staticmethod
    def accepts(target: Target) -> bool:
        """Whether a parameter can be worked on.

        Args:
            target: the penalized parameter.

        Returns:
            True.
        """
        del target
        return True

    def products(
        self, pulls: Sequence[Tensor | None], minus: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Tensor:
        """Inner products at full strength.

        Args:
            pulls: what moves each tensor apart from the penalty, n tensors; or None.
            minus: what is to be subtracted from each, n tensors; or None.
            weights: where to take the penalty gradients, n tensors.

        Returns:
            Shape (n, 4), float64 where the device has it: of pull and pull, pull and penalty gradient, penalty gradient
            and itself, weights and themselves. Without a pull the first three are 0.
        """
        each = zip(self._penalties, pulls, minus, weights, strict=True)
        return torch.stack([sums(*arguments) for arguments in each])

    def foreseen(
        self, gradients: Sequence[Tensor | None], steps: Sequence[AdamStep], weights: Sequence[Tensor]
    ) -> Tensor:
        """Inner products of the steps that Adam is about to take and the penalty gradients, at full strength.

        Args:
            gradients: the loss gradients, n tensors; or None.
            steps: what the steps are made of, n entries.
            weights: the weights before the steps, n tensors.

        Returns:
            Shape (n, 5): as from :meth:`products`, and of gradients and themselves.
        """
        pulls = [
            None if grad is None else step.entries(grad, weight, step.exp_avg, step.exp_avg_sq)
            for grad, step, weight in zip(gradients, steps, weights, strict=True)
        ]
        products = self.products(pulls, [None] * len(pulls), weights)
        return torch.cat([products, self.squares(gradients)[:, None].to(products.device)], dim=1)

    def squares(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Squared norms.

        Args:
            tensors: n tensors; None counts as zeros.

        Returns:
            Shape (n,), float64 where the device has it.
        """
        device = next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))
        zero = torch.zeros((), dtype=scalar_dtype(device), device=device)
        return torch.stack([zero if tensor is None else squared_norm(tensor).to(zero.dtype) for tensor in tensors])

    def shrink(
        self, weights: Sequence[Tensor], factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]
    ) -> None:
        """The proximal step in place.

        Args:
            weights: n tensors.
            factors: factor on the strength of each; at 0 no bit changes. Numbers, or 0-d tensors where the host does
                not know whether the gate is open.
            step_sizes: effective step size for each; one that a scheduler's rounding has left below 0 is 0.
        """
        for penalty, weight, factor, step_size in zip(self._penalties, weights, factors, step_sizes, strict=True):
            _shrink(penalty, weight, factor, step_size)


def sums(penalty: Penalty, pull: Tensor | None, minus: Tensor | None, weight: Tensor) -> Tensor:
    """The inner products of one tensor.

    Args:
        penalty: the penalty.
        pull: what moves the tensor apart from it, or None.
        minus: what is to be subtracted from the pull, or None.
        weight: where to take the penalty gradient.

    Returns:
        Shape (4,), as a row of :meth:`ReferencePasses.products`.
    """
    weight_sq = squared_norm(weight).to(scalar_dtype(weight.device))
    if pull is None:
        return torch.stack([torch.zeros_like(weight_sq)] * 3 + [weight_sq])
    moved = pull if minus is None else pull - minus
    if penalty.strength == 0:
        return torch.stack([squared_norm(moved).to(weight_sq.dtype), *[torch.zeros_like(weight_sq)] * 2, weight_sq])
    products = inner_products(moved, penalty.subgradient(at_least_float32(weight)))
    return torch.stack([*(product.to(weight_sq.dtype) for product in products), weight_sq])


def _shrink(penalty: Penalty, weight: Tensor, factor: float | Tensor, step_size: float | Tensor) -> None:
    if isinstance(step_size, Tensor):
        step_size = step_size.clamp(min=0)
    elif step_size <= 0:
        return
    if not isinstance(factor, Tensor) and factor == 0:
        return
    shrunk = penalty.prox(weight, step_size * factor)
    if isinstance(factor, Tensor):
        # where the gate is closed the bits must stay, the sign of a zero too; the host does not learn which it was
        shrunk = torch.where(factor > 0, shrunk, weight)
    weight.copy_(shrunk)
