"""What moves the weights apart from the penalty: the loss gradient, or the step that the optimizer has taken.

Where an optimizer's step is in proportion to the gradient (SGD), gradient and penalty gradient have the same units, and
they are compared. Where the optimizer rescales it (Adam and its kin), the proximal step stands beside a step whose size
does not depend on the gradient's, and that step is compared with it (docs/theory.md, equation 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from strongreg.decision import BeforeStep
from strongreg.devices import Constants, reading_is_free
from strongreg.groups import Target
from strongreg.kernels import Passes, size_of_all
from strongreg.optimizers import Group, effective_step_size, gradient_sign, loss_scale, of_groups, step_is_skipped
from strongreg.precision import scalar_dtype
from strongreg.scalars import Scalars, as_scalars, namespace, one_tensor

_SMALLEST_STEP_SIZE = 1e-30  # a learning rate of 0 moves nothing, and its reciprocal must stay finite


def look_before_step(
    targets: Sequence[Target],
    passes: Passes,
    optimizer: Optimizer,
    groups: Sequence[Group],
    device: torch.device,
    *,
    products: bool,
    copy: bool,
) -> BeforeStep:
    """What is to be known before the weights move.

    Args:
        targets: the K penalized parameters.
        passes: what computes over them.
        optimizer: the optimizer, within its step, with the gradients there.
        groups: the parameter group of each.
        device: where to gather the scalars.
        products: whether to take the inner products of gradients and penalty gradients.
        copy: whether to copy the weights, since they will be looked at after the step.

    Returns:
        The weights, and what the gradients show.

    Raises:
        TypeError: a gradient is sparse.
    """
    grads = [target.param.grad for target in targets]
    for target, grad in zip(targets, grads, strict=True):
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"parameter {target.name!r} has a gradient of layout {grad.layout}, which strongreg does not support: "
                f"exclude it with {{{target.name!r}: None}} in the mapping of penalties"
            )
    weights = [target.param.detach() for target in targets]
    scale = loss_scale(optimizer)
    taken = as_scalars(passes.products(grads, weights, device)) if products else None
    gradient_sq = as_scalars(passes.squares(grads, device)) if taken is None else taken[:, 0]
    others = _size_of_the_others(targets, optimizer, device)
    xp = namespace(gradient_sq)
    finite = xp.isfinite(gradient_sq.sum() + others)
    skipped = step_is_skipped(optimizer, device)
    if _learning_rate_is_0(optimizer) and any(grad is not None for grad in grads):
        # so torch.distributed.checkpoint makes an optimizer create its state: no weight moves
        skipped = skipped | ((gradient_sq.sum() == 0) & (others == 0))
    if scale is not None:
        divisor = as_scalars(scale.to(device=device, dtype=scalar_dtype(device)).reshape(()))
        gradient_sq = gradient_sq / (divisor * divisor)
    if taken is not None:
        # undo the loss scale and the sign of an ascent
        unit = 1.0 if scale is None else 1 / divisor
        taken = scaled(taken, of_groups(groups, lambda group: gradient_sign(group) * unit), passes.constant)
    if copy:
        weights = _copies(weights)
    return BeforeStep(weights, [grad is not None for grad in grads], gradient_sq, finite, skipped, taken)


def products_of_step(
    targets: Sequence[Target],
    passes: Passes,
    optimizer: Optimizer,
    groups: Sequence[Group],
    before: BeforeStep,
    device: torch.device,
) -> Scalars:
    """Inner products of the steps taken, per unit of step size, and the penalty gradients before them.

    Args:
        targets: the K penalized parameters.
        passes: what computes over them.
        optimizer: the optimizer, after its step.
        groups: the parameter group of each.
        before: with a copy of the weights.
        device: where to gather the numbers.

    Returns:
        As :meth:`strongreg.kernels.Passes.products`.
    """
    pairs = zip(before.weights, before.has_gradient, strict=True)
    moved = [weight if has_gradient else None for weight, has_gradient in pairs]
    now = [target.param.detach() for target in targets]
    products = as_scalars(passes.products(moved, before.weights, device, minus=now))
    factors = of_groups(groups, lambda group: 1 / _away_from_0(effective_step_size(optimizer, group)))
    return scaled(products, factors, passes.constant)


def scaled(products: Scalars, factors: Sequence[float | Tensor], constant: Constants) -> Scalars:
    """The inner products for pulls that are multiplied by factors.

    Args:
        products: as :meth:`strongreg.kernels.Passes.products` gives them, shape (K, 4).
        factors: K numbers, or tensors of one entry.
        constant: what keeps tensors of host numbers.

    Returns:
        Shape (K, 4).
    """
    if all(not isinstance(factor, Tensor) and factor == 1 for factor in factors):
        return products
    xp = namespace(products)
    by_row: Scalars
    if xp is np:
        by_row = np.array([float(factor) for factor in factors])
    else:
        by_row = one_tensor(factors, products.dtype, products.device, constant)
    with np.errstate(invalid="ignore", over="ignore"):
        factors_of_columns = xp.stack([by_row * by_row, by_row, xp.ones_like(by_row), xp.ones_like(by_row)], 1)
        return products * factors_of_columns


def _copies(weights: list[Tensor]) -> list[Tensor]:
    if not all(type(weight) is Tensor for weight in weights):
        return [weight.clone() for weight in weights]
    copies = [torch.empty_like(weight) for weight in weights]
    torch._foreach_copy_(copies, weights)  # few launches on an accelerator
    return copies


def _size_of_the_others(targets: Sequence[Target], optimizer: Optimizer, device: torch.device) -> Scalars:
    """A norm of the gradients that are not penalized (biases, normalization), 0-d."""
    penalized = {id(target.param) for target in targets}
    grads = [
        param.grad
        for group in optimizer.param_groups
        for param in group["params"]
        if id(param) not in penalized and param.grad is not None
    ]
    # of a sparse one the values: a batch may have looked nothing up
    grads = [grad.coalesce().values() if grad.layout == torch.sparse_coo else grad for grad in grads]
    return size_of_all([grad for grad in grads if grad.numel()], device)


def _learning_rate_is_0(optimizer: Optimizer) -> bool:
    """Whether it is 0 everywhere; False where to look would mean to wait for an accelerator."""
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    return all((not isinstance(rate, Tensor) or reading_is_free(rate.device)) and float(rate) == 0 for rate in rates)


def _away_from_0(step_size: float | Tensor) -> float | Tensor:
    if isinstance(step_size, Tensor):
        return step_size.clamp(min=_SMALLEST_STEP_SIZE)
    return max(step_size, _SMALLEST_STEP_SIZE)
